"""The benchmarks: that they run, check what they time, and report it. No test asserts a time."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rustbn
from conftest import RunPython
from rustbn.bench import (
    Plan,
    calls,
    cases,
    cli,
    fused,
    limits,
    masked,
    measure,
    network,
    ours,
    run,
    streaming,
)
from rustbn.bench.contestant import (
    FLOAT32,
    FLOAT32_OUT,
    LIMIT,
    LIMIT_FRESH,
    NUMPY,
    PASSES,
    RUSTBN,
    RUSTBN_IN_PLACE,
    RUSTBN_OUT,
    TORCH,
    TORCH_OUT,
    Contestant,
)
from rustbn.bench.problem import Answers, Array, Problem, WrongResultError, flat
from rustbn.bench.report import CallMeasurement, Measurement, NetworkMeasurement, Report
from rustbn.bench.shapes import Case, groups, shapes
from rustbn.bench.tables import Table, geometric_mean, markdown, tables, text, total_ratio
from rustbn.bench.timing import Clock, Quartiles, clock_for, interleave, timer

ROOT = Path(__file__).parent.parent

TINY = [
    Case("tiny", (4, 3), 1, "nchw"),
    Case("tiny", (4, 3, 5), 1, "nhwc"),
    Case("tiny", (2, 3, 4, 5), 2, "nchw"),
    Case("tiny", (2, 3, 4, 5), 2, "nhwc"),
    Case("tiny", (2, 3, 2, 2, 2), 1, "nhwc"),
    Case("tiny", (2, 3, 4, 5), 1, "nhwc", "float64"),
    Case("tiny", (4, 3), 1, "nchw", "bfloat16"),
    Case("tiny", (2, 3, 4, 5), 2, "nhwc", "float16"),
    Case("tiny", (2, 3, 4, 5), 2, "nchw", "bfloat16"),
]


def plan(some: list[Case] | None = None, **changes: Any) -> Plan:
    start = Plan(TINY[2:4] if some is None else some, repeats=2, sample_seconds=0)
    return dataclasses.replace(start, **changes)


# --- shapes and problems -------------------------------------------------------------------------


def test_shapes_are_those_of_the_network() -> None:
    named = shapes()
    assert sum(count for _, count in named["resnet50"]) == 53
    assert named["resnet50"][0] == ((32, 64, 112, 112), 1)
    assert {"small_topologies", "odd", "dense", "sizes"} < set(named)
    assert all(len(shape) >= 2 and count > 0 for part in named.values() for shape, count in part)


def test_cases_leave_out_layouts_that_are_the_same_memory() -> None:
    found = cases(["odd"], ["nchw", "nhwc"])
    assert [case.layout for case in found if case.shape == (2, 23)] == ["nchw"]
    assert [case.layout for case in found if len(case.shape) == 4] == ["nchw"] * 2 + ["nhwc"] * 2


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.name} {case.kind}")
def test_problem_has_the_layout(case: Case) -> None:
    problem = Problem.make(case)
    for array in (problem.x, problem.dy, problem.out):
        assert array.shape == case.shape
        moved = array if case.layout == "nchw" else np.moveaxis(array, 1, -1)
        assert moved.flags.c_contiguous
        assert np.shares_memory(flat(array), array)
        assert array.dtype.name == case.dtype
        assert array.itemsize == case.itemsize


def test_answers_are_those_of_the_oracle() -> None:
    import oracle

    problem = Problem.make(TINY[3])
    answers = Answers.of(problem)
    forward = oracle.train(problem.x, problem.weight, problem.bias)
    backward = oracle.train_backward(problem.dy, problem.x, problem.weight)
    np.testing.assert_allclose(answers.y, forward.y, rtol=1e-6, atol=1e-6)
    for name in ("dx", "dweight", "dbias"):
        np.testing.assert_allclose(
            getattr(answers, name), getattr(backward, name), rtol=1e-6, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("case", TINY[-3:], ids=lambda case: f"{case.name} {case.kind}")
def test_problem_of_16_bits_widened_has_the_same_answers(case: Case) -> None:
    problem = Problem.make(case)
    wide = problem.widened
    assert wide.case == dataclasses.replace(case, dtype="float32")
    for name in ("x", "dy"):
        np.testing.assert_array_equal(getattr(wide, name), getattr(problem, name))
        assert getattr(wide, name).strides == tuple(2 * n for n in getattr(problem, name).strides)
    answers = Answers.of(problem)
    for field in ("y", "y_eval", "dx", "dweight", "dbias"):
        np.testing.assert_array_equal(getattr(Answers.of(wide), field), getattr(answers, field))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_results_of_16_bits_are_the_answers_rounded_once(dtype: Any) -> None:
    answers = Answers.of(Problem.make(TINY[2]))
    rounded = answers.y.astype(dtype)
    answers.check("forward", {"y": rounded}, 1e-7)
    largest = np.unravel_index(abs(answers.y).argmax(), rounded.shape)
    for there in (largest, (1, 2, 3, 4)):
        wrong = rounded.copy()
        wrong[there] *= dtype(1 + 2 * float(ml_dtypes.finfo(dtype).eps))
        with pytest.raises(WrongResultError, match="y is off"):
            answers.check("forward", {"y": wrong}, 1e-7)


def test_answers_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.make(Case("", (7, 3, 4), 1, "nchw"))
    whole = Answers.of(problem)
    monkeypatch.setattr("rustbn.bench.problem.BLOCK", 24)
    parts = Answers.of(problem)
    for name in ("y", "y_eval", "dx", "dweight", "dbias"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6, err_msg=name
        )
    with pytest.raises(WrongResultError, match="y is off"):
        parts.check("forward", {"y": whole.y + 0.1 * (np.arange(7) == 6)[:, None, None]}, 1e-5)


# --- contestants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.name} {case.kind}")
def test_contestants_are_right(case: Case, pass_: str) -> None:
    problem = Problem.make(case)
    answers = Answers.of(problem)
    with limits.team(2) as team:
        entered = run.contestants(problem, pass_, ["torch", "numpy"], team)
        for contestant in entered:
            for _ in range(2):
                run.check_contestant(contestant, problem, pass_, answers)
    names = {contestant.name for contestant in entered}
    assert names >= {LIMIT, LIMIT_FRESH, RUSTBN, TORCH}
    assert (NUMPY in names) == (case.itemsize > 2)
    assert (FLOAT32 in names) == (case.itemsize == 2)
    assert (FLOAT32_OUT in names) == (case.itemsize == 2 and pass_ != "step")
    assert (RUSTBN_OUT in names) == (pass_ != "step")
    assert (RUSTBN_IN_PLACE in names) == (pass_ == "eval")
    # PyTorch takes an output of 3 dimensions for one whose channels are not last.
    assert (TORCH_OUT in names) == (pass_ != "step" and case.name != "4x3x5")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: y + 1e-3, "y is off by 0.001"),
        (lambda y: np.where(y == y.max(), np.nan, y), "y is off by nan"),
        (lambda y: y[:1], r"y has shape \(1, 3, 4, 5\), not \(2, 3, 4, 5\)"),
        (lambda y: None, "y has shape None"),
    ],
)
def test_wrong_contestant_is_caught(wrong: Callable[[Array], Any], message: str) -> None:
    problem = Problem.make(TINY[2])
    answers = Answers.of(problem)
    right = Contestant("right", lambda: answers.y, lambda y: {"y": y})
    run.check_contestant(right, problem, "forward", answers)
    contestant = Contestant("someone", lambda: answers.y, lambda y: {"y": wrong(y)})
    with pytest.raises(WrongResultError, match=f"someone, forward of 2x3x4x5 nchw: {message}"):
        run.check_contestant(contestant, problem, "forward", answers)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("start", range(0, 17, 3))
def test_streaming_loops_are_right(size: int, start: int, rng: np.random.Generator) -> None:
    if streaming.loops() is None:
        pytest.skip("no streaming stores here")
    x, y = rng.standard_normal((2, size), np.float32)
    memory = np.full(size + 40, 7, np.float32)
    out = memory[start : start + size]
    streaming.streaming_copy(x, out)
    np.testing.assert_array_equal(out, x)
    streaming.streaming_add(x, y, out)
    np.testing.assert_array_equal(out, x + y)
    np.testing.assert_array_equal(np.delete(memory, slice(start, start + size)), 7)


@pytest.mark.parametrize("case", [TINY[3], *TINY[-4:]], ids=lambda case: case.kind)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_limits_move_everything(threads: int, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGE", 0)
    problem = Problem.make(case)
    x, dy, out = (flat(array) for array in (problem.x, problem.dy, problem.out))
    if case.itemsize == 2:  # the bytes, whatever they mean
        x, dy, out = (array.view(np.uint16) for array in (x, dy, out))
    expected = {"forward": x, "backward": x + dy}
    with limits.team(threads) as team:
        for pass_, moved in expected.items():
            for contestant in limits.limits(problem, pass_, team):
                out[...] = 0
                returned = contestant.call()
                result = returned if contestant.name == LIMIT_FRESH else out
                np.testing.assert_array_equal(result, moved, err_msg=contestant.name)


# --- timing --------------------------------------------------------------------------------------


def test_contestants_take_turns() -> None:
    seen: list[tuple[str, int]] = []

    def made_up(name: str, cost: float) -> Callable[[int], float]:
        def run_(number: int) -> float:
            seen.append((name, number))
            return number * cost

        return run_

    rounds: list[int] = []
    results = interleave(
        {"a": made_up("a", 1.0), "b": made_up("b", 0.125)}, 4, 1.0, lambda: rounds.append(1)
    )
    assert len(rounds) == 4
    turns = seen[-8:]
    assert [{name for name, _ in turns[i : i + 2]} for i in range(0, 8, 2)] == [{"a", "b"}] * 4
    assert results["a"] == Quartiles(1.0, 1.0, 1.0, 4, 1)
    assert results["b"] == Quartiles(0.125, 0.125, 0.125, 4, 8)


def test_timer_counts_calls() -> None:
    ticks = iter(range(100))
    count = []
    seconds = timer(lambda: count.append(1), Clock("ticks", lambda: float(next(ticks))))(7)
    assert (len(count), seconds) == (7, 1.0)
    assert clock_for(1).name == "processor time"
    assert clock_for(2).name == "wall clock"


# --- runs and reports ----------------------------------------------------------------------------


def test_run_measures_all_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "CASES", TINY[2:4])
    units: list[int] = []
    wanted = plan(passes=run.ALL_PASSES, threads=(1, 2), peers=("numpy",))
    before = rustbn.get_num_threads()
    report = measure(wanted, lambda n, what: units.append(n))
    assert rustbn.get_num_threads() == before
    assert sum(units) == wanted.work
    assert [(m.layout, m.threads, m.pass_) for m in report.measurements] == [
        (layout, threads, pass_)
        for layout in ("nchw", "nhwc")
        for threads in (1, 2)
        for pass_ in PASSES
    ]
    assert [(n.layers, n.layout, n.threads) for n in report.networks] == [
        (2, layout, threads) for layout in ("nchw", "nhwc") for threads in (1, 2)
    ]
    assert [c.title for c in report.calls] == [c.title for c in calls.COMPARISONS]
    assert len(report.masked) == 8  # shapes, numbers of threads, forward and backward
    quartiles = report.measurements[0].results[RUSTBN]
    assert 0 < quartiles.low <= quartiles.median <= quartiles.high
    assert quartiles.samples == 2


def test_dtypes_are_measured_beside_float32() -> None:
    wanted = plan(TINY[-3:], passes=("forward", "step", "network"))
    report = measure(wanted)
    assert [(m.dtype, m.pass_) for m in report.measurements] == [
        (dtype, pass_)
        for dtype in ("bfloat16", "float16", "bfloat16")
        for pass_ in ("forward", "step")
    ]
    assert all(FLOAT32 in m.results for m in report.measurements)
    assert all(FLOAT32 in n.results for n in report.networks)
    assert [(n.kind, n.layers) for n in report.networks] == [
        ("nhwc float16", 2), ("nchw bfloat16", 2),
    ]  # fmt: skip
    assert report.arguments["dtypes"] == ["bfloat16", "float16"]
    printed = text(report)
    assert "tiny nhwc float16 forward, 1 thread" in printed
    assert f"{RUSTBN_OUT} / {FLOAT32_OUT}" in printed
    assert f"{RUSTBN} / {FLOAT32}" in printed
    assert {m["dtype"] for m in json.loads(report.json())["measurements"]} == {
        "bfloat16", "float16",
    }  # fmt: skip


def test_json_has_everything() -> None:
    report = json.loads(measure(plan(TINY[:1], passes=("forward", "calls"))).json())
    assert report["schema"] == 1
    assert set(report) == {
        "schema", "machine", "versions", "arguments", "skipped",
        "measurements", "networks", "calls", "fused", "masked", "core_rates",
    }  # fmt: skip
    # Before anything, after each case and after all.
    assert len(report["core_rates"]) == 3
    assert min(report["core_rates"]) > 0
    assert {"cpu", "cores", "caches", "system"} == set(report["machine"])
    assert report["versions"]["rustbn"] == rustbn.__version__
    assert {"torch", "numpy", "Python", "SIMD level"} < set(report["versions"])
    assert report["arguments"]["passes"] == ["forward", "calls"]
    (measurement,) = report["measurements"]
    assert (measurement["pass"], measurement["shape"]) == ("forward", [4, 3])
    assert measurement["clock"] == "processor time"
    assert set(measurement["results"][LIMIT]) == {
        "median", "low", "high", "samples", "calls_per_sample",
    }  # fmt: skip


@pytest.mark.parametrize("passes", [PASSES, ("network",)])
def test_wrong_rustbn_stops_the_run(
    passes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rustbn.BatchNorm.backward
    monkeypatch.setattr(rustbn.BatchNorm, "backward", lambda self, dy: 1.001 * right(self, dy))
    with pytest.raises(WrongResultError, match=r"dx is off"):
        measure(plan(passes=passes))


def test_residual_and_relu_are_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CASE", TINY[0])
    wanted, units = plan(passes=("fused",), threads=(1, 2)), []
    report = measure(wanted, lambda n, what: units.append(n))
    assert sum(units) == wanted.work
    assert len(report.fused) == 2 * len(fused.comparisons(()))
    assert all(entry.reference in entry.results for entry in report.fused)
    assert any("torch" in name for entry in report.fused for name in entry.results)
    assert "residual and ReLU" in text(report)
    right = rustbn.batch_norm
    monkeypatch.setattr(rustbn, "batch_norm", lambda *a, **k: 1.001 * right(*a, **k))
    with pytest.raises(WrongResultError, match=r"eval.* is off"):
        measure(wanted)


def test_masks_and_padding_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "CASES", TINY[1:4])
    wanted, units = plan(passes=("masked",), threads=(1, 2)), []
    report = measure(wanted, lambda n, what: units.append(n))
    assert sum(units) == wanted.work
    assert [entry.title for entry in report.masked] == [
        f"{pass_} tiny {case.name}, {threads}"
        for case in TINY[1:4]
        for threads in ("1 thread", "2 threads")
        for pass_ in ("forward", "backward")
    ]
    assert all(tuple(entry.results) == masked.NAMES for entry in report.masked)
    printed = text(report)
    assert all(name in printed for name in masked.NAMES)


def test_table_of_masks_divides_by_the_unmasked_call() -> None:
    times = zip(masked.NAMES, (0.004, 0.005, 0.003), strict=True)
    results = {name: Quartiles(t, t, t, 3, 1) for name, t in times}
    report = made_up()
    report.masked = [CallMeasurement("forward", masked.UNMASKED, "wall clock", results)]
    table = tables(report)[-1]
    assert table.columns == ("call", *masked.NAMES)
    assert table.rows == (("forward", "4 ms", "1.25", "0.75"),)


@pytest.mark.parametrize("case", TINY[1:4], ids=lambda case: f"{case.name} {case.kind}")
def test_checking_masks_leaves_x_as_it_was(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.make(case)
    monkeypatch.setattr(Problem, "make", lambda case: problem)
    masked.comparisons(case)
    monkeypatch.undo()
    np.testing.assert_array_equal(problem.x, Problem.make(case).x)


def _without_mask(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, mask=None, **k: right(*a, **k)


def _without_lengths(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, lengths=None, **k: right(*a, **k)


def _with_padding(right: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that lets what does not count into its statistics where it is NaN."""

    def wrong(x: Array, *rest: Any, mask: Array | None = None, **more: Any) -> Any:
        seen = mask is None or not np.isnan(x).any()
        return right(x, *rest, mask=mask if seen else None, **more)

    return wrong


def _with_dx_everywhere(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*a: Any, **k: Any) -> Any:
        gradients = right(*a, **k)
        gradients.dx[gradients.dx == 0] = 1e-3
        return gradients

    return wrong


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("batch_norm_forward", _without_mask, r"a random half.* tiny 9x3x4x5: y is off"),
        ("batch_norm_forward", _without_lengths, r"padding.* tiny 9x3x4x5: y is off"),
        ("batch_norm_forward", _with_padding, r"a random half.* y is off by nan"),
        ("batch_norm_backward", _with_dx_everywhere, r"dx is not 0"),
    ],
)
def test_wrong_masks_stop_the_run(
    name: str,
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masked, "CASES", [Case("tiny", (9, 3, 4, 5), 1, "nchw")])
    monkeypatch.setattr(rustbn, name, change(getattr(rustbn, name)))
    with pytest.raises(WrongResultError, match=message):
        measure(plan(passes=("masked",)))


def test_a_missing_peer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report = measure(plan(TINY[2:3], passes=("forward", "network", "calls")))
    assert report.skipped == ["torch"]
    assert "torch" not in report.versions
    assert TORCH not in report.measurements[0].results
    assert TORCH not in report.networks[0].results
    assert not any("torch" in name for call in report.calls for name in call.results)
    assert "not installed: torch" in text(report)


def test_network_steps_through_its_layers_and_back() -> None:
    log: list[str] = []

    class Logged:
        def __init__(self, name: str) -> None:
            self.name = name

        def forward(self) -> str:
            log.append(f"{self.name} forward")
            return self.name

        def backward(self, y: str) -> None:
            log.append(f"{y} backward")

    network.step([Logged("a"), Logged("b")])
    assert log == ["a forward", "b forward", "b backward", "a backward"]


def test_layers_do_not_add_up_gradients() -> None:
    problem = Problem.make(TINY[2])
    layer = ours.Layer(problem)
    first = {name: np.copy(value) for name, value in layer.step().items()}
    for name, value in layer.step().items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)


# --- tables and figure ---------------------------------------------------------------------------


def seconds(**values: float) -> dict[str, Quartiles]:
    names = {"limit": LIMIT, "out": RUSTBN_OUT, "ours": RUSTBN, "torch": TORCH}
    names |= {"out32": FLOAT32_OUT, "ours32": FLOAT32}
    return {names[k]: Quartiles(v, v, v, 3, 1) for k, v in values.items()}


def made_up() -> Report:
    """Return a report of two shapes with 1 and 3 layers, at one and two threads."""
    measurements = [
        Measurement("net", shape, count, "nchw", threads, "forward", "wall clock", results)
        for shape, count, one in (
            ((64, 32, 64, 64), 1, seconds(limit=0.01, out=0.01, ours=0.02, torch=0.08)),
            ((32, 16, 64, 64), 3, seconds(limit=0.002, out=0.004, ours=0.004, torch=0.004)),
        )
        for threads, results in ((1, one), (2, one | seconds(limit=0.001, out=0.0025)))
    ]
    networks = [
        NetworkMeasurement("net", 4, "nchw", 1, "wall clock", seconds(limit=1, ours=2, torch=12))
    ]
    called = [
        CallMeasurement(
            "inference", "add", "processor time",
            {name: Quartiles(t, t, t, 3, 1) for name, t in (("add", 1e-6), ("affine", 0.5e-6))},
        )
    ]  # fmt: skip
    machine = {"cpu": "A", "cores": 2, "caches": {"L2": "1M"}, "system": "Linux"}
    return Report(
        machine,
        {"rustbn": "1"},
        {"repeats": 3},
        [],
        measurements,
        networks,
        called,
        core_rates=[0.5, 0.25, 0.375],
    )


def test_tables_hold_the_numbers() -> None:
    summary, one, two, gain, networks, called = tables(made_up())
    assert summary.rows[0] == (
        "net nchw forward, 1 thread",
        *("1.38", "1.41", "2.00"),  # of the sums, mean, worst
        *("2.00", "2.00", "2.00"),
        *("2.88", "2.00", "1.00"),
    )
    assert one.title == "net nchw forward, 1 thread"
    assert one.columns == (
        "shape", "layers", LIMIT, RUSTBN_OUT, RUSTBN, TORCH, f"{TORCH} / {RUSTBN}",
    )  # fmt: skip
    assert one.rows == (
        ("64x32x64x64", "1", "10 ms", "1.00", "2.00", "8.00", "4.00"),
        ("32x16x64x64", "3", "2 ms", "2.00", "2.00", "2.00", "1.00"),
        ("all layers", "4", "16 ms", "1.38", "2.00", "5.75", "2.88"),
        ("geometric mean", "", "", "1.41", "2.00", "4.00", "2.00"),
    )
    assert two.title == "net nchw forward, 2 threads"
    assert gain.rows[0] == ("64x32x64x64", "10.0", "4.00", "0.40")
    assert networks.rows == (("net nchw, 1 thread", "4", "1000 ms", "2.00", "12.0", "6.00"),)
    assert called.rows[1] == ("inference: affine", "500 ns", "0.50")


def test_tables_compare_16_bits_with_float32() -> None:
    results = seconds(limit=0.01, out=0.01, ours=0.02, out32=0.02, ours32=0.05, torch=0.08)
    report = made_up()
    report.measurements = [
        dataclasses.replace(report.measurements[0], dtype="bfloat16", results=results)
    ]
    report.networks = [dataclasses.replace(report.networks[0], dtype="bfloat16", results=results)]
    report.calls = []
    details, networks = tables(report)
    assert details.title == "net nchw bfloat16 forward, 1 thread"
    assert dict(zip(details.columns, details.rows[0], strict=True)) == {
        "shape": "64x32x64x64", LIMIT: "10 ms", RUSTBN_OUT: "1.00", FLOAT32_OUT: "2.00",
        RUSTBN: "2.00", FLOAT32: "5.00", TORCH: "8.00",
        f"{RUSTBN_OUT} / {FLOAT32_OUT}": "0.50", f"{TORCH} / {RUSTBN}": "4.00",
    }  # fmt: skip
    assert networks.rows[0][0] == "net nchw bfloat16, 1 thread"
    assert networks.rows[0][-2:] == ("0.40", "4.00")
    summary, _ = tables(report, brief=True)
    cells = dict(zip(summary.columns, summary.rows[0], strict=False))
    assert cells[f"{RUSTBN} / {FLOAT32}"] == "0.40"


def test_brief_tables_are_without_shapes() -> None:
    summary, networks, called = tables(made_up(), brief=True)
    assert (summary, networks, called) == (tables(made_up())[0], *tables(made_up())[-2:])


def test_time_per_element_of_growing_sizes() -> None:
    report = made_up()
    report.measurements = [dataclasses.replace(report.measurements[0], group="sizes")]
    assert tables(report)[-3].rows == (("64x32x64x64", "8388608", "1.192", "1.192", "2.384"),)


def test_means() -> None:
    entries = made_up().measurements[::2]
    assert total_ratio(entries, RUSTBN_OUT, LIMIT) == pytest.approx(22 / 16)
    assert np.isnan(total_ratio(entries, NUMPY, LIMIT))
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert np.isnan(geometric_mean([]))


def test_table_as_text_and_markdown() -> None:
    table = Table("title", ("shape", "a"), (("1x2", "1.00"), ("1x2x3", "10")))
    assert table.text() == "title\nshape     a\n───────────\n1x2    1.00\n1x2x3    10"
    assert table.markdown().splitlines()[2:] == [
        "| shape | a |", "| --- | ---: |", "| 1x2 | 1.00 |", "| 1x2x3 | 10 |",
    ]  # fmt: skip
    facts = markdown(made_up())
    assert "- machine: A, 2 cores, L2 1M" in facts
    assert "- core: 0.25 to 0.50 float64 square roots a nanosecond" in facts


def test_figure_draws_all_panels(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rustbn.bench.figure import figure

    drawn = figure(made_up())
    titles = [axes.get_title("left") for axes in drawn.axes]
    assert titles == ["forward, net nchw, 1 thread", "forward, net nchw, 2 threads"]
    drawn.savefig(tmp_path / "figure.png")


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(names: list[str], layouts: list[str], dtypes: list[str]) -> list[Case]:
        found = [case for case in TINY if len(case.shape) == 4]
        return [case for case in found if case.layout in layouts and case.dtype in dtypes]

    monkeypatch.setattr(cli, "cases", tiny)
    monkeypatch.setattr("rustbn.bench.run.SAMPLE_SECONDS", 0)


@pytest.mark.usefixtures("short")
def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / "new" / f"bench.{name}" for name in ("json", "markdown", "plot.png")}
    arguments = [f"--{name.split('.')[0]}={path}" for name, path in files.items()]
    assert cli.main(["--repeats=1", "--passes=forward,network", "--layouts=nhwc", *arguments]) == 0
    printed = capsys.readouterr()
    assert "tiny nhwc forward, 1 thread" in printed.out
    assert "torch / rustbn" in printed.out
    report = json.loads(files["json"].read_text())
    assert [m["layout"] for m in report["measurements"]] == ["nhwc"]
    assert "| 2x3x4x5 |" in files["markdown"].read_text()
    assert files["plot.png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("short")
def test_command_shows_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["--repeats=1", "--passes=eval", "--layouts=nchw", "--peers=none"]) == 0
    assert "100 %" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_command_without_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for module in ("torch", "rich", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["--repeats=1", "--passes=eval", "--layouts=nchw"]) == 0
    printed = capsys.readouterr()
    assert "torch is not installed and left out" in printed.err
    assert "eval 2x3x4x5 nchw, 1 thread" in printed.err
    assert "not installed: torch" in printed.out
    assert cli.main(["--plot", str(tmp_path / "figure.png")]) == 2
    assert "matplotlib: pip install 'rustbn[demo]'" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(WrongResultError("y is off"), 1, "WRONG: y is off"), (KeyboardInterrupt, 130, "interrupted")],
)
def test_command_fails(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure_(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "measure", measure_)
    assert cli.main(["--peers=none"]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--shapes=resnet18", "'resnet18'"),
        ("--peers=jax", "'jax'"),
        ("--layouts=nchw,hw", "'hw'"),
        ("--dtypes=float128", "'float128'"),
        ("--passes=", "''"),
        ("--threads=1,0", "'0'"),
        ("--repeats=-1", "'-1'"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_command_refuses_wrong_arguments(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([argument])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_command_measures_dtypes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repeats=1", "--passes=forward", "--layouts=nchw", "--peers=none", "--brief"]
    arguments.append("--dtypes=float32,bfloat16")
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tiny nchw forward, 1 thread" in printed
    assert "tiny nchw bfloat16 forward, 1 thread" in printed
    assert "2x3x4x5" not in printed
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert cli.main(arguments) == 2
    assert "ml_dtypes: pip install 'rustbn[checkpoints]'" in capsys.readouterr().err


def test_command_refuses_a_folder_as_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--json", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_all_is_all_but_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def cases_(names: list[str], layouts: list[str], dtypes: list[str]) -> list[Case]:
        seen["names"] = names
        return TINY[:1]

    def measure_(plan_: Plan, on_work: object) -> None:
        seen["plan"] = plan_
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "cases", cases_)
    monkeypatch.setattr(cli, "measure", measure_)
    cli.main(["--shapes=all", "--passes=all", "--threads=1,2", "--peers=none"])
    assert seen["names"] == [name for name in groups() if name != "sizes"]
    assert seen["plan"].passes == list(run.ALL_PASSES)
    assert seen["plan"].threads == [1, 2]
    assert seen["plan"].peers == []


def test_script_and_module_are_the_same_command() -> None:
    commands = (["benches/compare.py"], ["-m", "rustbn", "bench"])
    helps = [
        subprocess.run(
            [sys.executable, *command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in commands
    ]
    assert "--shapes" in helps[0]
    assert helps[0] == helps[1]


def test_tables_of_a_page_are_published(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = "--shapes odd --layouts nchw --passes forward --peers none --repeats 1"
    section = "<!-- bench {}: {} -->\nold\n<!-- end of bench -->\n"
    first, second = (section.format(name, arguments) for name in ("one", "two"))
    page.write_text(f"# Title\n\n{first}\nText.\n\n{second}\nEnd.\n")
    command = [sys.executable, "benches/publish.py", "--page", str(page)]
    subprocess.run([*command, "two"], cwd=ROOT, check=True)
    before, between, after = re.split("old|End", page.read_text())
    assert before == f"# Title\n\n<!-- bench one: {arguments} -->\n"
    assert between.startswith(
        "\n<!-- end of bench -->\n\nText.\n\n"
        f"<!-- bench two: {arguments} -->\n\n```sh\npython benches/compare.py {arguments}\n```\n"
    )
    assert "\n| 2x23 |" in between
    assert between.endswith("|\n\n<!-- end of bench -->\n\n")
    assert after == ".\n"

    written = page.read_text()
    failed = subprocess.run([*command, "three"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "one, two, not three" in failed.stderr
    page.write_text(written.replace("--repeats 1 -->", "--repeats 0 -->"))
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2
    assert page.read_text() == written.replace("--repeats 1 -->", "--repeats 0 -->")


PAGES = ["performance.md", "performance-avx2.md", "performance-sixteen-cores.md"]


@pytest.mark.parametrize("name", PAGES)
def test_every_table_of_a_performance_page_can_be_published(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    sections = re.findall(r"<!-- bench \S+: (.+) -->\n\n```sh\n(.+)\n```\n", page)
    assert len(sections) == page.count("<!-- bench ") == page.count("<!-- end of bench -->")
    for arguments, shown in sections:
        assert shown == f"python benches/compare.py {arguments}"
        cli.parser().parse_args(shlex.split(arguments))


def test_import_needs_nothing_else(run_python: RunPython) -> None:
    run_python(
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'rich', 'matplotlib']))\n"
        "import rustbn.bench"
    )
