"""Figures of `regularisation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustbn.demo.experiments.regularisation import BATCH, Regularisation
from rustbn.demo.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    WITHOUT,
    label_ends,
    new_figure,
    percent_axis,
    tidy,
)
from rustbn.demo.results import interval, seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUP_COLOURS = (SKY, BLUE, PURPLE, "#5e3c99")


def gains(result: Regularisation) -> Figure:
    """Draw the gain of each network over no batch norm, with its interval."""
    dropout, *groups = result.gains
    early = interval(result.stopped_early[0] - result.final[0])
    smallest, gain = result.groups[-1], groups[-1]
    figure = new_figure(
        f"With 20 % wrong labels, statistics of {smallest} images gain {100 * gain.mean:+.1f} "
        f"points, those of the whole batch {100 * groups[0].mean:+.1f}"
        + (": the noise regularises" if result.by_noise else ""),
        "Final test accuracy less that without batch norm: mean of "
        f"{seeds(result.final.shape[-1])} and its 95 % interval. 1024 digits of 8 x 8, "
        "batches of 64 throughout.",
        3.6,
    )
    rows = [
        *(
            (f"Groups of {group}" + (" (whole batch)" if group == BATCH else ""), one, BLUE)
            for group, one in zip(result.groups, groups, strict=True)
        ),
        (f"Dropout {result.dropout:g}, no batch norm", dropout, ORANGE),
        ("Stopped early, no batch norm", early, GREEN),
    ]
    axes = figure.subplots()
    for y, (_, one, colour) in enumerate(rows):
        axes.plot([100 * one.low, 100 * one.high], [y, y], color=colour, linewidth=3, alpha=0.5)
        axes.plot(100 * one.mean, y, "o", color=colour, ms=9)
    axes.axvline(0, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="Gain in test accuracy, points")
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def curves(result: Regularisation) -> Figure:
    """Draw test accuracy along the way."""
    memorised = result.memorised.mean(axis=-1)
    figure = new_figure(
        f"Without batch norm {100 * memorised[0]:.0f} % of the wrong labels are learnt by heart, "
        f"with groups of {result.groups[-1]}: {100 * memorised[-1]:.0f} %",
        f"Mean test accuracy of {seeds(result.final.shape[-1])}; batch norm over groups of 64 to 4 "
        "images. In brackets: the wrong training labels that the network gives in the end.",
        4.2,
    )
    axes = figure.subplots()
    mean = result.test.mean(axis=-1)
    colours = [WITHOUT, ORANGE, *GROUP_COLOURS[: len(result.groups)]]
    names = ["Without", "Dropout", *(f"Batch norm {group}" for group in result.groups)]
    for values, colour in zip(mean, colours, strict=True):
        axes.plot(result.steps, values, color=colour, linewidth=2.2)
    labels = [f"{name} ({100 * m:.0f} %)" for name, m in zip(names, memorised, strict=True)]
    low = mean[:, mean.shape[1] // 2 :].min() - 0.01  # of the first steps, no matter
    label_ends(axes, result.steps[-1], list(mean[:, -1]), labels, colours, (0.97 - low) / 17)
    axes.set(xlim=(0, result.steps[-1]), ylim=(low, 0.97), xlabel="Step", ylabel="Test accuracy")
    percent_axis(axes)
    tidy(axes)
    return figure
