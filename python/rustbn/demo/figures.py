"""Figures, one function each. They return a figure of Matplotlib, for a notebook or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rustbn.demo.experiments.two_rates import FAILED, TARGET, Arm, TwoRates
from rustbn.demo.requirements import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito, which colour-blind people tell apart too.
BLUE, VERMILION = "#0072B2", "#D55E00"
INK, MUTED, FAINT = "#222222", "#555555", "#8a8a8a"


def two_rates_figure(result: TwoRates) -> Figure:
    """Draw test accuracy against steps, a panel a rate, with and without batch norm."""
    require("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    low, high = result.rates
    titles = {
        low: f"Learning rate {low:g}: best without batch norm",
        high: f"Learning rate {high:g}: {high / low:.3g} times higher",
    }
    layout = ConstrainedLayoutEngine(rect=(0, 0.11, 1, 0.89))  # below it: the text at the foot
    figure = Figure(figsize=(10, 5.2), dpi=150, layout=layout, facecolor="white")
    figure.suptitle(result.headline(), x=0.01, ha="left", size=15, weight="bold", color=INK)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, rate in zip(panels, result.rates, strict=True):
        _accuracy_panel(axes, result, rate)
        axes.set_title(titles[rate], loc="left", size=12, color=INK, pad=10)
    panels[0].set_ylabel("Test accuracy", size=11, color=INK)
    figure.text(
        0.01, 0.015,
        f"Lines: median of {len(result.seeds)} seeds; bands: lowest to highest; dots: the median "
        "step that first reaches 95 %. A small convolutional network learns\n"
        "8 x 8 digits by SGD with momentum 0.9 in batches of 64. "
        "Both networks start from the same weights and see the same batches.",
        size=9, color=MUTED, va="bottom",
    )  # fmt: skip
    return figure


def _accuracy_panel(axes: Axes, result: TwoRates, rate: float) -> None:
    axes.axhline(TARGET, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    # The arm that is there first has the lower label, so no line to a dot crosses a label.
    arms = sorted((result.arm(rate, batch_norm=on) for on in (False, True)), key=_median_steps)
    for arm, height in zip(arms, (0.4, 0.64), strict=True):
        colour, name = (BLUE, "With batch norm") if arm.batch_norm else (VERMILION, "Without")
        steps = arm.curves[0].steps
        accuracy = np.array([curve.accuracy for curve in arm.curves])
        lowest, median, highest = np.quantile(accuracy, (0, 0.5, 1), axis=0)
        axes.fill_between(steps, lowest, highest, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, median, color=colour, linewidth=2.2)

        reached = _median_steps(arm)
        x = min(reached, 0.5 * result.steps)
        if np.isfinite(reached):
            label = f"{name}:\n95 % after {reached:g} steps"
            axes.plot([reached, reached], [height, TARGET], color=colour, linewidth=0.9)
            axes.plot(reached, TARGET, "o", color=colour, markersize=8, mec="white", zorder=3)
        else:
            label = f"{name}:\nnever 95 %"
            height = median[-1] + 0.11 if median[-1] < FAILED else 0.4
        axes.text(
            x + 0.02 * result.steps, height, label,
            size=11.5, weight="bold", color=colour, va="center", linespacing=1.3,
        )  # fmt: skip

    axes.set(xlim=(0, result.steps), ylim=(0, 1.03), xlabel="Steps")
    axes.set_yticks([0, 0.25, 0.5, 0.75, TARGET], ["0 %", "25 %", "50 %", "75 %", "95 %"])
    axes.xaxis.label.set(size=11, color=INK)
    axes.tick_params(labelsize=10, colors=MUTED, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _median_steps(arm: Arm) -> float:
    return float(np.median(arm.steps_to_target))
