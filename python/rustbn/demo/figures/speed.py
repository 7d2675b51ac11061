"""Figures of `speed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustbn.demo.experiments.speed import Speed
from rustbn.demo.figures.style import (
    INK,
    WITH,
    WITHOUT,
    dot_rows,
    label_ends,
    logarithmic,
    new_figure,
    percent_axis,
    tidy,
)
from rustbn.demo.results import seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def steps(result: Speed) -> Figure:
    """Draw the steps and the seconds to 95 %, a dot a training."""
    ratios = [ratio.mean for ratio in result.step_ratio]
    seconds_ratios = [ratio.mean for ratio in result.seconds_ratio]
    figure = new_figure(
        f"To 95 %, batch norm takes {min(ratios):.1f} to {max(ratios):.1f} times fewer steps, and "
        f"{min(seconds_ratios):.1f} to {max(seconds_ratios):.1f} times less time",
        f"Dots: {seeds(result.steps.shape[-1])}; bars: means. Each network at its best learning "
        "rate on validation images; accuracy on test images. A network that never gets there "
        "counts with its limit of steps.",
        1.9 + 0.75 * len(result.names),
    )
    panels = figure.subplots(1, 2, sharey=True)
    labels = [f"{name}, {which}" for name in result.names for which in ("without", "with")]
    colours = [WITHOUT, WITH] * len(result.names)
    for axes, values, name in zip(
        panels, (result.censored, result.seconds), ("Steps", "Seconds"), strict=True
    ):
        dot_rows(axes, labels, list(values.reshape(-1, values.shape[-1])), colours)
        logarithmic(axes)
        axes.set_title(f"{name} to 95 %", loc="left", size=11.5, color=INK, pad=8)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        for boundary in range(2, len(labels), 2):
            axes.axhline(boundary - 0.5, color="#e4e4e4", linewidth=0.8)
    return figure


def lag(result: Speed) -> Figure:
    """Draw the accuracy with running statistics and with exact ones."""
    running, exact = result.lag_accuracy.mean(axis=-1)
    figure = new_figure(
        "In the first steps running statistics lag: the network is better than it shows",
        f"Test accuracy of the {result.names[0]} with batch norm in training; mean of "
        f"{seeds(result.lag_accuracy.shape[-1])}, bands from the lowest to the highest. Exact: the "
        "statistics of all training images under the weights of that step.",
        3.8,
    )
    axes = figure.subplots()
    names = ("Running statistics", "Exact statistics")
    for values, colour in zip(result.lag_accuracy, (WITH, INK), strict=True):
        low, high = values.min(axis=-1), values.max(axis=-1)
        axes.fill_between(result.lag_steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(result.lag_steps, values.mean(axis=-1), "o-", color=colour, linewidth=2, ms=4)
    last = result.lag_steps[-1]
    label_ends(axes, last, [running[-1], exact[-1]], names, (WITH, INK), 0.07)
    axes.set(xlabel="Step", ylabel="Test accuracy", xlim=(0, last), ylim=(0, 1.02))
    percent_axis(axes)
    tidy(axes)
    return figure
