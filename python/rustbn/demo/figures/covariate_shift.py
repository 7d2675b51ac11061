"""Figures of `covariate_shift`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rustbn.demo.experiments.covariate_shift import NOISY, SAME_RATE, WITH, WITHOUT, CovariateShift
from rustbn.demo.figures import style
from rustbn.demo.figures.style import (
    INK,
    PURPLE,
    SKY,
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

COLOURS = {WITHOUT: style.WITHOUT, SAME_RATE: SKY, WITH: style.WITH, NOISY: PURPLE}


def shifts(result: CovariateShift) -> Figure:
    """Draw the drift of layer inputs and the change of gradients, a dot a training."""
    names = ["Without", "Batch norm, same rate", "Batch norm, best rate", "Batch norm and noise"]
    drift, change = result.drift_ratio(WITH).mean, result.change_ratio(WITH).mean
    figure = new_figure(
        f"With batch norm the drift of layer inputs is divided by {1 / drift:.0f}, the change of "
        f"gradients by {1 / change:.1f}",
        f"Dots: {seeds(result.drift.shape[-1])}; bars: means. Left: how far a feature's mean moves "
        "in 5 steps, in standard deviations, before it is normalised. Right: change of a layer's "
        "gradient when the layers below take their step, over its norm.",
        3.5,
    )
    left, right = figure.subplots(1, 2, sharey=True)
    colours = [COLOURS[arm] for arm in range(4)]
    dot_rows(left, names, list(result.drift), colours)
    logarithmic(left)
    left.set_title("Drift of layer inputs", loc="left", size=11.5, color=INK, pad=8)
    dot_rows(right, names, list(result.change), colours)
    right.set_xlim(0, 1.1 * np.nanmax(result.change))
    right.set_title("Change of gradients", loc="left", size=11.5, color=INK, pad=8)
    right.text(0.02, NOISY, "not measured", size=9.5, color=style.MUTED, va="center")
    for axes in (left, right):
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def benefit(result: CovariateShift) -> Figure:
    """Draw the accuracy of training with the drift restored by noise, and without."""
    noisy = result.drift_ratio(NOISY).mean
    figure = new_figure(
        f"With noise that makes inputs drift {noisy:.1f} times as much as without batch norm, "
        f"{100 * result.kept:.0f} % of its benefit stays",
        f"Mean test accuracy of {seeds(result.drift.shape[-1])}, each network at its best learning "
        "rate. Noise: a random scale and shift of each feature after batch norm, new at each step. "
        "Benefit: mean accuracy during training, less that without batch norm.",
        4.0,
    )
    axes = figure.subplots()
    arms = (WITHOUT, NOISY, WITH)
    names = ("Without", "With noise", "Batch norm")
    mean = result.accuracy.mean(axis=-1)
    for arm in arms:
        axes.plot(result.steps, mean[arm], color=COLOURS[arm], linewidth=2.2)
    ends = [mean[arm, -1] for arm in arms]
    label_ends(axes, result.steps[-1], ends, names, [COLOURS[arm] for arm in arms], 0.06)
    axes.set(xlim=(0, result.steps[-1]), ylim=(0.2, 1), xlabel="Step", ylabel="Test accuracy")
    percent_axis(axes)
    tidy(axes)
    return figure
