"""Figure of `normalise`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rustbn.demo.experiments.normalise import Normalise
from rustbn.demo.figures.style import BLUE, FAINT, PURPLE, SKY, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("Before batch norm", PURPLE),
    ("Normalised", SKY),
    ("Scaled and shifted", BLUE),
)


def channel(result: Normalise) -> Figure:
    """Draw the distribution of a channel through training, in three stages."""
    figure = new_figure(
        "However a channel moves in training, batch norm centres and scales it; then it learns "
        "its own scale and shift",
        "Values of the channel of a convolution that moves most, on 256 images: median, middle "
        "50 % and middle 90 %. Dashed: 0 and one standard deviation each side. MNIST digits, one "
        "training.",
        4.0,
    )
    panels = figure.subplots(1, 3, sharey=True)
    mean, std = result.before[..., 0]
    moved_most = np.argmax(np.abs(mean[-1] - mean[0]) / std[0])
    stages = result.quantiles[..., moved_most, 0]
    for axes, (title, colour), quantiles in zip(panels, PANELS, stages, strict=True):
        lowest, low, median, high, highest = quantiles
        axes.fill_between(result.steps, lowest, highest, color=colour, alpha=0.22, linewidth=0)
        axes.fill_between(result.steps, low, high, color=colour, alpha=0.4, linewidth=0)
        axes.plot(result.steps, median, color=colour, linewidth=2.2)
        for height in (-1, 0, 1):
            axes.axhline(height, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set(xlim=(0, result.steps[-1]), xlabel="Step")
        tidy(axes, title)
    panels[0].set_ylabel("Value")
    return figure


def parameters(result: Normalise) -> Figure:
    """Draw the learnt scales and shifts of all channels."""
    figure = new_figure(
        "Each channel learns a scale and a shift of its own, away from 1 and 0",
        "Lines: the channels of the second convolution, in one training. MNIST digits.",
        3.4,
    )
    panels = figure.subplots(1, 2)
    names = (("Scale", result.weight, 1), ("Shift", result.bias, 0))
    for axes, (name, values, start) in zip(panels, names, strict=True):
        axes.axhline(start, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot(result.steps, values[..., 0], color=BLUE, linewidth=1.3, alpha=0.7)
        axes.set(xlim=(0, result.steps[-1]), xlabel="Step")
        tidy(axes, name)
    return figure
