"""The report: one HTML file with figures, tables, the code of each experiment and the machine."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rustbn.bench.machine import machine, versions
from rustbn.demo.catalogue import Experiment
from rustbn.demo.requirements import require
from rustbn.demo.results import Result, Table, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSIONS = ("numpy", "scikit-learn", "mlxtend")


@dataclass(frozen=True)
class Finished:
    """An experiment, what it returned, and how long it took."""

    experiment: Experiment
    result: Result
    seconds: float


def write_report(finished: Sequence[Finished], out: Path, *, seed: int, quick: bool) -> Path:
    """Write the figures as PNG and SVG, and ``report.html``, into the folder; return its path."""
    sections = []
    for one in finished:
        svgs = [save(draw(one.result), out / name) for name, draw in one.experiment.figures.items()]
        sections.append(section(one, svgs))
    report = out / "report.html"
    report.write_text(page(finished, sections, seed=seed, quick=quick), encoding="utf-8")
    return report


def save(figure: Figure, path: Path) -> str:
    """Save the figure as PNG and SVG, and return the SVG to put into a page.

    The same figure gives the same files. In the page its ids must not be another figure's, and it
    says its message, which is drawn as shapes, to those who cannot see it.
    """
    require("matplotlib")
    import matplotlib

    figure.savefig(path.with_suffix(".png"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    inline = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{path.name}-", svg[svg.index("<svg") :])
    message = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    return inline.replace("<svg", f'<svg role="img" aria-label="{escape(message)}"', 1)


def page(finished: Sequence[Finished], sections: list[str], *, seed: int, quick: bool) -> str:
    """Return the whole page."""
    rows = "".join(
        f'<tr><td><a href="#{one.experiment.name}">{escape(one.experiment.title)}</a></td>'
        f"<td>{badge(one.result)}</td><td>{escape(one.result.findings[0])}</td></tr>"
        for one in finished
    )
    facts = [("Seed", str(seed)), ("Size", "quick" if quick else "full")]
    facts += [(name, _text(value)) for name, value in machine().items()]
    facts += list(versions(VERSIONS).items())
    facts += [(f"Seconds for {one.experiment.name}", f"{one.seconds:.0f}") for one in finished]
    quickly = (
        "<p><strong>A quick run: few seeds and short trainings, so intervals are wide and verdicts "
        "less certain than those of the full one.</strong></p>"
        if quick
        else ""
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What batch norm does, measured</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What batch norm does, measured</h1>
<p>Networks of NumPy, with and without the batch norm of rustbn, on images of digits. Pairs start
from the same weights and see the same batches. What is tuned is tuned on validation images with
other seeds; accuracies are those on test images. Each claim is split into tests, which hold only
where the numbers show it. A claim is <em>supported</em> where all its tests hold,
<em>refuted</em> where none does, else <em>mixed</em>.</p>
{quickly}
<div class="scroll"><table class="overview"><thead><tr><th>Experiment</th><th>Verdict</th>
<th>Found</th></tr></thead><tbody>{rows}</tbody></table></div>
{"".join(sections)}
<h2>Machine</h2>
{html_table(Table("", ("", ""), facts))}
<p class="note">Made {time.strftime("%Y-%m-%d %H:%M")} by <code>python -m rustbn demo</code>. The
same seed gives the same numbers and figures, except seconds.</p>
</body>
</html>
"""


def section(one: Finished, svgs: Iterable[str]) -> str:
    """Return the part of the page about one experiment."""
    experiment, result = one.experiment, one.result
    text = experiment.sections
    tests = Table(
        "Tests",
        ("Test", "Measured", "Holds"),
        [(test.says, test.numbers, "yes" if test.holds else "no") for test in result.tests],
    )
    figures = "".join(f"<figure>{svg}</figure>" for svg in svgs)
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in result.findings)
    tables = "".join(html_table(table) for table in result.tables)
    return f"""
<section id="{experiment.name}">
<h2>{escape(experiment.title)} {badge(result)}</h2>
<p><strong>{escape(text["Claim"])}</strong></p>
<ul>{findings}</ul>
{figures}
{html_table(tests)}
<details><summary>Method and rule</summary><p>{escape(text["Method"])}</p>
<p>{escape(text["Rule"])}</p></details>
<details><summary>All numbers</summary>{tables}</details>
<details><summary>Code</summary><pre class="scroll"><code>{escape(experiment.source)}</code></pre>
</details>
</section>
"""


def html_table(table: Table) -> str:
    """Return a table that scrolls by itself where the page is narrow."""
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f'<div class="scroll"><table>{caption}{head}<tbody>{rows}</tbody></table></div>'


def badge(result: Result) -> str:
    """Return the verdict as a coloured word."""
    word = verdict(result.tests)
    return f'<span class="badge {word}">{word}</span>'


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {size}" for name, size in value.items())
    return str(value)


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 52rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
.scroll { overflow-x: auto; }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; max-width: 44rem; height: auto; display: block; }
table { border-collapse: collapse; font-size: .9rem; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid #e4e4e4; }
.badge { font-size: .8rem; font-weight: 600; padding: .1rem .55rem; border-radius: 1rem;
  color: #fff; vertical-align: middle; white-space: nowrap; }
.supported { background: #00694d; }
.mixed { background: #8a5a00; }
.refuted { background: #a3330f; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: #0059a0; padding: .3rem 0; }
pre { background: #f6f6f6; padding: .8rem; font-size: .8rem; line-height: 1.4; }
.note { color: #555; font-size: .9rem; }
@media (max-width: 40rem) {
  body { padding: .7rem; }
  h1 { font-size: 1.4rem; }
  .overview thead { display: none; }
  .overview td { display: block; border: 0; padding: 0; }
  .overview td:nth-child(-n+2) { display: inline-block; padding-right: .5rem; }
  .overview tr { display: block; border-bottom: 1px solid #e4e4e4; padding: .6rem 0; }
}
"""
