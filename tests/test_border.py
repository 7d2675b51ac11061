"""The border to NumPy: what is taken as an array, where results may go, what is kept alive."""

from __future__ import annotations

import inspect
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import assert_forward, assert_same_bits
from numpy.lib.stride_tricks import as_strided
from oracle import Array
from rustbn._rustbn import part_backward, part_forward

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
both_modes = pytest.mark.parametrize("training", [True, False])


class Wrapped:
    """An object with ``__array__``, as other libraries' arrays are."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.values


# What is taken as an array.


@both_dtypes
@both_modes
def test_objects_with_array_are_taken_everywhere(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    vectors = p.copied_vectors()
    mean, var, weight, bias = wrapped = [Wrapped(v.copy()) for v in vectors]
    y, ctx = rustbn.batch_norm_forward(p.x, *vectors, training)
    y_, ctx_ = rustbn.batch_norm_forward(Wrapped(p.x), mean, var, weight, bias, training)
    assert_same_bits(y_, y)
    for ours, theirs in zip(wrapped, vectors, strict=True):
        assert_same_bits(ours.values, theirs)  # running statistics too: the memory is shared
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    for part, same in zip(rustbn.batch_norm_backward(Wrapped(p.dy), ctx_), grads, strict=True):
        assert_same_bits(part, same)
    assert rustbn.moments(Wrapped(p.x)) == rustbn.moments(p.x)
    affine = rustbn.Affine(var, weight, bias)
    assert affine == rustbn.Affine(*vectors[1:])
    assert_same_bits(affine(Wrapped(p.x)), affine(p.x))


@pytest.mark.parametrize("dtype", cases.NUMPY_DTYPES)
def test_tensors_are_taken_through_backward(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    _, ctx = rustbn.batch_norm_forward(torch.from_numpy(p.x), weight=torch.from_numpy(p.weight))
    dx = rustbn.batch_norm_backward(torch.from_numpy(p.dy), ctx).dx
    _, ctx = rustbn.batch_norm_forward(p.x, weight=p.weight)
    assert_same_bits(dx, rustbn.batch_norm_backward(p.dy, ctx).dx)


def test_a_tensor_that_requires_gradients_is_refused_with_pytorchs_reason() -> None:
    p = cases.problem((6, 5, 7))
    mean, var = p.running_mean.copy(), p.running_var.copy()
    weight = torch.from_numpy(p.weight).requires_grad_()
    with pytest.raises(TypeError, match=r"\bweight\b.*Tensor.*requires grad.*detach"):
        rustbn.batch_norm(p.x, mean, var, weight, training=True)
    assert_same_bits(mean, p.running_mean)
    assert_same_bits(var, p.running_var)


def test_a_masked_array_is_refused() -> None:
    p = cases.problem((6, 5, 7))
    masked: Any = np.ma.masked_invalid(p.x)
    with pytest.raises(TypeError, match=r"\bx\b.*mask.*MaskedArray"):
        rustbn.batch_norm(masked, training=True)


def test_subclasses_are_taken_as_the_arrays_they_are() -> None:
    class Tagged(np.ndarray):
        pass

    p = cases.problem((6, 5, 7))
    y = rustbn.batch_norm(p.x.view(Tagged), training=True)
    assert type(y) is np.ndarray
    assert_same_bits(y, rustbn.batch_norm(p.x, training=True))
    out = np.empty_like(p.x).view(Tagged)
    assert rustbn.batch_norm(p.x, training=True, out=out) is out
    assert_same_bits(np.asarray(out), y)


@both_dtypes
def test_running_statistics_in_awkward_memory_are_updated_where_they_are(
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    mean, var = p.running_mean.copy(), p.running_var.copy()
    rustbn.batch_norm(p.x, mean, var, training=True)
    for name, place in (
        ("byte-swapped", cases.byteswapped),
        ("unaligned", cases.unaligned),
        ("backwards", lambda v: cases.reversed_along(v, (0,))),
        ("gapped", lambda v: cases.gapped(v, (3,))),
    ):
        mean_, var_ = place(p.running_mean), place(p.running_var)
        rustbn.batch_norm(p.x, mean_, var_, training=True)
        assert_same_bits(mean_.astype(dtype), mean, name)
        assert_same_bits(var_.astype(dtype), var, name)


@both_dtypes
def test_running_statistics_may_be_interleaved(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    both = np.stack([p.running_mean, p.running_var], axis=1)
    rustbn.batch_norm(p.x, both[:, 0], both[:, 1], training=True)
    rustbn.batch_norm(p.x, p.running_mean, p.running_var, training=True)
    assert_same_bits(both, np.stack([p.running_mean, p.running_var], axis=1))


# Where results may go.


def equal_views(x: Array) -> dict[str, Array]:
    """Return other arrays that are the same elements at the same places."""
    return {
        "itself": x,
        "a view": x[...],
        "turned twice": x[::-1][::-1],
        "transposed twice": x.T.T,
        "made from its parts": as_strided(x, x.shape, x.strides),
        "a view of bytes": x.view(np.uint8).view(x.dtype) if x.flags.c_contiguous else x,
    }


@both_dtypes
@both_modes
def test_x_itself_or_an_equal_view_may_be_out(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    affine = rustbn.Affine(p.running_var, p.weight, p.bias)
    for layout, x in cases.all_layouts(p.x):
        values = x.copy()
        expected = rustbn.batch_norm(x, *p.copied_vectors(), training)
        transformed = affine(x)
        for name, out in equal_views(x).items():
            what = f"{layout} into {name}"
            x[...] = values
            y = rustbn.batch_norm(x, *p.copied_vectors(), training, out=out)
            assert y is out, what
            assert_same_bits(x, expected, what)
            x[...] = values
            assert affine(x, out=out) is out, what
            assert_same_bits(x, transformed, what)


@both_dtypes
@both_modes
def test_dy_itself_or_an_equal_view_may_be_out(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    _, ctx = rustbn.batch_norm_forward(p.x, *p.vectors, training)
    m = rustbn.moments(p.x)
    sums = rustbn.backward_reduce(p.dy, p.x, m)
    for layout, dy in cases.all_layouts(p.dy):
        values = dy.copy()
        expected = rustbn.batch_norm_backward(dy, ctx)
        applied = rustbn.backward_apply(dy, p.x, m, sums, p.weight)
        for name, out in equal_views(dy).items():
            what = f"{layout} into {name}"
            dy[...] = values
            grads = rustbn.batch_norm_backward(dy, ctx, out=out)
            assert grads.dx is out, what
            assert_same_bits(dy, expected.dx, what)
            assert_same_bits(grads.dweight, expected.dweight, what)
            assert_same_bits(grads.dbias, expected.dbias, what)
            dy[...] = values
            assert rustbn.backward_apply(dy, p.x, m, sums, p.weight, out=out) is out, what
            assert_same_bits(dy, applied, what)


def interlocking(values: Array) -> dict[str, tuple[Array, Array]]:
    """Return (x, out) that lie between each other in memory and have no byte in common."""
    n, c, length = values.shape

    def zeros(*shape: int) -> Array:
        return np.zeros(shape, values.dtype)

    every_other = zeros(n, c, 2 * length)
    halves = zeros(n, c, 2 * length)
    rows = zeros(2 * n, c, length)
    channels = zeros(n, 2 * c, length)
    backwards = zeros(n, c, 2 * length)
    # Offsets 0, 2, ... and 3, 7, ...: only arithmetic on the strides shows that they never meet.
    flat = zeros(8 * values.size)
    itemsize = values.itemsize
    twos = as_strided(flat, values.shape, [2 * s for s in values.strides])
    fours = as_strided(flat[3:], values.shape, [4 * s for s in values.strides])
    assert twos.strides[-1] == 2 * itemsize
    return {
        "every other element": (every_other[..., ::2], every_other[..., 1::2]),
        "halves of rows": (halves[..., :length], halves[..., length:]),
        "every other sample": (rows[::2], rows[1::2]),
        "every other channel": (channels[:, ::2], channels[:, 1::2]),
        "in opposite directions": (backwards[..., ::2], backwards[..., ::-2]),
        "strides of two and of four": (twos, fours),
    }


@both_dtypes
def test_out_may_lie_between_the_elements_of_an_input(dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    _, ctx = rustbn.batch_norm_forward(p.x, weight=p.weight)
    dx = rustbn.batch_norm_backward(p.dy, ctx).dx
    for name, (x, out) in interlocking(p.x).items():
        assert np.may_share_memory(x, out), name
        assert not np.shares_memory(x, out), name
        x[...] = p.x
        assert rustbn.batch_norm(x, weight=p.weight, training=True, out=out) is out
        assert_same_bits(out.copy(), rustbn.batch_norm(x, weight=p.weight, training=True), name)
        assert_forward(out, oracle.train(p.x, p.weight), name)
        assert_same_bits(x, p.x, name)
        _, ctx_x = rustbn.batch_norm_forward(x, weight=p.weight, out=out)
        assert_same_bits(x, p.x, name)
        rustbn.batch_norm_backward(p.dy, ctx_x, out=out)
        assert_same_bits(x, p.x, name)
        x[...] = p.dy  # the same places, now as dy
        assert rustbn.batch_norm_backward(x, ctx, out=out).dx is out
        assert_same_bits(out, dx, name)
        assert_same_bits(x, p.dy, name)


@both_dtypes
def test_out_may_be_byte_swapped(dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    y = rustbn.batch_norm(p.x, training=True)
    out = cases.byteswapped(np.zeros_like(p.x))
    assert rustbn.batch_norm(cases.byteswapped(p.x), training=True, out=out) is out
    assert_same_bits(out.astype(dtype), y)


@both_dtypes
def test_out_may_hold_anything_before(dtype: npt.DTypeLike) -> None:
    p = cases.problem((40, 5, 60), 1, dtype)
    y, ctx = rustbn.batch_norm_forward(p.x)
    dx = rustbn.batch_norm_backward(p.dy, ctx).dx
    for rubbish in (np.nan, np.inf, cases.largest(dtype)):
        out = np.full_like(p.x, rubbish)
        assert_same_bits(rustbn.batch_norm(p.x, training=True, out=out), y)
        out = np.full_like(p.x, rubbish)
        assert_same_bits(rustbn.batch_norm_backward(p.dy, ctx, out=out).dx, dx)


def test_empty_arrays_may_be_their_own_output() -> None:
    x = np.empty((0, 3, 4), np.float32)
    assert rustbn.batch_norm(x, training=True, out=x) is x
    y, ctx = rustbn.batch_norm_forward(x)
    assert rustbn.batch_norm_backward(y, ctx, out=y).dx is y


# Signatures.

SIGNATURES: dict[str, tuple[Callable[..., Any], str]] = {
    "batch_norm_backward": (rustbn.batch_norm_backward, "dy ctx | out needs"),
    "moments": (rustbn.moments, "x | axis mask lengths"),
    "backward_reduce": (rustbn.backward_reduce, "dy x moments | axis mask lengths"),
    "backward_apply": (
        rustbn.backward_apply,
        "dy x moments grad_sums weight eps | axis mask lengths out",
    ),
    "Moments": (rustbn.Moments, "count mean m2 |"),
    "Moments.merge": (rustbn.moments(np.ones((2, 1))).merge, "other |"),
    "Moments.var": (rustbn.moments(np.ones((2, 1))).var, "ddof |"),
    "Moments.invstd": (rustbn.moments(np.ones((2, 1))).invstd, "eps |"),
    "Moments.update_running": (
        rustbn.moments(np.ones((2, 1))).update_running,
        "running_mean running_var momentum |",
    ),
    "GradSums": (rustbn.GradSums, "sum_dy sum_dy_xmu |"),
    "Affine": (rustbn.Affine, "mean scale bias |"),
    "Affine.from_moments": (rustbn.Affine.from_moments, "moments weight bias eps |"),
    "Affine.from_running": (
        rustbn.Affine.from_running,
        "running_mean running_var weight bias eps |",
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_contract(name: str) -> None:
    function, contract = SIGNATURES[name]
    positional, keyword_only = (part.split() for part in contract.split("|"))
    parameters = inspect.signature(function).parameters
    defaults = {
        "axis": 1,
        "out": None,
        "mask": None,
        "lengths": None,
        "eps": 1e-5,
        "ddof": 0,
        "weight": None,
        "bias": None,
    }
    if name == "Affine":
        del defaults["bias"]
    defaults["needs"] = ("x", "weight", "bias", "residual")  # type: ignore[assignment]
    assert list(parameters) == positional + keyword_only
    for parameter in parameters.values():
        by_keyword = parameter.kind is parameter.KEYWORD_ONLY
        assert by_keyword == (parameter.name in keyword_only), parameter
        assert parameter.default == defaults.get(parameter.name, parameter.empty), parameter


def test_an_affine_is_called_with_x_and_keywords() -> None:
    p = cases.problem((4, 5, 5))
    affine = rustbn.Affine(p.running_mean, p.weight, p.bias)
    out = np.empty_like(p.x)
    assert affine(x=p.x, axis=1, out=out) is out
    assert_same_bits(out, affine(p.x))
    assert (affine(p.x, axis=2) != out).any()
    with pytest.raises(TypeError, match="positional"):
        affine(p.x, 1)  # type: ignore[call-arg]


def test_everything_is_importable_from_the_top_and_from_functional() -> None:
    from rustbn import functional

    for name in (
        *("batch_norm", "batch_norm_forward", "batch_norm_backward"),
        *("moments", "backward_reduce", "backward_apply"),
        *("Moments", "GradSums", "Affine", "Context", "Gradients"),
    ):
        assert getattr(rustbn, name) is getattr(functional, name)
        assert getattr(rustbn, name).__doc__


# What is kept alive.


def test_no_call_keeps_a_reference_that_it_should_not() -> None:
    p = cases.problem((6, 5, 7))
    out = np.empty_like(p.x)
    objects = (p.x, p.dy, p.weight, p.bias, p.running_mean, p.running_var, out, p.x.dtype)
    overlapping = p.x[:, ::-1]

    def everything() -> None:
        y, ctx = rustbn.batch_norm_forward(
            p.x, p.running_mean, p.running_var, p.weight, p.bias, out=out
        )
        assert y is out
        rustbn.batch_norm_backward(p.dy, ctx, out=out)
        m = rustbn.moments(p.x)
        sums = rustbn.backward_reduce(p.dy, p.x, m)
        rustbn.backward_apply(p.dy, p.x, m, sums, p.weight)
        rustbn.Affine.from_moments(m, p.weight, p.bias)(p.x, out=out)
        m.update_running(p.running_mean, p.running_var, 0.1)
        rustbn.batch_norm(p.x, p.running_mean, p.running_var, out=p.x)
        mistakes: list[dict[str, Any]] = [
            {"out": overlapping},
            {"weight": p.x},
            {"eps": -1.0},
            {"axis": 9},
        ]
        for bad in mistakes:
            with pytest.raises(ValueError, match=r"must|bounds"):
                rustbn.batch_norm(p.x, **{"training": True, **bad})

    everything()
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(20):
        everything()
    assert [sys.getrefcount(o) for o in objects][:-1] == before[:-1]
    assert sys.getrefcount(objects[-1]) <= before[-1] + 5  # others use this dtype as well


def test_memory_of_results_is_given_back() -> None:
    p = cases.problem((16, 8, 100))

    def once() -> None:
        y, ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight, p.bias)
        rustbn.batch_norm_backward(cases.gapped(p.dy, (1, 1, 2)), ctx)
        with pytest.raises(ValueError, match="dy"):
            rustbn.batch_norm_backward(y[:3], ctx)

    once()
    tracemalloc.start()
    try:
        once()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            once()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < p.x.nbytes / 2


def test_outputs_whose_elements_share_a_place_are_refused() -> None:
    p = cases.problem((6, 5, 7))
    out = np.lib.stride_tricks.as_strided(np.zeros(7, np.float32), (6, 5, 7), (0, 0, 4))
    with pytest.raises(ValueError, match=r"\bout\b.*place"):
        rustbn.batch_norm(p.x, training=True, out=out)
    mean = np.lib.stride_tricks.as_strided(np.zeros(1), (5,), (0,))
    with pytest.raises(ValueError, match=r"\brunning_mean\b.*place"):
        rustbn.batch_norm(p.x, mean, p.running_var.copy(), training=True)


# Shape and strides, in bytes, of float32: elements that share a place, or a part of it.
TANGLED = [
    ((4, 4), (8, 4)),
    ((4, 4), (-8, 4)),
    ((3, 4), (4, 2)),
    ((2, 2, 3), (12, 8, 4)),
    ((3, 4), (16, 10)),
]

# Axes that do not step over each other, and elements that are apart all the same.
INTERLEAVED = [((3, 2), (8, 12)), ((2, 3), (-12, 8)), ((2, 4, 3), (4, 24, 8))]


def strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    memory = np.zeros(64, np.float32)
    return np.lib.stride_tricks.as_strided(memory[24:], shape, strides)


@pytest.mark.parametrize(("shape", "strides"), TANGLED)
def test_outputs_whose_elements_overlap_are_refused(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    out = strided(shape, strides)
    with pytest.raises(ValueError, match=r"\bout\b.*place"):
        rustbn.batch_norm(x, training=True, out=out)
    assert not out.any()


@pytest.mark.parametrize(("shape", "strides"), INTERLEAVED)
def test_outputs_whose_elements_are_apart_are_taken(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    out = strided(shape, strides)
    assert rustbn.batch_norm(x, training=True, out=out) is out
    assert_same_bits(np.array(out), rustbn.batch_norm(x, training=True))


class Meddler:
    """An object whose ``__array__`` does something first."""

    def __init__(self, values: Array, meddle: Callable[[], object]) -> None:
        self.values, self.meddle = values, meddle

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        self.meddle()
        return self.values


def change(array: Array, attribute: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of what is done here
        setattr(array, attribute, value)


# What the code of one argument can do to another array.
MEDDLING: dict[str, Callable[[Array], None]] = {
    "wider elements": lambda a: change(a, "dtype", np.float64),
    "narrower elements": lambda a: change(a, "dtype", np.float16),
    "whole numbers": lambda a: change(a, "dtype", np.int32),
    "byte order": lambda a: change(a, "dtype", a.dtype.newbyteorder()),
    "shape": lambda a: change(a, "shape", (a.size // 8, 8)),
    "strides": lambda a: change(a, "strides", (4,) * a.ndim),
    "few": lambda a: a.resize((6, 2), refcheck=False),
    "none": lambda a: a.resize((0, 64), refcheck=False),
}


def arguments() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    matrices = {name: rng.standard_normal((64, 64)) for name in ("x", "residual", "out", "dy")}
    vectors = {name: np.ones(64) for name in ("mean", "var", "weight", "bias")}
    given = {name: array.astype(np.float32) for name, array in (matrices | vectors).items()}
    return given | {"mask": np.arange(64) % 3 > 0}


def batch_norm(training: bool, a: dict[str, Any]) -> Array:
    return rustbn.batch_norm(
        a["x"],
        a["mean"],
        a["var"],
        a["weight"],
        a["bias"],
        training=training,
        residual=a["residual"],
        mask=a["mask"],
        out=a["out"],
    )


MOMENTS = rustbn.Moments(7, np.zeros(64), np.ones(64))
SUMS = rustbn.GradSums(np.ones(64), np.ones(64))

CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "training": lambda a: batch_norm(True, a),
    "evaluation": lambda a: batch_norm(False, a),
    "moments": lambda a: rustbn.moments(a["x"], mask=a["mask"]).mean,
    "reduce": lambda a: rustbn.backward_reduce(a["dy"], a["x"], MOMENTS, mask=a["mask"]).sum_dy_xmu,
    "apply": lambda a: rustbn.backward_apply(
        a["dy"], a["x"], MOMENTS, SUMS, a["weight"], mask=a["mask"], out=a["out"]
    ),
    "affine": lambda a: rustbn.Affine(np.ones(64), np.ones(64), np.ones(64))(
        a["x"], residual=a["residual"], out=a["out"]
    ),
    "update": lambda a: MOMENTS.update_running(a["mean"], a["var"], 0.1),
}


def outcome(
    call: Callable[[dict[str, Any]], Any], given: dict[str, Any], memory: dict[str, Array]
) -> Any:
    """Return what a call returns and leaves in its arrays, or what it raises."""
    try:
        y = call(given)
    except (ValueError, TypeError) as error:
        return str(error)
    left = [memory[name].tobytes() for name in ("out", "mean", "var")]
    return [None if y is None else y.tobytes(), *left]


@pytest.mark.parametrize("what", MEDDLING)
@pytest.mark.parametrize("name", CALLS)
def test_what_an_argument_does_to_another_array_comes_before_the_call(name: str, what: str) -> None:
    for meddler in ("x", "dy", "mean", "var", "weight", "bias", "residual", "mask"):
        for victim in {"x", "dy", "mean", "weight", "residual", "out"} - {meddler}:
            expected, given = arguments(), arguments()
            memory = dict(given)
            done: list[str] = []

            def meddle(memory: Any = memory, victim: str = victim, done: Any = done) -> None:
                if not done:
                    MEDDLING[what](memory[victim])
                done.append(victim)

            meddled = {**given, meddler: Meddler(given[meddler], meddle)}
            found = outcome(CALLS[name], meddled, memory)
            if done:
                MEDDLING[what](expected[victim])
            assert found == outcome(CALLS[name], expected, expected), (meddler, victim)


@pytest.mark.parametrize("what", ["wider elements", "byte order", "shape", "strides", "few"])
@pytest.mark.parametrize("victim", ["x", "residual", "out", "mean"])
def test_a_part_whose_exchange_changes_an_array_is_refused(victim: str, what: str) -> None:
    if victim == "mean" and what in ("byte order", "strides"):
        pytest.skip("a vector of 64 values all the same")
    a = arguments()

    def merge(moments: rustbn.Moments) -> rustbn.Moments:
        MEDDLING[what](a[victim])
        return moments

    with pytest.raises(ValueError, match=r"left as it is|running_mean must have shape"):
        part_forward(
            merge, a["x"], a["mean"], a["var"], a["weight"], a["bias"], 0.1, 1e-5, 1, None,
            a["residual"], None, None, None, a["out"],
        )  # fmt: skip


@pytest.mark.parametrize("what", ["wider elements", "byte order", "shape", "strides", "few"])
@pytest.mark.parametrize("victim", ["dy", "out"])
def test_gradients_whose_exchange_changes_an_array_are_refused(victim: str, what: str) -> None:
    a = arguments()
    _, ctx = rustbn.batch_norm_forward(a["x"])

    def add(sums: rustbn.GradSums) -> rustbn.GradSums:
        MEDDLING[what](a[victim])
        return sums

    with pytest.raises(ValueError, match="left as it is"):
        part_backward(add, a["dy"], ctx, out=a["out"])


def test_an_interrupt_while_an_argument_is_made_an_array_is_no_other_error() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rustbn.moments(Meddler(np.ones((2, 2)), interrupt))


def test_running_statistics_in_any_byte_order_are_updated_whatever_numpy_raises() -> None:
    x = np.full((4, 2), 1e100)
    x[0] = 2e100
    for dtype in ("<f4", ">f4", "<f8", ">f8"):
        mean, var = np.zeros(2, dtype), np.ones(2, dtype)
        with np.errstate(all="raise"):
            rustbn.batch_norm(x, mean, var, training=True)
        narrow = mean.itemsize == 4
        assert np.all(np.isinf(mean)) if narrow else np.all((mean > 1e99) & (mean < 1e100)), dtype
        assert np.all(np.isinf(var)) if narrow else np.all((var > 1e198) & (var < 1e200)), dtype
