"""Figures of `stability`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rustbn.demo.experiments.stability import Stability
from rustbn.demo.figures.style import (
    FAINT,
    INK,
    MUTED,
    WITH,
    WITHOUT,
    new_figure,
    tidy,
)
from rustbn.demo.results import seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rates(result: Stability) -> Figure:
    """Draw at which learning rates each network trains."""
    counts = result.works.sum(axis=-1)
    figure = new_figure(
        f"With batch norm {_range(counts[1])} of {len(result.rates)} learning rates work, "
        f"without it {_range(counts[0])}",
        "Filled: at least 90 % test accuracy in the end with each of "
        f"{seeds(result.accuracy.shape[-1])}. Number: the lowest of them, in percent. Dense "
        "networks, 8 x 8 digits.",
        1.9 + 0.85 * len(result.depths),
    )
    axes = figure.subplots()
    labels, heights = [], []
    for d, depth in enumerate(result.depths):
        for arm, (name, colour) in enumerate((("without", WITHOUT), ("with", WITH))):
            y = 2.6 * d + arm
            labels.append(f"{depth} layers, {name}")
            heights.append(y)
            works, lowest = result.works[arm, d], result.accuracy[arm, d].min(axis=-1)
            x = np.where(works, result.rates, np.nan)
            axes.plot(x, np.full(len(x), y), color=colour, linewidth=9, alpha=0.3, zorder=1)
            for rate, good, accuracy in zip(result.rates, works, lowest, strict=True):
                axes.plot(
                    rate, y, "o", ms=21, mec=colour if good else FAINT, mew=1.2,
                    mfc=colour if good else "white", zorder=2,
                )  # fmt: skip
                axes.text(
                    rate, y, f"{100 * accuracy:.0f}", ha="center", va="center", size=9.5,
                    color="white" if good else MUTED, weight="bold" if good else "normal",
                )  # fmt: skip
    axes.set(xscale="log", xlabel="Learning rate", ylim=(max(heights) + 0.7, -0.7))
    axes.set_xlim(min(result.rates) / 1.7, max(result.rates) * 1.7)
    axes.set_xticks(result.rates, [f"{rate:g}" for rate in result.rates])
    axes.set_yticks(heights, labels)
    axes.minorticks_off()
    tidy(axes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    return figure


def gradients(result: Stability) -> Figure:
    """Draw the norm of the gradient at each layer at the start."""
    where = result.scales.index(1.0)
    layers = result.gradients.shape[2]
    figure = new_figure(
        "At the start batch norm's gradients do not depend on the weights' scale, but grow "
        f"{result.growth[1, where]:.2f}-fold per layer on the way down",
        f"Norm of the loss's gradient in each layer's ReLU input before training, {layers} hidden "
        f"layers, mean of {seeds(result.gradients.shape[-1])}. Scale 1: He's weights. "
        "Dashed: growth of 1.21 per layer, from theory (Yang et al. 2019).",
        4.2,
    )
    panels = figure.subplots(1, 2, sharey=True)
    norms = np.exp(np.log(result.gradients).mean(axis=-1))
    depth = np.arange(1, layers + 1)
    scales = ", ".join(f"{scale:g}" for scale in result.scales)
    names = (("Without batch norm", WITHOUT), ("With batch norm", WITH))
    for arm, (axes, (title, colour)) in enumerate(zip(panels, names, strict=True)):
        alike = result.scale_ratio[arm] < 1.1  # on a scale of decades: one line
        for scale, norm in zip(result.scales, norms[arm], strict=True):
            axes.plot(depth, norm, color=colour, linewidth=2.2)
            if scale == 1 or not alike:
                label = f"weights x {scales}, alike" if alike else f"weights x {scale:g}"
                axes.annotate(
                    label, (depth[layers // 4], norm[layers // 4]),
                    xytext=(4, 7 if norm[0] >= norm[-1] else -15),
                    textcoords="offset points", color=colour, size=10,
                )  # fmt: skip
        axes.set(yscale="log", xlabel="Layer, from the images up", xlim=(1, layers))
        axes.set_xticks([1, *range(5, layers + 1, 5)])
        tidy(axes, title)
    theory = norms[1, where, -1] * np.sqrt(np.pi / (np.pi - 1)) ** (layers - depth)
    panels[1].plot(depth, theory, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    panels[0].set_ylabel("Norm of the gradient")
    return figure


def _range(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"
