"""The bar chart of a report: how far everyone is from the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rustbn.bench.contestant import LIMIT, NUMPY, RUSTBN, RUSTBN_OUT, TORCH, TORCH_OUT
from rustbn.bench.report import Measurement, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito, which colour-blind people tell apart too; they also differ in lightness.
COLOURS = {"rustbn": "#0072B2", "torch": "#E69F00", "numpy": "#999999"}
LABELS = {"rustbn": "rustbn", "torch": "PyTorch", "numpy": "plain NumPy"}
# The dark part of a bar, and the whole of it.
BARS = {"rustbn": (RUSTBN_OUT, RUSTBN), "torch": (TORCH_OUT, TORCH), "numpy": (None, NUMPY)}
LIMITS = {
    "forward": "a copy",
    "eval": "a copy",
    "backward": "an addition",
    "step": "a copy and an addition",
}
TICKS = (0.25, 0.5, 0.7, 1, 2, 5, 10, 20, 50, 100, 200, 500)
INK, MUTED, FAINT = "#222222", "#555555", "#8a8a8a"


def figure(report: Report) -> Figure:
    """Draw a panel for each group, layout, number of threads (columns) and pass (rows)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = list(dict.fromkeys((m.group, m.kind, m.threads) for m in report.measurements))
    passes = list(dict.fromkeys(m.pass_ for m in report.measurements))
    libraries = [
        name
        for name, pair in BARS.items()
        if any(part in m.results for m in report.measurements for part in pair if part)
    ]
    most = max(len(_cell(report, column, passes[0])) for column in columns)
    height = max(1.9, 0.15 * (len(libraries) + 0.8) * most + 0.8)
    drawn = Figure(
        figsize=(5.6 * len(columns) + 0.4, height * len(passes) + 1.3),
        dpi=130,
        layout="constrained",
        facecolor="white",
    )
    panels = drawn.subplots(len(passes), len(columns), squeeze=False)
    for line, pass_ in zip(panels, passes, strict=True):
        reach = _reach([m for m in report.measurements if m.pass_ == pass_])
        for axes, column in zip(line, columns, strict=True):
            _panel(axes, _cell(report, column, pass_), libraries, reach)
            group, kind, threads = column
            count = f"{threads} thread" + "s" * (threads > 1)
            axes.set_title(
                f"{pass_}, {group} {kind}, {count}", loc="left", size=11, weight="bold", color=INK
            )
            axes.set_xlabel(f"time / {LIMITS[pass_]} of the same bytes", size=9, color=MUTED)
    handles = [Patch(color=COLOURS[name], label=LABELS[name]) for name in libraries]
    handles.append(Patch(color=INK, label="into existing memory"))
    handles.append(Patch(facecolor=INK, alpha=0.4, label="with a fresh output"))
    drawn.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    drawn.supxlabel(
        f"{report.machine['cpu']}; the line at 1 is the limit; shorter is faster, log scale",
        x=0.01, ha="left", size=9, color=MUTED,
    )  # fmt: skip
    return drawn


def _cell(report: Report, column: tuple[str, str, int], pass_: str) -> list[Measurement]:
    return [
        m
        for m in report.measurements
        if (m.group, m.kind, m.threads) == column and m.pass_ == pass_
    ]


def _panel(
    axes: Axes, entries: Sequence[Measurement], libraries: Sequence[str], reach: tuple[float, float]
) -> None:
    width = 0.8 / len(libraries)
    for place, library in enumerate(libraries):
        existing, fresh = BARS[library]
        at = np.arange(len(entries)) + (place - (len(libraries) - 1) / 2) * width
        for name, alpha in ((fresh, 0.4), (existing, 1.0)):
            if name is None or not any(name in entry.results for entry in entries):
                continue
            values = [_ratio(entry, name) for entry in entries]
            # From the limit outwards: to the left of it is faster than the limit.
            axes.barh(
                at, np.subtract(values, 1), 0.92 * width, left=1, color=COLOURS[library],
                alpha=alpha, linewidth=0,
            )  # fmt: skip
        for y, entry in zip(at, entries, strict=True):
            shown = [_ratio(entry, name) for name in (existing, fresh) if name in entry.results]
            if shown:
                end = 1.04 * max(1, *shown)
                text = " - ".join(map(_label, shown))
                axes.text(end, y, text, size=6.5, va="center", color=INK, clip_on=True)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(*reach)
    ticks = [tick for tick in TICKS if reach[0] <= tick <= reach[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(entries)), ["x".join(map(str, e.shape)) for e in entries])
    axes.invert_yaxis()
    axes.tick_params(labelsize=9, colors=MUTED, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


def _reach(entries: Sequence[Measurement]) -> tuple[float, float]:
    """Return the least and greatest ratio to show, with room for a label."""
    drawn = {name for pair in BARS.values() for name in pair}
    values = [_ratio(entry, name) for entry in entries for name in entry.results if name in drawn]
    return min(0.95, *(value / 1.1 for value in values)), 1.6 * max(2, *values)


def _ratio(entry: Measurement, name: str) -> float:
    if name not in entry.results:
        return float("nan")
    return entry.results[name].median / entry.results[LIMIT].median


def _label(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
