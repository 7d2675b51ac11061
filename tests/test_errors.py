"""Bad input: an exception that names the argument, says what was expected and what came.

`CASES` has at least one call for every kind of error that the extension knows, and a test fails
when a kind has none. After every one of these calls no array has changed by a bit.
"""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cases
import numpy as np
import pytest
import rustbn
from conftest import RunPython
from judge import assert_same_bits
from numpy.exceptions import AxisError
from oracle import Array
from rustbn import _rustbn

SHAPE = (6, 7, 5)  # 7 channels of 30 values


@dataclass
class World:
    """Everything that an erroneous call could spoil."""

    p: cases.Problem = field(default_factory=lambda: cases.problem(SHAPE))
    out: Array = field(default_factory=lambda: np.full(SHAPE, 42, np.float32))

    def __post_init__(self) -> None:
        p = self.p
        self.x, self.dy, self.weight, self.bias = p.x, p.dy, p.weight, p.bias
        self.moments = rustbn.moments(p.x)
        self.sums = rustbn.backward_reduce(p.dy, p.x, self.moments)
        self.affine = rustbn.Affine.from_moments(self.moments, p.weight, p.bias)
        self.ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight, p.bias)[1]
        # x, weight and running_mean once more, each sharing memory with an array that fits `out`.
        self.buffer = np.zeros(2 * p.x.size, np.float32)
        self.part = self.buffer[: p.x.size].reshape(SHAPE)
        self.shifted = self.buffer[1 : p.x.size + 1].reshape(SHAPE)
        self.few = self.buffer[3:10]
        self.part[...] = p.x
        self.residual = p.dy + np.float32(1)
        self.fused = rustbn.batch_norm_forward(p.x, activation="relu", residual=self.residual)[1]

    def bits(self) -> tuple[bytes, ...]:
        arrays = (self.x, self.dy, *self.p.vectors, self.out, self.buffer, self.residual)
        return tuple(a.tobytes() for a in arrays)


# Good calls: each takes the world and the arguments that shall be other than good.

Call = Callable[..., Any]


def train(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"running_mean": w.p.running_mean, "running_var": w.p.running_var}
    good |= {"x": w.x, "weight": w.weight, "bias": w.bias, "training": True, "out": w.out}
    return rustbn.batch_norm(**good | changes)


def evaluate(w: World, /, **changes: Any) -> Any:
    return train(w, **{"training": False} | changes)


def forward(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"running_mean": w.p.running_mean, "running_var": w.p.running_var}
    good |= {"x": w.x, "weight": w.weight, "bias": w.bias, "out": w.out}
    return rustbn.batch_norm_forward(**good | changes)


def forward_evaluate(w: World, /, **changes: Any) -> Any:
    return forward(w, **{"training": False} | changes)


def backward(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"dy": w.dy, "ctx": w.ctx, "out": w.out}
    return rustbn.batch_norm_backward(**good | changes)


def measure(w: World, /, **changes: Any) -> Any:
    return rustbn.moments(**{"x": w.x} | changes)


def reduce(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"dy": w.dy, "x": w.x, "moments": w.moments}
    return rustbn.backward_reduce(**good | changes)


def apply(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"dy": w.dy, "x": w.x, "moments": w.moments, "grad_sums": w.sums}
    return rustbn.backward_apply(**good | {"weight": w.weight, "out": w.out} | changes)


def transform(w: World, /, affine: rustbn.Affine | None = None, **changes: Any) -> Any:
    good: dict[str, Any] = {"x": w.x, "out": w.out}
    return (affine or w.affine)(**good | changes)


def update(w: World, /, moments: rustbn.Moments | None = None, **changes: Any) -> Any:
    good: dict[str, Any] = {"running_mean": w.p.running_mean, "running_var": w.p.running_var}
    return (moments or w.moments).update_running(**good | {"momentum": 0.1} | changes)


def merge(w: World, /, **changes: Any) -> Any:
    return w.moments.merge(**{"other": w.moments} | changes)


def plus(w: World, /, other: rustbn.GradSums | None = None) -> Any:
    return w.sums + (w.sums if other is None else other)


def invstd(w: World, /, **changes: Any) -> Any:
    return w.moments.invstd(**changes)


def from_moments(w: World, /, **changes: Any) -> Any:
    return rustbn.Affine.from_moments(**{"moments": w.moments} | changes)


def from_running(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"running_mean": w.p.running_mean, "running_var": w.p.running_var}
    return rustbn.Affine.from_running(**good | changes)


def make_moments(w: World, /, **changes: Any) -> Any:
    good: dict[str, Any] = {"count": 3, "mean": w.weight, "m2": w.p.running_var}
    return rustbn.Moments(**good | changes)


def make_sums(w: World, /, **changes: Any) -> Any:
    return rustbn.GradSums(**{"sum_dy": w.weight, "sum_dy_xmu": w.bias} | changes)


def make_affine(w: World, /, **changes: Any) -> Any:
    return rustbn.Affine(**{"mean": w.weight, "scale": w.bias, "bias": w.bias} | changes)


def set_threads(w: World, /, n: Any = 2) -> None:
    before = rustbn.get_num_threads()
    try:
        rustbn.set_num_threads(n)
    finally:
        assert rustbn.get_num_threads() in (before, n)
        rustbn.set_num_threads(before)


TRAINS: tuple[Call, ...] = (train, forward)
EVALUATES: tuple[Call, ...] = (evaluate, forward_evaluate)
WITH_X: tuple[Call, ...] = (*TRAINS, *EVALUATES, measure, transform, reduce, apply)
WITH_OUT: tuple[Call, ...] = (*TRAINS, *EVALUATES, backward, transform, apply)
WITH_DY: tuple[Call, ...] = (backward, reduce, apply)
WITH_RESIDUAL: tuple[Call, ...] = (*TRAINS, *EVALUATES, transform)
WITH_MASK: tuple[Call, ...] = (*TRAINS, *EVALUATES, measure, reduce, apply)
RUNNING = ("running_mean", "running_var")
# (call, its arguments of length C, the first of which may say what C is).
VECTORS: tuple[tuple[Call, tuple[str, ...]], ...] = (
    *((call, (*RUNNING, "weight", "bias")) for call in TRAINS + EVALUATES),
    (apply, ("weight",)),
    (update, RUNNING),
    (from_moments, ("weight", "bias")),
)
NEW_VECTORS: tuple[tuple[Call, tuple[str, ...]], ...] = (
    (from_running, (*RUNNING, "weight", "bias")),
    (make_moments, ("mean", "m2")),
    (make_sums, ("sum_dy", "sum_dy_xmu")),
    (make_affine, ("mean", "scale", "bias")),
)
OTHERS: tuple[Call, ...] = (merge, plus, invstd, set_threads)
EVERY_CALL: dict[str, Call] = {
    call.__name__: call
    for calls in (WITH_X, WITH_OUT, WITH_DY, [call for call, _ in VECTORS + NEW_VECTORS], OTHERS)
    for call in calls
}


@dataclass(frozen=True)
class Of:
    """An argument that is made of the world in which the call happens."""

    make: Callable[[World], Any]


@dataclass(frozen=True)
class Case:
    """A good call but for `changes`, its exception, and what the message must contain.

    `mentions` are regular expressions: first the argument, then what was expected and what came.
    """

    call: Call
    changes: dict[str, Any]
    exception: type[Exception]
    mentions: tuple[str, ...]

    def __str__(self) -> str:
        changes = (f"{k}={reprlib.repr(v)}" for k, v in self.changes.items())
        return f"{self.call.__name__}({', '.join(changes)})"

    def run(self, world: World) -> None:
        """Make the call, which raises."""
        changes = {k: v.make(world) if isinstance(v, Of) else v for k, v in self.changes.items()}
        self.call(world, **changes)


class Anew:
    """An object whose ``__array__`` makes another array each time, so that no update arrives."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.ones(7, np.float32)


def read_only(values: Array) -> Array:
    view = values[...]
    view.flags.writeable = False
    return view


def word(text: object) -> str:
    return rf"(?<!\w){re.escape(str(text))}(?!\w)"


FIVE = np.ones(5, np.float32)
FIVE_MOMENTS = rustbn.Moments(30, FIVE, FIVE)
ONE_VALUE = rustbn.Moments(1, np.ones(7), np.zeros(7))


def rank_cases() -> Iterator[Case]:
    for call in WITH_X:
        for ndim in (0, 1):
            x = np.ones((7,) * ndim, np.float32)
            yield Case(call, {"x": x}, ValueError, (word("x"), "2 or more", word(ndim)))
    for call, (first, *_) in NEW_VECTORS:
        for ndim in (0, 2):
            vector = np.ones((7,) * ndim)
            yield Case(call, {first: vector}, ValueError, (word(first), word(1), word(ndim)))


def axis_cases() -> Iterator[Case]:
    for call in WITH_X:
        for axis in (3, -4, 1000):
            yield Case(call, {"axis": axis}, AxisError, ("axis", word(axis), word(3)))


def length_cases() -> Iterator[Case]:
    arguments = [(call, name) for call, names in VECTORS for name in names]
    arguments += [(call, name) for call, names in NEW_VECTORS for name in names[1:]]
    for call, name in arguments:
        for shape in ((5,), (8,), (0,), (7, 1), (1, 7), ()):
            vector = np.ones(shape, np.float32)
            mentions = word(name), word(7), re.escape(str(shape))
            yield Case(call, {name: vector}, ValueError, mentions)
    others: tuple[tuple[Call, str, Any], ...] = (
        (merge, "other", FIVE_MOMENTS),
        (plus, "other", rustbn.GradSums(FIVE, FIVE)),
        (reduce, "moments", FIVE_MOMENTS),
        (apply, "moments", FIVE_MOMENTS),
        (apply, "grad_sums", rustbn.GradSums(FIVE, FIVE)),
    )
    for call, name, thing in others:
        yield Case(call, {name: thing}, ValueError, (word(name), word(7), word(5)))
    affine = rustbn.Affine(FIVE, FIVE, FIVE)
    yield Case(transform, {"affine": affine}, ValueError, (word("affine"), word(7), word(5)))


def shape_cases() -> Iterator[Case]:
    for name, calls in (("out", WITH_OUT), ("dy", WITH_DY), ("residual", WITH_RESIDUAL)):
        for call in calls:
            for shape in ((6, 7, 4), (6, 7), (6, 7, 5, 1), (1, 7, 5), (210,), (7, 6, 5), (0, 7, 5)):
                mentions = word(name), re.escape(str(SHAPE)), re.escape(str(shape))
                yield Case(call, {name: np.ones(shape, np.float32)}, ValueError, mentions)
    for call in WITH_MASK:
        # With channels, with a length of none of x's axes, of too few or many axes, transposed.
        for short in (SHAPE, (6, 7), (6, 2), (6, 2, 5), (5,), (), (6, 1, 5, 1), (5, 6), (0, 5)):
            mentions = word("mask"), r"\(6, 5\) or \(6, 1, 5\)", re.escape(str(short))
            yield Case(call, {"mask": np.ones(short, np.bool_)}, ValueError, mentions)
        for lengths in ([], [5], [5] * 5, [5] * 7):
            mentions = word("lengths"), r"\(6,\)", re.escape(f"({len(lengths)},)")
            yield Case(call, {"lengths": lengths}, ValueError, mentions)


WRONG_DTYPES = (
    *("int32", "int64", "uint8", "bool", "complex64", "complex128"),
    *("longdouble", "object", "datetime64[s]", "S4", "V8"),
)


def dtype_cases() -> Iterator[Case]:
    for dtype in WRONG_DTYPES:
        zeros = np.zeros(SHAPE, dtype)
        got = re.escape(str(zeros.dtype))
        for call in WITH_X:
            yield Case(call, {"x": zeros}, TypeError, (word("x"), "float32", got))
        for call, names in (*VECTORS, *NEW_VECTORS):
            for name in names:
                vector = zeros[0, :, 0]
                yield Case(call, {name: vector}, TypeError, (word(name), "float32", got))
    for name, calls in (("out", WITH_OUT), ("dy", WITH_DY), ("residual", WITH_RESIDUAL)):
        for call in calls:
            for dtype in ("float64", *WRONG_DTYPES):
                array = np.zeros(SHAPE, dtype)
                mentions = word(name), "float32", re.escape(str(array.dtype))
                yield Case(call, {name: array}, TypeError, mentions)
    for call in (*TRAINS, *EVALUATES, transform, reduce, apply):
        name = "dy" if call in WITH_DY else "out"
        x64 = {"x": np.ones(SHAPE, np.float64)}
        yield Case(call, x64, TypeError, (word(name), "float64", "float32"))
    for call in WITH_MASK:
        for dtype in ("uint8", "int64", "float32", "float16", "object", "S1"):
            mask = np.ones((6, 5), dtype)
            got = re.escape(str(mask.dtype))
            yield Case(call, {"mask": mask}, TypeError, (word("mask"), "bool", got))
        for dtype in ("bool", "float32", "float64", "complex64", "object", "S1"):
            lengths = np.ones(6, dtype)
            mentions = word("lengths"), "whole number", re.escape(str(lengths.dtype))
            yield Case(call, {"lengths": lengths}, TypeError, mentions)


NO_ARRAYS: tuple[Any, ...] = ([[1.0, 2.0]], (1.0, 2.0), 1.5, "x", object(), {}, np.ndarray)


NO_ACTIVATIONS: tuple[Any, ...] = (
    *(3, 1.5, b"relu", ["relu"], ("leaky_relu",), ("leaky_relu", "1"), np.tanh),
)


def kind_cases() -> Iterator[Case]:
    for thing in (*NO_ARRAYS, None):
        got = type(thing).__name__
        arguments = [(call, "x") for call in WITH_X] + [(call, "dy") for call in WITH_DY]
        if thing is not None:
            arguments += [(call, "out") for call in WITH_OUT]
            arguments += [(call, "residual") for call in WITH_RESIDUAL]
            arguments += [(c, name) for c, names in (*VECTORS, *NEW_VECTORS) for name in names]
        for call, name in arguments:
            yield Case(call, {name: thing}, TypeError, (word(name), "array", got))
    for call in WITH_RESIDUAL:
        for thing in NO_ACTIVATIONS:
            mentions = word("activation"), "leaky_relu", type(thing).__name__
            yield Case(call, {"activation": thing}, TypeError, mentions)
    for call in WITH_MASK:
        for thing in NO_ARRAYS:
            mentions = word("mask"), "array", type(thing).__name__
            yield Case(call, {"mask": thing}, TypeError, mentions)
        for thing in (3, np.int64(3), np.ones((6, 1), np.int64), [[1] * 6], [[1], [1, 2]]):
            mentions = word("lengths"), "one for each sample", type(thing).__name__
            yield Case(call, {"lengths": thing}, TypeError, mentions)
    for call in (*TRAINS, *EVALUATES):
        for thing in (1, 1.5, "1, 2", (1.0,), (1.0, 2.0, 3.0), (1.0, "2"), (1.0, None)):
            mentions = word("renorm"), "r_max, d_max", type(thing).__name__
            yield Case(call, {"renorm": thing}, TypeError, mentions)
        for thing in (1.5, "1", [1], 2.0, object()):
            mentions = word("group_size"), "whole", type(thing).__name__
            yield Case(call, {"group_size": thing}, TypeError, mentions)
    for call in (*TRAINS, update):
        for name in RUNNING:
            yield Case(call, {name: Anew()}, TypeError, (word(name), "in place", "Anew"))
    for call, name, wanted in WANT_A_NUMBER:
        for thing in NO_NUMBERS + ((1.5,) if wanted == "whole" else ()):
            yield Case(call, {name: thing}, TypeError, (word(name), wanted, type(thing).__name__))
    for call, name, wanted in WANT_A_CLASS:
        for thing in (None, 3, "x", np.ones((2, 3)), rustbn.Affine(FIVE, FIVE, FIVE)):
            yield Case(call, {name: thing}, TypeError, (word(name), wanted, type(thing).__name__))


WANT_A_NUMBER: tuple[tuple[Call, str, str], ...] = (
    *((call, "eps", "real") for call in (*TRAINS, *EVALUATES, apply, from_running, from_moments)),
    *((call, "momentum", "real") for call in (*TRAINS, *EVALUATES, update)),
    *((call, "axis", "whole") for call in WITH_X),
    (invstd, "eps", "real"),
    (make_moments, "count", "whole"),
    (set_threads, "n", "whole"),
)
NO_NUMBERS: tuple[Any, ...] = ("1", None, [1], 1j, object(), np.ones(2))
WANT_A_CLASS: tuple[tuple[Call, str, str], ...] = (
    (backward, "ctx", "Context"),
    (reduce, "moments", "Moments"),
    (apply, "moments", "Moments"),
    (apply, "grad_sums", "GradSums"),
    (merge, "other", "Moments"),
    (from_moments, "moments", "Moments"),
)


def read_only_cases() -> Iterator[Case]:
    for call in WITH_OUT:
        out = Of(lambda w: read_only(w.out))
        yield Case(call, {"out": out}, ValueError, (word("out"), "writeable", "read-only"))
    stats = {
        "running_mean": Of(lambda w: read_only(w.p.running_mean)),
        "running_var": Of(lambda w: read_only(w.p.running_var)),
    }
    for call in (*TRAINS, update):
        for name, vector in stats.items():
            yield Case(call, {name: vector}, ValueError, (word(name), "writeable", "read-only"))


def overlap_cases() -> Iterator[Case]:
    def case(call: Call, name: str, other: str, **changes: Any) -> Case:
        return Case(call, changes, ValueError, (word(name), "share no memory", word(other)))

    part, few = Of(lambda w: w.part), Of(lambda w: w.few)
    shifted, backwards = Of(lambda w: w.shifted), Of(lambda w: w.part[::-1])
    for call in (*TRAINS, *EVALUATES, transform, apply):
        yield case(call, "out", "x", x=part, out=shifted)
        yield case(call, "out", "x", x=part, out=backwards)
    for call in WITH_RESIDUAL:
        yield case(call, "out", "residual", residual=part, out=shifted)
        yield case(call, "out", "residual", residual=part, out=backwards)
    for call in (forward, forward_evaluate):  # backward reads the residual
        yield case(call, "out", "residual", residual=part, out=part)
    fused, residual = Of(lambda w: w.fused), Of(lambda w: w.residual)
    yield case(backward, "out", "residual", ctx=fused, out=residual)
    yield case(backward, "out", "residual", ctx=fused, out=residual, dy=residual)
    for call in (backward, apply):
        yield case(call, "out", "dy", dy=part, out=shifted)
        yield case(call, "out", "dy", dy=part, out=backwards)
    for call in (forward, forward_evaluate, backward, apply):  # x is needed afterwards
        yield case(call, "out", "x", out=Of(lambda w: w.x))
        yield case(call, "out", "x", out=Of(lambda w: w.x[...]))
    for call in (*TRAINS, *EVALUATES):
        for name in (*RUNNING, "weight", "bias"):
            yield case(call, "out", name, out=part, **{name: few})
    yield case(apply, "out", "weight", out=part, weight=few)
    for call in TRAINS:
        for name in RUNNING:
            yield case(call, name, "x", x=part, **{name: few})
    for call in (*TRAINS, update):
        same = Of(lambda w: w.p.running_mean)
        yield case(call, "running_var", "running_mean", running_var=same)


def range_cases() -> Iterator[Case]:
    def case(call: Call, name: str, value: Any, *mentions: str) -> Case:
        return Case(call, {name: value}, ValueError, (word(name), *mentions))

    for eps in (-0.5, -np.inf, np.inf, np.nan):
        for call in (*EVALUATES, from_running, from_moments, invstd):
            yield case(call, "eps", eps, word(0), f"(?i){eps:g}")
        for call in (*TRAINS, apply):
            yield case(call, "eps", eps, "positive", f"(?i){eps:g}")
    for call in (*TRAINS, apply):
        yield case(call, "eps", 0.0, "positive", word(0))
    for momentum in (np.inf, -np.inf, np.nan):
        for call in (*TRAINS, *EVALUATES, update):
            yield case(call, "momentum", momentum, "finite", f"(?i){momentum:g}")
    for activation in ("gelu", "ReLU", "", ("relu", 0.1), ("leaky_relu", np.nan)):
        got = re.escape(repr(activation))
        for call in WITH_RESIDUAL:
            yield case(call, "activation", activation, '"relu6"', '"tanh"', got)
    for activation in ("silu", "hardswish", "sigmoid", "tanh"):
        for call in (*TRAINS, forward_evaluate):
            yield case(call, "activation", activation, "in training", activation)
    for needs, got in ((("x", "wieght"), "wieght"), (("",), "''"), ({"x": 1, 3: 2}, "3")):
        yield case(backward, "needs", needs, '"weight"', got)
    out = {"out": Of(lambda w: w.out), "needs": ("weight",)}
    yield Case(backward, out, ValueError, (word("out"), "None", "array"))
    yield case(make_moments, "count", -1, word(0), "-1")
    for call in WITH_MASK:
        for wrong in (-1, 6, 2**63):
            lengths = np.array([5, wrong, 5, 5, 5, 5], np.uint64 if wrong > 5 else np.int64)
            got = str(lengths.astype(np.int64)[1])
            yield case(call, "lengths", lengths, "0 to the length", got)
        both = {"mask": np.ones((6, 5), np.bool_), "lengths": [5] * 6}
        yield Case(call, both, ValueError, (word("lengths"), "None beside a mask", "both"))
        if call not in (reduce, apply):  # their dy would have to fit x
            flat = {"x": np.ones((6, 7), np.float32), "lengths": [1] * 6, "out": None}
            flat = {k: v for k, v in flat.items() if k != "out" or call is not measure}
            yield Case(call, flat, ValueError, (word("lengths"), "3 or more", word(2)))
    for call in (*TRAINS, *EVALUATES):
        for bounds in ((0.9, 1.0), (1.0, -0.1), (np.nan, 1.0), (1.0, np.nan), (-np.inf, 0.0)):
            yield case(call, "renorm", bounds, "1 or more", "0 or more", f"(?i){bounds[0]:g}")
        for size in (0, -1):
            yield case(call, "group_size", size, "from 1 on", str(size))
    for n in (0, -3):
        yield case(set_threads, "n", n, "positive", str(n))
    for call, name, wanted in WANT_A_NUMBER:
        if wanted == "whole":
            yield case(call, name, 2**70, "64 bits", str(2**70))


def too_few_values_cases() -> Iterator[Case]:
    for call in TRAINS:
        for shape in ((1, 7), (1, 7, 1), (1, 7, 1, 1)):
            changes = {"x": np.ones(shape, np.float32), "out": None}
            yield Case(call, changes, ValueError, (word("x"), word(2), word(1)))
        for counted in (0, 1):
            mask = np.arange(30).reshape(6, 5) >= 30 - counted
            mentions = word(2), word(counted)
            yield Case(call, {"mask": mask}, ValueError, (word("mask"), *mentions))
            lengths = [0, 0, counted, 0, 0, 0]
            yield Case(call, {"lengths": lengths}, ValueError, (word("lengths"), *mentions))
        # A group without two values, first or last; of a batch that has enough.
        x, lengths = np.ones((5, 7), np.float32), [5, 5, 5, 1, 0, 0]
        alone = {"x": x, "out": None, "group_size": 2}
        yield Case(call, alone, ValueError, (word("x"), word(2), word(1)))
        for these in (lengths, lengths[::-1]):
            few = {"lengths": these, "group_size": 2}
            yield Case(call, few, ValueError, (word("lengths"), word(2), word(0)))
        mask = np.ones((6, 5), np.bool_)
        mask[3:] = mask[2, 1:] = False
        few = {"mask": mask, "group_size": 3}
        yield Case(call, few, ValueError, (word("mask"), word(2), word(0)))
    for call in (update, apply):
        yield Case(call, {"moments": ONE_VALUE}, ValueError, (word("moments"), word(2), word(1)))


def missing_cases() -> Iterator[Case]:
    for call in (*TRAINS, *EVALUATES):
        for name in RUNNING:
            yield Case(call, {name: None}, ValueError, (word(name), "given", "None"))
    for call in EVALUATES:
        changes = dict.fromkeys(RUNNING)
        yield Case(call, changes, ValueError, (word("running_mean"), "evaluation", "None"))
    for call in TRAINS:
        changes = dict.fromkeys(RUNNING) | {"renorm": (2.0, 1.0)}
        yield Case(call, changes, ValueError, (word("running_mean"), "renorm", "None"))


CASES: dict[str, list[Case]] = {
    "Rank": list(rank_cases()),
    "Axis": list(axis_cases()),
    "Length": list(length_cases()),
    "Shape": list(shape_cases()),
    "DType": list(dtype_cases()),
    "Kind": list(kind_cases()),
    "ReadOnly": list(read_only_cases()),
    "Overlap": list(overlap_cases()),
    "Range": list(range_cases()),
    "TooFewValues": list(too_few_values_cases()),
    "Missing": list(missing_cases()),
}

# What is decided once per process is provoked in one of its own: kind -> environment and message.
CASES_OF_THE_ENVIRONMENT: dict[str, list[tuple[dict[str, str], tuple[str, ...]]]] = {
    "Simd": [({"RUSTBN_SIMD": "sse9"}, ("RUSTBN_SIMD", "scalar", "sse9"))],
    "Range": [
        ({"RUSTBN_NUM_THREADS": "-1"}, ("RUSTBN_NUM_THREADS", "positive", "-1")),
        ({"RUSTBN_CPU_CACHES": "1M,8M"}, ("RUSTBN_CPU_CACHES", "bytes", "1M,8M")),
    ],
}


def test_every_kind_of_error_has_a_case() -> None:
    kinds = _rustbn.error_kinds()
    assert len(set(kinds)) == len(kinds)
    assert CASES.keys() | CASES_OF_THE_ENVIRONMENT.keys() == set(kinds)
    assert all(CASES.values())


@pytest.mark.parametrize("name", EVERY_CALL)
def test_the_good_calls_are_good(name: str) -> None:
    # So that what fails below fails for the reason given.
    EVERY_CALL[name](World())


def complaints(case: Case, kind: str, world: World) -> Iterator[str]:
    """Yield what is wrong with the error that `case` raises."""
    before = world.bits()
    try:
        case.run(world)
    except case.exception as error:
        if getattr(error, "kind", None) != kind:
            yield f"{case}: not of kind {kind}: {error!r}"
        for mention in case.mentions:
            if not re.search(mention, str(error)):
                yield f"{case}: no {mention} in {str(error)!r}"
    except Exception as error:
        yield f"{case}: not {case.exception.__name__}: {error!r}"
    else:
        yield f"{case}: accepted"
    if world.bits() != before:
        yield f"{case}: an array changed"


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_is_named_and_changes_nothing(kind: str) -> None:
    found: list[str] = []
    world = World()
    for case in CASES[kind]:
        news = list(complaints(case, kind, world))
        world = World() if news else world
        found += news
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", CASES_OF_THE_ENVIRONMENT)
def test_a_bad_environment_is_named(kind: str, run_python: RunPython) -> None:
    code = """
import numpy as np
import rustbn
try:
    rustbn.moments(np.ones((100_000, 3)))
except ValueError as error:
    print(error.kind, error)
"""
    for environment, mentions in CASES_OF_THE_ENVIRONMENT[kind]:
        said = run_python(code, **environment).stdout
        assert said.startswith(kind)
        for mention in mentions:
            assert mention in said


def test_axis_error_knows_axis_and_dimensions() -> None:
    with pytest.raises(AxisError) as caught:
        rustbn.moments(np.ones((2, 3)), axis=5)
    assert caught.value.axis == 5
    assert caught.value.ndim == 2


def test_sums_are_added_to_sums_alone() -> None:
    world = World()
    for other in (3, world.x, world.moments, None):
        with pytest.raises(TypeError, match="GradSums"):
            world.sums + other  # type: ignore[operator]


def test_needs_that_are_no_collection() -> None:
    world = World()
    before = world.bits()
    with pytest.raises(TypeError, match="needs"):
        backward(world, needs=3)
    assert world.bits() == before


@pytest.mark.parametrize("name", EVERY_CALL)
def test_unknown_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="no_such_argument"):
        EVERY_CALL[name](World(), no_such_argument=None)


def test_an_array_that_cannot_be_made_is_an_error_with_the_reason_of_its_maker() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
            raise RuntimeError("broken on purpose")

    world = World()
    before = world.bits()
    for argument in ("x", "running_mean", "weight"):
        with pytest.raises(TypeError, match=rf"\b{argument}\b.*Broken") as refusal:
            train(world, **{argument: Broken()})
        assert "on purpose" in str(refusal.value.__cause__)
    assert world.bits() == before


def test_a_context_does_not_follow_the_shape_of_x() -> None:
    p = cases.problem((6, 4))
    _, ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight)
    expected = rustbn.batch_norm_backward(p.dy, ctx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since NumPy 2.5
        p.x.shape = (4, 6)
    assert_same_bits(rustbn.batch_norm_backward(p.dy, ctx).dx, expected.dx)
    with pytest.raises(ValueError, match=r"\bx\b|resize"):
        p.x.resize((5, 6))
