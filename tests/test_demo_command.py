"""The command ``python -m rustbn demo``: tables, figures, report, interruption, arguments."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from rustbn.demo import cli, covariate_shift, stability
from rustbn.demo.catalogue import EXPERIMENTS, Experiment
from rustbn.demo.report import html_table
from rustbn.demo.requirements import PACKAGES
from rustbn.demo.results import OnProgress, Table, Test


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """A result that needs no training."""

    holds: tuple[bool, ...] = (True, False)

    @property
    def tests(self) -> list[Test]:
        return [Test(f"made up {i} < 9", "1 & 2", holds) for i, holds in enumerate(self.holds)]

    @property
    def findings(self) -> list[str]:
        return ["Nothing was found."]

    @property
    def tables(self) -> list[Table]:
        return [Table("Numbers", ("a", "b"), [("1", "<2>")])]


def made_up(seed: int, *, size: int = 3, on_progress: OnProgress) -> MadeUp:
    """Measure nothing.

    Claim
        What is claimed.
    Method
        How it is
        measured.
    Rule
        What it says.
    """
    on_progress(0.5)
    on_progress(1.0)
    return MadeUp((True, False) if size == 3 else (seed == 7,))


def interrupted(seed: int, *, on_progress: OnProgress) -> MadeUp:
    raise KeyboardInterrupt


def plain_figure(result: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4], label=str(result))
    return figure


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put experiments in the catalogue that take no time."""
    for package in PACKAGES:
        pytest.importorskip(package)
    made = Experiment(
        made_up, {"size": 1}, {"made-up": plain_figure, "made-up-2": plain_figure}, 1, 1
    )
    broken = Experiment(interrupted, {}, {"interrupted": plain_figure}, 1, 1)
    monkeypatch.setattr(cli, "EXPERIMENTS", {"made_up": made, "interrupted": broken})


class Page(HTMLParser):
    """Collects the tags and where they point."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            self.links += re.findall(r"url\((.*?)\)", value or "")
            if name == "id":
                assert value not in self.ids
                self.ids.add(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("_small")
def test_command_prints_tables_and_writes_figures_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert cli.main(["made-up", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "about 4 minutes on two cores" in printed.out
    assert "Made up: mixed" in printed.out
    assert "What is claimed." in printed.out
    assert re.search(r"made up 0 < 9 .*1 & 2 .*yes", printed.out)
    assert re.search(r"made up 1 < 9 .*1 & 2 .*no", printed.out)
    assert "- Nothing was found." in printed.out
    assert re.search(r"^Made up +mixed +1 of 2 tests hold", printed.out, re.M)
    assert f"Report: {out / 'report.html'}" in printed.out
    assert printed.err == ""
    assert sorted(path.name for path in out.iterdir()) == [
        "made-up-2.png", "made-up-2.svg", "made-up.png", "made-up.svg", "report.html",
    ]  # fmt: skip
    assert (out / "made-up.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "made-up.svg").read_text().startswith("<?xml")


@pytest.mark.usefixtures("_small")
def test_report_is_one_whole_page(tmp_path: Path) -> None:
    assert cli.main(["made_up", "--quick", "--seed", "7", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 2
    # It needs no other file: links lead into the page itself.
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= page.ids
    assert "made up 0 &lt; 9" in text
    assert "1 &amp; 2" in text
    assert "How it is measured." in text
    assert '<span class="badge supported">' in text  # with seed 7
    assert "def interrupted(seed" in text  # the code of the module
    assert "A quick run" in text
    assert re.search(r"<td>Seed</td><td>7</td>", text)
    assert re.search(rf"<td>numpy</td><td>{re.escape(np.__version__)}</td>", text)


def test_html_is_escaped() -> None:
    assert "<td>&lt;2&gt;</td>" in html_table(Table("", ("a",), [("<2>",)]))


@pytest.mark.usefixtures("_small")
def test_interruption_keeps_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert printed.err == "rustbn demo: interrupted\n"
    assert "Made up: mixed" in printed.out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="made_up"' in text
    assert 'id="interrupted"' not in text


@pytest.mark.usefixtures("_small")
def test_interruption_of_the_first_leaves_no_report(tmp_path: Path) -> None:
    assert cli.main(["interrupted", "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small")
def test_figures_of_one_seed_are_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert cli.main(["made_up", "--out", str(tmp_path / name)]) == 0
    for figure in ("made-up.png", "made-up.svg"):
        assert (tmp_path / "a" / figure).read_bytes() == (tmp_path / "b" / figure).read_bytes()


@pytest.mark.parametrize(("module", "package"), PACKAGES.items())
def test_command_names_a_missing_package(
    module: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "out"
    assert cli.main(["--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert package in printed.err
    assert "pip install 'rustbn[demo]'" in printed.err
    assert printed.out == ""
    assert not out.exists()


def test_functions_name_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rustbn.demo.requirements._found", lambda module: False)
    for load in ("load_digits", "load_mnist"):
        getattr(sys.modules["rustbn.demo.data"], load).cache_clear()
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'rustbn\[demo\]'"):
        stability()
    with pytest.raises(ImportError, match=r"mlxtend: pip install 'rustbn\[demo\]'"):
        EXPERIMENTS["normalise"].run()
    with pytest.raises(ImportError, match="scikit-learn"):
        covariate_shift()


def test_imports_without_the_extra(run_python: RunPython) -> None:
    run_python(
        f"import sys; sys.modules.update(dict.fromkeys({list(PACKAGES)})); import rustbn.demo"
    )


@pytest.mark.usefixtures("_small")
def test_command_refuses_a_file_as_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["--out", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--nonsense"], "--nonsense"),
        (["stabilty"], "expected one of normalise, stability, "),
    ],
)
def test_command_refuses_wrong_arguments(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert named in capsys.readouterr().err
