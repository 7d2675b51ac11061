"""What the figures share: size, colours, and rows of dots."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rustbn.demo.layers import Array
from rustbn.demo.requirements import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito, which colour-blind people tell apart too.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
)
WITH, WITHOUT = BLUE, VERMILION
INK, MUTED, FAINT = "#222222", "#555555", "#9a9a9a"
WIDTH = 6.0
"""Inches, so few that the text can be read on a telephone."""


def new_figure(title: str, note: str, height: float) -> Figure:
    """Return a figure with its message above and how it was measured below."""
    require("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    message = textwrap.fill(title, 53)
    text = textwrap.fill(note, 92)
    head = (0.25 * (message.count("\n") + 1) + 0.12) / height
    foot = (0.17 * (text.count("\n") + 1) + 0.1) / height
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot - head), h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout=layout, facecolor="white")
    top = 1 - 0.06 / height
    figure.text(0.012, top, message, size=13, weight="bold", color=INK, va="top", linespacing=1.2)
    figure.text(0.012, 0.05 / height, text, size=8.5, color=MUTED, va="bottom", linespacing=1.25)
    return figure


def tidy(axes: Axes, title: str = "") -> None:
    """Take away what is not needed, and mute what is."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=10, colors=MUTED, length=3)
    axes.xaxis.label.set(size=10.5, color=INK)
    axes.yaxis.label.set(size=10.5, color=INK)
    if title:
        axes.set_title(title, loc="left", size=11.5, color=INK, pad=8)


def dot_rows(
    axes: Axes, names: Sequence[str], values: Sequence[Array], colours: Sequence[str]
) -> None:
    """Draw a row for each name: a small dot for each seed and a bar at the mean."""
    for row, (value, colour) in enumerate(zip(values, colours, strict=True)):
        axes.plot(value, np.full(len(value), row), "o", color=colour, alpha=0.45, ms=6, mew=0)
        axes.plot([np.mean(value)] * 2, [row - 0.28, row + 0.28], color=colour, linewidth=2.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    tidy(axes)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


def label_ends(
    axes: Axes, x: float, values: Sequence[float], names: Sequence[str], colours: Sequence[str],
    gap: float,
) -> None:  # fmt: skip
    """Write each line's name at its end, at least `gap` apart."""
    order = np.argsort(values)
    heights = np.array(values, float)[order]
    for _ in range(100):
        for i in range(len(heights) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for height, i in zip(heights, order, strict=True):
        axes.annotate(
            names[i], (x, height), xytext=(6, 0), textcoords="offset points",
            color=colours[i], size=10.5, weight="bold", va="center", annotation_clip=False,
        )  # fmt: skip


def logarithmic(axes: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers at 1 and, where they fit, 2 and 5."""
    axes.set_xscale("log")

    def minor(value: float, _: float) -> str:
        low, high = axes.get_xlim()
        return f"{value:g}" if f"{value:e}"[0] in "25" and high < 100 * low else ""

    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(minor)
    axes.tick_params(axis="x", which="both", labelsize=10, labelcolor=MUTED, length=3, pad=4)


def percent_axis(axes: Axes) -> None:
    """Label the y axis in percent."""
    require("matplotlib")
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
