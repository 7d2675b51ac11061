"""Measure again what docs/performance.md shows, and write it there.

A section of the page begins with ``<!-- bench NAME: ARGUMENTS -->`` and ends with ``<!-- end of
bench -->``. Between them come the tables of ``python benches/compare.py ARGUMENTS``. Each section
is written as soon as it is measured::

    python benches/publish.py              # all sections
    python benches/publish.py calls half   # these
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rustbn.bench.tables import EXPLANATION

COMPARE = Path(__file__).with_name("compare.py")
PAGE = COMPARE.parent.parent / "docs" / "performance.md"
SECTION = re.compile(r"(<!-- bench (\S+): ([^\n]+) -->\n).*?(?=<!-- end of bench -->)", re.S)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sections, and return the exit code of the first run that fails, else 0."""
    parser = argparse.ArgumentParser(description="Measure the tables of a page again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="sections (default: all)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="%(default)s")
    given = parser.parse_args(argv)
    there = [name for _, name, _ in SECTION.findall(given.page.read_text(encoding="utf-8"))]
    if unknown := set(given.names) - set(there):
        parser.error(f"{given.page} has the sections {', '.join(there)}, not {', '.join(unknown)}")
    for name in given.names or there:
        code = publish(given.page, name)
        if code != 0:
            return code
    return 0


def publish(page: Path, name: str) -> int:
    """Measure a section, write it to the page, and return the exit code of the run."""
    text = page.read_text(encoding="utf-8")
    section = next(found for found in SECTION.finditer(text) if found[2] == name)
    print(f"{name}: {section[3]}", file=sys.stderr, flush=True)
    with TemporaryDirectory() as folder:
        file = Path(folder, "bench.md")
        command = [sys.executable, str(COMPARE), *shlex.split(section[3])]
        done = subprocess.run([*command, "--markdown", str(file)], stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            return done.returncode
        tables = file.read_text(encoding="utf-8").replace(f"{EXPLANATION}\n\n", "")
    run = f"```sh\npython benches/compare.py {section[3]}\n```"
    body = f"{section[1]}\n{run}\n\n{tables}\n"
    page.write_text(text[: section.start()] + body + text[section.end() :], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
