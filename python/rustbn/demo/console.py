"""The demonstration on a terminal: progress, and a table for each experiment, with rich."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rustbn.demo.catalogue import Experiment
from rustbn.demo.results import OnProgress, Result, Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

COLOURS: dict[Verdict, str] = {"supported": "green", "mixed": "yellow", "refuted": "red"}


@contextmanager
def progress(
    console: Console, experiments: list[Experiment], seconds: list[float]
) -> Iterator[Callable[[int], OnProgress]]:
    """Show two bars, of the experiment and of the whole with the time left.

    Gives a function that takes the index of an experiment and returns its ``on_progress``.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("so far:"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=60) as bars:
        all_ = bars.add_task("All", total=sum(seconds))

        def start(index: int) -> OnProgress:
            one = bars.add_task(experiments[index].title, total=1.0)

            def on_progress(part: float) -> None:
                bars.update(one, completed=part, visible=part < 1)
                bars.update(all_, completed=sum(seconds[:index]) + part * seconds[index])

            return on_progress

        yield start


def summary(experiment: Experiment, result: Result) -> RenderableType:
    """Return the claim, its tests with their numbers, the verdict and the findings."""
    from rich import box
    from rich.table import Table

    word, claim = verdict(result.tests), experiment.sections["Claim"]
    table = Table(
        title=f"[bold]{experiment.title}: [{COLOURS[word]}]{word}[/]\n{claim}",
        title_justify="left",
        title_style="",
        caption="\n".join(f"- {finding}" for finding in result.findings),
        caption_justify="left",
        caption_style="",
        box=box.SIMPLE_HEAD,
        expand=True,
    )
    table.add_column("Test", ratio=5)
    table.add_column("Measured", ratio=5)
    table.add_column("Holds", no_wrap=True)
    for test in result.tests:
        table.add_row(test.says, test.numbers, "[green]yes[/]" if test.holds else "[red]no[/]")
    return table


def verdicts(finished: Iterable[tuple[Experiment, Result]]) -> RenderableType:
    """Return all verdicts in a line each, with the number of tests that hold."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for experiment, result in finished:
        word = verdict(result.tests)
        holding = sum(test.holds for test in result.tests)
        table.add_row(
            experiment.title,
            f"[bold {COLOURS[word]}]{word}[/]",
            f"{holding} of {len(result.tests)} tests hold",
        )
    return table
