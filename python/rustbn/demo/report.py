"""The results as tables of rich, one function each."""

import numpy as np
from rich.table import Table

from rustbn.demo.experiments.checks import Checks
from rustbn.demo.experiments.two_rates import TARGET, TwoRates
from rustbn.demo.layers import Array


def two_rates_table(result: TwoRates) -> Table:
    """Return a row a rate and network: steps to the target, and final accuracy."""
    low, _ = result.rates
    fewer, more = result.pairs(low)
    table = Table(
        title=result.headline(),
        caption=f"{len(result.seeds)} seeds of {result.steps} steps each: median (lowest - highest)"
        f" and mean ± standard deviation. At {low:g}, batch norm takes fewer steps with {fewer} "
        f"of the seeds, more with {more}. The rates were chosen on validation images: the best "
        "without batch norm, and the lowest at which the network without it fails.",
    )
    table.add_column("Learning rate", justify="right")
    table.add_column("Network")
    table.add_column(f"Steps to {100 * TARGET:.0f} % test accuracy", justify="right")
    table.add_column("Final test accuracy", justify="right")
    for rate in result.rates:
        for batch_norm, name in ((False, "without batch norm"), (True, "with batch norm")):
            arm = result.arm(rate, batch_norm=batch_norm)
            table.add_row(f"{rate:g}", name, _steps(arm.steps_to_target), _accuracy(arm.final))
        table.add_section()
    return table


def checks_table(result: Checks) -> Table:
    """Return a row a check: what was compared, how it came out, whether that is right."""
    table = Table(title="Batch norm in that training, checked")
    table.add_column("Check")
    table.add_column("Outcome")
    table.add_column("")
    table.add_row(
        "Gradients against finite differences, float64",
        f"off by {result.gradient_error:.0e} of the gradient's norm at most",
        _verdict(result.gradients_right),
    )
    table.add_row(
        "Running statistics against those of all training images",
        f"off by {max(result.mean_error, result.std_error):.2f} standard deviations at most\n"
        f"test accuracy {_percent(result.accuracy)} with them, "
        f"{_percent(result.accuracy_exact)} with exact ones",
        _verdict(result.statistics_right),
    )
    table.add_row(
        "Evaluation of a test image alone against among the others",
        f"same answer for {result.same_alone} of {result.images}",
        _verdict(result.evaluation_right),
    )
    return table


def _steps(steps: Array) -> str:
    def number(value: float) -> str:
        return f"{value:g}" if np.isfinite(value) else "never"

    lowest, median, highest = number(steps.min()), number(np.median(steps)), number(steps.max())
    return median if lowest == highest else f"{median} ({lowest} - {highest})"


def _accuracy(accuracy: Array) -> str:
    if len(accuracy) == 1:
        return _percent(accuracy[0])
    return f"{100 * accuracy.mean():.1f} ± {_percent(accuracy.std(ddof=1))}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f}\N{NO-BREAK SPACE}%"


def _verdict(right: bool) -> str:
    return "[green]right[/]" if right else "[bold red]WRONG[/]"
