"""The tables of a report, as text or Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from rustbn.bench import fused, masked
from rustbn.bench.contestant import (
    FLOAT32,
    FLOAT32_OUT,
    LIMIT,
    LIMIT_FRESH,
    NAMES,
    NUMPY,
    RUSTBN,
    RUSTBN_OUT,
    TORCH,
)
from rustbn.bench.limits import LARGE
from rustbn.bench.report import CallMeasurement, Measurement, NetworkMeasurement, Report
from rustbn.bench.shapes import DTYPES

EXPLANATION = (
    "Columns named after contestants: time divided by that of `limit out=`, which is np.copyto for "
    "forward and eval, np.add(x, dy, out=dx) for backward, both for step. `out=` writes to "
    "existing memory; without it, the output is fresh, as a user calls it. `streaming` is the "
    "limit with streaming stores. `torch / rustbn` and `numpy / rustbn` compare the calls with "
    "fresh outputs. `float32` is rustbn on the same values as float32 arrays, beside those of 16 "
    "bits, where the limit of backward adds integers. Medians of runs in turns; one thread: "
    "processor time, several: wall clock."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is aligned left, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Return the table for a terminal."""
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first, *rest = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join([first, *rest]).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, line(self.columns), rule, *map(line, self.rows)])

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows))
        return "\n".join([f"**{self.title}**", "", *lines])


def tables(report: Report, brief: bool = False) -> list[Table]:
    """Return all tables: the summary first, the details by group, layout, threads and pass.

    `brief` leaves out the details: of each group only what all its shapes come to.
    """

    def key(entry: Measurement) -> tuple[str, str, int, str]:
        return entry.group, entry.kind, entry.threads, entry.pass_

    # A stable sort keeps groups, layouts and passes in the order in which they were asked for.
    order = {k: i for i, k in enumerate(dict.fromkeys(map(key, report.measurements)))}
    ordered = sorted(report.measurements, key=lambda entry: order[key(entry)])
    parts = [list(part) for _, part in groupby(ordered, key)]
    found = [_summary(parts)] if parts and (brief or len(parts) > 1) else []
    if not brief:
        found += [_details(part) for part in parts]
        found += [_growth(part) for part in parts if part[0].group == "sizes"]
        found += [_scaling(part) for part in _by_threads(report.measurements)]
    if report.networks:
        found.append(_networks(report.networks))
    if report.calls:
        found.append(_calls(report.calls, "calls on (32, 64)"))
    if report.fused:
        found.append(_calls(report.fused, f"residual and ReLU, float32 {fused.CASE.shape}"))
    if report.masked:
        found.append(_masked(report.masked))
    return found


def text(report: Report, brief: bool = False) -> str:
    """Return the tables and what they were measured on, for a terminal."""
    facts = [f"{name}: {value}" for name, value in _facts(report)]
    body = [table.text() for table in tables(report, brief)]
    return "\n\n".join(["\n".join(facts), *body, EXPLANATION.replace("`", "")])


def markdown(report: Report, brief: bool = False) -> str:
    """Return the same in Markdown."""
    facts = "\n".join(f"- {name}: {value}" for name, value in _facts(report))
    body = [table.markdown() for table in tables(report, brief)]
    return "\n\n".join([facts, EXPLANATION, *body]) + "\n"


def ratios(entries: Iterable[Measurement], over: str, under: str) -> list[float]:
    """Return time of `over` divided by that of `under`, for the entries that have both."""
    return [
        entry.results[over].median / entry.results[under].median
        for entry in entries
        if over in entry.results and under in entry.results
    ]


def total_ratio(entries: Iterable[Measurement], over: str, under: str) -> float:
    """Return the same for sums over all layers."""
    both = [e for e in entries if over in e.results and under in e.results]
    total = {name: sum(e.count * e.results[name].median for e in both) for name in (over, under)}
    return total[over] / total[under] if both else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean, NaN of nothing."""
    return float(np.exp(np.mean(np.log(values)))) if values else math.nan


def _facts(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    facts = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {caches or 'caches unknown'}"),
        ("system", machine["system"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
        ("samples", f"{report.arguments['repeats']} a contestant"),
    ]
    if report.core_rates:
        least, most = min(report.core_rates), max(report.core_rates)
        facts.append(("core", f"{least:.2f} to {most:.2f} float64 square roots a nanosecond"))
    if report.skipped:
        facts.append(("not installed", ", ".join(report.skipped)))
    return facts


def _details(part: Sequence[Measurement]) -> Table:
    first = part[0]
    names = [n for n in NAMES if n != LIMIT and any(n in entry.results for entry in part)]
    halved = (RUSTBN_OUT, FLOAT32_OUT) if FLOAT32_OUT in names else (RUSTBN, FLOAT32)
    speedups = [halved] if FLOAT32 in names else []
    speedups += [(peer, RUSTBN) for peer in (TORCH, NUMPY) if peer in names]
    several = any(entry.count > 1 for entry in part)

    def row(name: str, count: str, time: float, cells: Iterable[float]) -> tuple[str, ...]:
        return (name, *([count] * several), _time(time), *map(_ratio, cells))

    def per_entry(entry: Measurement) -> tuple[str, ...]:
        limit = entry.results[LIMIT].median
        cells = [total_ratio([entry], name, LIMIT) for name in names]
        cells += [total_ratio([entry], *pair) for pair in speedups]
        return row("x".join(map(str, entry.shape)), str(entry.count), limit, cells)

    pairs = [(name, LIMIT) for name in names] + speedups
    rows = [per_entry(entry) for entry in part]
    if several:
        layers = sum(entry.count for entry in part)
        total = sum(entry.count * entry.results[LIMIT].median for entry in part)
        cells = [total_ratio(part, *pair) for pair in pairs]
        rows.append(row("all layers", str(layers), total, cells))
    if len(part) > 1:
        means = [geometric_mean(ratios(part, *pair)) for pair in pairs]
        rows.append(row("geometric mean", "", math.nan, means))
    columns = ("shape", *(["layers"] * several), LIMIT, *names)
    columns += tuple(f"{over} / {under}" for over, under in speedups)
    return Table(_title(first), columns, tuple(rows))


def _growth(part: Sequence[Measurement]) -> Table:
    """Show time per element: flat where it grows as the size does."""
    names = [n for n in (LIMIT, RUSTBN_OUT, RUSTBN) if all(n in e.results for e in part)]
    rows = []
    for entry in part:
        size = math.prod(entry.shape)
        cells = [f"{1e9 * entry.results[name].median / size:.3f}" for name in names]
        rows.append(("x".join(map(str, entry.shape)), str(size), *cells))
    title = f"ns per element: {_title(part[0])}"
    return Table(title, ("shape", "elements", *names), tuple(rows))


def _summary(parts: Sequence[Sequence[Measurement]]) -> Table:
    pairs = [
        (RUSTBN_OUT, LIMIT),
        (RUSTBN, LIMIT),
        (RUSTBN_OUT, FLOAT32_OUT),
        (RUSTBN, FLOAT32),
        (TORCH, RUSTBN),
        (NUMPY, RUSTBN),
    ]
    measured = [p for p in pairs if any(ratios(part, *p) for part in parts)]
    columns = ["what"]
    for over, under in measured:
        worst = "least" if under == RUSTBN else "most"
        columns += [f"{over} / {under}", "mean", worst]
    rows = []
    for part in parts:
        cells = [_title(part[0])]
        for over, under in measured:
            found = ratios(part, over, under)
            extreme = (min if under == RUSTBN else max)(found, default=math.nan)
            mean = geometric_mean(found)
            cells += map(_ratio, (total_ratio(part, over, under), mean, extreme))
        rows.append(tuple(cells))
    title = "summary: of the sums over all layers, geometric mean, and worst of a shape"
    return Table(title, tuple(columns), tuple(rows))


def _by_threads(measurements: Sequence[Measurement]) -> list[list[list[Measurement]]]:
    """Group large arrays' entries that differ in threads alone, then by group, layout and pass."""
    same: dict[tuple[str, str, str], dict[tuple[int, ...], list[Measurement]]] = {}
    for entry in measurements:
        if DTYPES[entry.dtype] * math.prod(entry.shape) < LARGE:
            continue
        part = same.setdefault((entry.group, entry.kind, entry.pass_), {})
        part.setdefault(entry.shape, []).append(entry)
    return [
        list(part.values())
        for part in same.values()
        if part and all(len(entries) > 1 for entries in part.values())
    ]


def _scaling(part: Sequence[Sequence[Measurement]]) -> Table:
    """Compare the gain of more threads with what a copy gains from them."""
    one, *more = (entry.threads for entry in part[0])
    columns = ["shape"]
    for threads in more:
        columns += [f"{LIMIT} {threads}/{one}", f"{RUSTBN} {threads}/{one}", "quotient"]
    rows = []
    for entries in part:
        cells = ["x".join(map(str, entries[0].shape))]
        for entry in entries[1:]:
            name = RUSTBN_OUT if RUSTBN_OUT in entry.results else RUSTBN
            base = LIMIT if name == RUSTBN_OUT else LIMIT_FRESH
            gains = [
                entries[0].results[who].median / entry.results[who].median for who in (base, name)
            ]
            cells += map(_ratio, (*gains, gains[1] / gains[0]))
        rows.append(tuple(cells))
    first = part[0][0]
    title = f"gain of threads, of arrays past 4 MiB: {first.group} {first.kind} {first.pass_}"
    return Table(title, tuple(columns), tuple(rows))


def _networks(networks: Sequence[NetworkMeasurement]) -> Table:
    names = [n for n in NAMES if n != LIMIT and any(n in entry.results for entry in networks)]
    pairs = [(RUSTBN, FLOAT32), (TORCH, RUSTBN)]
    compared = [pair for pair in pairs if any(set(pair) <= set(e.results) for e in networks)]
    rows = []
    for entry in networks:
        median = dict.fromkeys(NAMES, math.nan)
        median |= {name: quartiles.median for name, quartiles in entry.results.items()}
        cells = [f"{entry.group} {entry.kind}, {_threads(entry.threads)}", str(entry.layers)]
        cells.append(_time(median[LIMIT]))
        cells += (_ratio(median[name] / median[LIMIT]) for name in names)
        cells += (_ratio(median[over] / median[under]) for over, under in compared)
        rows.append(tuple(cells))
    columns = ("network", "layers", LIMIT, *names)
    columns += tuple(f"{over} / {under}" for over, under in compared)
    return Table(
        "a training step of all layers, as a user calls it, from the second on",
        columns,
        tuple(rows),
    )


def _calls(calls: Sequence[CallMeasurement], what: str) -> Table:
    rows = []
    for entry in calls:
        reference = entry.results.get(entry.reference)
        for name, result in entry.results.items():
            ratio = result.median / reference.median if reference else math.nan
            rows.append((f"{entry.title}: {name}", _call_time(result.median), _ratio(ratio)))
    title = f"{what}; ratio to the first of each kind"
    return Table(title, ("call", "time", "ratio"), tuple(rows))


def _masked(calls: Sequence[CallMeasurement]) -> Table:
    rows = []
    for entry in calls:
        whole = entry.results[masked.UNMASKED].median
        ratios_ = (entry.results[name].median / whole for name in (masked.HALF, masked.PADDING))
        rows.append((entry.title, _call_time(whole), *map(_ratio, ratios_)))
    title = "masks and padding, float32, out=; time divided by that of the unmasked call"
    return Table(title, ("call", *masked.NAMES), tuple(rows))


def _call_time(seconds: float) -> str:
    return f"{1e9 * seconds:.0f} ns" if seconds < 1e-4 else _time(seconds)


def _title(entry: Measurement) -> str:
    return f"{entry.group} {entry.kind} {entry.pass_}, {_threads(entry.threads)}"


def _threads(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    unit, scale = ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{scale * seconds:.3g} {unit}" if scale * seconds < 1000 else f"{1e3 * seconds:.0f} ms"


def _ratio(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
