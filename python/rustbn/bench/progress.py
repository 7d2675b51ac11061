"""Progress on standard error: a bar on a terminal with rich, lines without one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TypeAlias

OnWork: TypeAlias = Callable[[int, str], None]


@contextmanager
def progress(work: int) -> Iterator[OnWork]:
    """Give the function that `measure` reports its work to."""
    if sys.stderr.isatty() and _has_rich():
        with _bar(work) as on_work:
            yield on_work
    else:
        yield _lines()


@contextmanager
def _bar(work: int) -> Iterator[OnWork]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # No refreshing thread: it would be measured too.
    bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    with bar:
        task = bar.add_task("starting", total=work)

        def on_work(units: int, what: str) -> None:
            bar.update(task, advance=units, description=what, refresh=True)

        yield on_work


def _lines() -> OnWork:
    last = ""

    def on_work(units: int, what: str) -> None:
        nonlocal last
        if what != last:
            print(what, file=sys.stderr, flush=True)
        last = what

    return on_work


def _has_rich() -> bool:
    try:
        return find_spec("rich") is not None
    except ValueError:  # sys.modules has None for it
        return False
