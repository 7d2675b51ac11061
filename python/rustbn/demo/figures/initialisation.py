"""Figure of `initialisation`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustbn.demo.experiments.initialisation import WORKS, Initialisation
from rustbn.demo.figures.style import INK, new_figure, tidy
from rustbn.demo.results import seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = ("Without", "Set once by a batch", "With batch norm")


def heat_map(result: Initialisation) -> Figure:
    """Draw the final accuracy for each scale, depth, rate and network."""
    total = result.works[0, 0].size
    low, high = result.works.sum(axis=(-1, -2))[:, [0, -1]].T
    figure = new_figure(
        f"Of {total} starts, batch norm trains {low[2]} at rate {result.rates[0]:g} and {high[2]} "
        f"at {result.rates[-1]:g}, without it {low[0]} and {high[0]} train, with weights set once "
        f"{low[1]} and {high[1]}",
        f"Mean final test accuracy in percent, {seeds(result.accuracy.shape[-1])}; bold: at least "
        f"{100 * WORKS:.0f} %, which counts as trained. Starts: depths x factors of He's weights.",
        2.2 + 0.42 * len(result.depths) * 3,
    )
    mean = 100 * result.accuracy.mean(axis=-1)
    panels = figure.subplots(3, len(result.rates), sharex=True, sharey=True, squeeze=False)
    for arm, row in enumerate(panels):
        for r, axes in enumerate(row):
            axes.imshow(mean[arm, r], cmap="cividis", vmin=0, vmax=100, aspect="auto")
            for d in range(len(result.depths)):
                for k in range(len(result.scales)):
                    value = mean[arm, r, d, k]
                    good = result.works[arm, r, d, k]
                    axes.text(
                        k, d, f"{value:.0f}", ha="center", va="center", size=9.5,
                        color="#111111" if value > 55 else "white",
                        weight="bold" if good else "normal",
                    )  # fmt: skip
            axes.set_yticks(range(len(result.depths)), [f"{depth}" for depth in result.depths])
            axes.set_xticks(range(len(result.scales)), [f"{scale:g}" for scale in result.scales])
            tidy(axes, TITLES[arm] + (f", rate {result.rates[r]:g}"))
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.tick_params(length=0, labelcolor=INK)
        row[0].set_ylabel("Layers")
    for axes in panels[-1]:
        axes.set_xlabel("Factor of the weights")
    return figure
