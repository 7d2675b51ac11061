"""Masks: only counted positions make statistics, every position is normalised with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import reduce
from itertools import permutations, product
from operator import add
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import (
    ULPS,
    assert_backward,
    assert_epilogue,
    assert_forward,
    assert_moments,
    assert_same_bits,
    assert_within,
    normalised_error,
    present,
    ulp,
)
from oracle import Array
from test_gradcheck import central_differences

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
every_arrangement = pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)

NAMES = ("dx", "dweight", "dbias", "dresidual")


def all_of(mask: Array, x: Array) -> Array:
    """Return the mask of each element of `x`."""
    return np.broadcast_to(mask, x.shape)


def padded(p: cases.Problem, mask: Array, value: Any) -> Array:
    """Return x with a value at the positions that do not count."""
    return np.where(mask, p.x, np.asarray(value, p.x.dtype))


def lengths_of(shape: tuple[int, ...], axis: int) -> Array:
    """Return lengths from 0 to the whole one, of which the first sample has it."""
    batch, last = batch_and_last(len(shape), axis)
    lengths = np.random.default_rng([1, *shape]).integers(0, shape[last] + 1, shape[batch])
    lengths[0] = shape[last]
    return lengths


def batch_and_last(ndim: int, axis: int) -> tuple[int, int]:
    """Return the first and the last axis that are not that of channels."""
    others = [i for i in range(ndim) if i != axis % ndim]
    return others[0], others[-1]


def mask_of_lengths(lengths: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Return the mask that lengths stand for, of x's rank."""
    ndim = len(shape)
    batch, last = batch_and_last(ndim, axis)
    along = oracle.per_channel(np.arange(shape[last]), ndim, last)
    mask = along < oracle.per_channel(lengths, ndim, batch)
    return np.broadcast_to(mask, [1 if i == axis % ndim else n for i, n in enumerate(shape)])


def masks(shape: tuple[int, ...], axis: int) -> Iterator[tuple[str, Array]]:
    """Yield masks of x's rank, each of which counts two positions at least."""
    yield "half", cases.mask(shape, axis)
    few, most = np.zeros_like(cases.mask(shape, axis)), np.ones_like(cases.mask(shape, axis))
    few.flat[np.linspace(few.size // 3, few.size - 1, 5, dtype=np.intp)] = True
    yield "few", few
    if most.size > 2:
        most.flat[most.size // 2] = False
        yield "all but one", most
    if len(shape) > 2 and shape[batch_and_last(len(shape), axis)[1]] > 1:
        yield "lengths", mask_of_lengths(lengths_of(shape, axis), shape, axis)


def forward(
    p: cases.Problem, mask: Array | None, x: Array | None = None, **options: Any
) -> tuple[Array, rustbn.Context]:
    return rustbn.batch_norm_forward(
        p.x if x is None else x, *p.copied_vectors(), axis=p.axis, mask=mask, **options
    )


def check(p: cases.Problem, mask: Array, what: str = "") -> None:
    """Compare all that a mask has a say in with the oracle, and the halves with the whole."""
    axis = p.axis
    exact = oracle.train(p.x, p.weight, p.bias, axis=axis, mask=mask)
    measured = oracle.moments(p.x, axis, np.longdouble, mask)
    m = rustbn.moments(p.x, axis=axis, mask=mask)
    assert m.count == measured[0]
    assert_moments(m.mean, m.m2, measured, what)

    mean, var, weight, bias = p.copied_vectors()
    y, ctx = rustbn.batch_norm_forward(p.x, mean, var, weight, bias, axis=axis, mask=mask)
    assert ctx.moments == m
    assert y.strides == p.x.strides
    assert_forward(y, exact, f"y {what}")
    unbiased = oracle.unbiased(p.x, axis, mask).astype(np.longdouble)
    for moved, old, batch in (
        (mean, p.running_mean, measured[1]),
        (var, p.running_var, unbiased),
    ):
        wanted = oracle.running(old, batch, 0.1)
        size = abs(batch) + np.sqrt(unbiased)
        allowed = ulp(wanted, moved.dtype) + 2 * ULPS * ulp(size, np.float64)
        assert_within(moved, wanted, allowed, f"running statistics {what}")

    gradients = rustbn.batch_norm_backward(p.dy, ctx)
    exact_gradients = oracle.train_backward(p.dy, p.x, p.weight, axis=axis, mask=mask)
    assert_backward(*gradients[:3], exact_gradients, what)
    sums = rustbn.backward_reduce(p.dy, p.x, m, axis=axis, mask=mask)
    dx = rustbn.backward_apply(p.dy, p.x, m, sums, p.weight, axis=axis, mask=mask)
    assert_same_bits(dx, gradients.dx, f"dx of the halves {what}")
    kind = cases.parameter_dtype(p.x.dtype)
    assert_same_bits(sums.sum_dy.astype(kind), gradients.dbias, f"dbias of the halves {what}")


# Against the oracle and PyTorch.


@every_dtype
@every_arrangement
def test_every_result_agrees_with_the_oracle(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    for name, mask in masks(shape, axis):
        check(p, mask, f"with {name}")


@pytest.mark.parametrize("dtype", cases.HALVES[:1] + cases.WIDE)
def test_planes_and_rows_of_every_length(dtype: npt.DTypeLike) -> None:
    for n in range(1, 140):
        for shape, axis in (((3, 2, n), 1), ((n + 2, 3), 1), ((2, n, 5), 2), ((5, n), 1)):
            check(cases.problem(shape, axis, dtype, 1), cases.mask(shape, axis), f"of {shape}")


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_axes_may_lie_in_memory_in_any_order(rank: int) -> None:
    shape = cases.SHAPE_OF_RANK[rank]
    for axis in range(rank):
        p = cases.problem(shape, axis)
        mask = cases.mask(shape, axis)
        x, dy = p.x, p.dy
        for order in permutations(range(rank)):
            p.x, p.dy = cases.in_order(x, order), cases.in_order(dy, order[::-1])
            check(p, mask, f"order {order} axis {axis}")


@pytest.mark.parametrize(("shape", "axis"), cases.LARGE)
def test_large_arrays_on_threads(shape: tuple[int, ...], axis: int) -> None:
    p = cases.problem(shape, axis)
    with rustbn.threads(3):
        for name, mask in masks(shape, axis):
            if name in ("half", "lengths"):
                check(p, mask, f"with {name}")


def by_autograd(
    p: cases.Problem,
    mask: Array,
    activation: oracle.Activation = None,
    residual: Array | None = None,
) -> list[Array]:
    """Differentiate the definition: statistics of what counts, everything normalised with them."""
    given = (p.x, p.weight, p.bias) if residual is None else (p.x, p.weight, p.bias, residual)
    inputs = [torch.from_numpy(v.astype(np.float64)).requires_grad_() for v in given]
    x, others = inputs[0], [i for i in range(p.x.ndim) if i != p.axis % p.x.ndim]
    counts = torch.from_numpy(all_of(mask, p.x).astype(np.float64))
    n = counts.sum(others, keepdim=True)
    mean = (x * counts).sum(others, keepdim=True) / n
    var = ((x - mean) ** 2 * counts).sum(others, keepdim=True) / n
    along = [-1 if i == p.axis % p.x.ndim else 1 for i in range(p.x.ndim)]
    weight, bias = (v.reshape(along) for v in inputs[1:3])
    y = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
    if residual is not None:
        y = y + inputs[3]
    if activation is not None:
        slope = activation[1] if isinstance(activation, tuple) else 0.0
        y = torch.where(y > 0, y, y * slope)
    dy = torch.from_numpy(p.dy.astype(np.float64))
    gradients = torch.autograd.grad(y, inputs, dy)
    return [y.detach().numpy(), *(gradient.numpy() for gradient in gradients)]


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((9, 4), 1), ((5, 4, 6), 1), ((5, 6, 4), -1), ((3, 4, 5, 6), 1)]
)
def test_every_result_agrees_with_autograd(
    shape: tuple[int, ...], axis: int, activation: oracle.Activation, with_residual: bool
) -> None:
    p = cases.problem(shape, axis, np.float64)
    residual = cases.problem(shape, axis, np.float64, seed=1).x if with_residual else None
    for name, mask in masks(shape, axis):
        y, ctx = forward(p, mask, activation=activation, residual=residual)
        expected = by_autograd(p, mask, activation, residual)
        found = [y, *rustbn.batch_norm_backward(p.dy, ctx)]
        for ours, theirs in zip(found, expected, strict=False):
            scale = abs(theirs).max()
            np.testing.assert_allclose(
                present(ours), theirs, rtol=0, atol=1e-12 * scale, err_msg=name
            )


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 3), 1), ((3, 2, 4), 1), ((4, 5), 0), ((2, 3, 2, 3), 3)]
)
def test_gradients_are_slopes(
    shape: tuple[int, ...], axis: int, activation: oracle.Activation
) -> None:
    p = cases.problem(shape, axis, np.float64)
    mask = cases.mask(shape, axis)
    # Finite differences are off where a step crosses the corner.
    z = oracle.train(p.x, p.weight, p.bias, axis=axis, mask=mask).y
    assert activation is None or abs(z).min() > 1e-3

    def loss(x: Array, weight: Array, bias: Array) -> float:
        options: dict[str, Any] = {"axis": axis, "activation": activation, "mask": mask}
        y = rustbn.batch_norm(x, None, None, weight, bias, True, **options)
        return float((y * p.dy).sum())

    _, ctx = forward(p, mask, activation=activation)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    for name, gradient, slope in (
        ("dx", dx, central_differences(lambda x: loss(x, p.weight, p.bias), p.x)),
        ("dweight", dweight, central_differences(lambda w: loss(p.x, w, p.bias), p.weight)),
        ("dbias", dbias, central_differences(lambda b: loss(p.x, p.weight, b), p.bias)),
    ):
        np.testing.assert_allclose(present(gradient), slope, rtol=1e-6, atol=1e-6, err_msg=name)


@every_dtype
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", oracle.GATES, ids=str)
def test_activation_and_residual_agree_with_the_oracle(
    activation: oracle.Activation, with_residual: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS[::2]:
        p = cases.problem(shape, axis, dtype)
        mask = cases.mask(shape, axis)
        residual = cases.problem(shape, axis, dtype, seed=1).x if with_residual else None
        exact = oracle.train(p.x, p.weight, p.bias, axis=axis, mask=mask)
        y, ctx = forward(p, mask, activation=activation, residual=residual)
        error = assert_epilogue(y, exact, residual, activation, f"y {shape}")
        z = exact.y if residual is None else exact.y + residual.astype(exact.y.dtype)
        close = [abs(z - corner) <= error for corner in oracle.corners(activation)]
        dy = np.where(np.any(close, axis=0) if close else False, p.dy.dtype.type(0), p.dy)
        # The product with a slope is rounded to float32 first where dy has 16 bits.
        wide = dy.astype(cases.parameter_dtype(dtype))
        dz = oracle.gate_backward(wide, z, activation).astype(dtype)
        dx, dweight, dbias, dresidual = rustbn.batch_norm_backward(dy, ctx)
        exact_gradients = oracle.train_backward(dz, p.x, p.weight, axis=axis, mask=mask)
        assert_backward(dx, dweight, dbias, exact_gradients, f"{shape}")
        assert_same_bits(dresidual, None if residual is None else dz, f"dresidual {shape}")


# What does not count.


@every_dtype
@every_arrangement
@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf, "largest"], ids=str)
def test_padding_is_not_read(
    shape: tuple[int, ...], axis: int, spoil: Any, dtype: npt.DTypeLike
) -> None:
    """Whatever stands where nothing counts and no gradient arrives, nothing else feels it."""
    spoil = cases.largest(dtype) if spoil == "largest" else spoil
    p = cases.problem(shape, axis, dtype)
    for name, mask in masks(shape, axis):
        p.dy = np.where(mask, p.dy, np.asarray(0, dtype))
        p.dy[~all_of(mask, p.x) & (p.x > 0)] = -0.0
        clean, spoilt = padded(p, mask, 0), padded(p, mask, spoil)
        (y, ctx), (y_, ctx_) = forward(p, mask, clean), forward(p, mask, spoilt)
        assert ctx_.moments == ctx.moments
        here = all_of(mask, p.x)
        assert_same_bits(y_[here], y[here], f"y with {name}")
        for part, a, b in zip(
            NAMES,
            rustbn.batch_norm_backward(p.dy, ctx_),
            rustbn.batch_norm_backward(p.dy, ctx),
            strict=True,
        ):
            assert_same_bits(a, b, f"{part} with {name}")
        m = present(ctx.moments)
        sums = [rustbn.backward_reduce(p.dy, x, m, axis=axis, mask=mask) for x in (clean, spoilt)]
        assert sums[0] == sums[1]


@every_dtype
def test_padding_that_is_nan_is_normalised_to_nan_and_nothing_else_is(dtype: npt.DTypeLike) -> None:
    p = cases.problem((5, 4, 9), 1, dtype)
    mask = cases.mask(p.x.shape, 1)
    y, _ = forward(p, mask, padded(p, mask, np.nan))
    assert (np.isnan(y) == ~all_of(mask, p.x)).all()


@every_dtype
@every_arrangement
def test_the_gradient_of_what_does_not_count_is_that_of_an_affine(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    mask = cases.mask(shape, axis)
    _, ctx = forward(p, mask)
    dx = present(rustbn.batch_norm_backward(p.dy, ctx).dx)
    wide = cases.parameter_dtype(dtype)
    scale = oracle.per_channel(present(ctx.affine).scale.astype(wide), p.x.ndim, axis)
    elsewhere = ~all_of(mask, p.x)
    expected = (p.dy.astype(wide) * scale).astype(dtype)
    np.testing.assert_array_equal(dx[elsewhere], expected[elsewhere])


def test_a_gradient_from_padding_moves_the_statistics() -> None:
    """One position of no account has a gradient: what makes the statistics gets some of it."""
    x = np.array([[1.0], [3.0], [4.0]])
    mask = np.array([True, True, False])
    _, ctx = rustbn.batch_norm_forward(x, eps=1e-300, mask=mask)  # mean 2, variance 1, y = x - 2
    dx, *_ = rustbn.batch_norm_backward(np.array([[0.0], [0.0], [1.0]]), ctx)
    # y[2] = (x[2] - mean) / std: mean has the slope 1/2 in both, std that of (x - mean) / 2.
    np.testing.assert_allclose(present(dx)[:, 0], [-0.5 + 1.0, -0.5 - 1.0, 1.0], atol=1e-15)


@every_dtype
def test_nan_from_above_spoils_its_channel_wherever_it_comes_from(dtype: npt.DTypeLike) -> None:
    p = cases.problem((5, 4, 9), 1, dtype)
    mask = cases.mask(p.x.shape, 1)
    n, _, i = np.argwhere(~mask)[0]
    p.dy[n, 2, i] = np.nan
    _, ctx = forward(p, mask)
    dx, dweight, dbias = (present(g) for g in rustbn.batch_norm_backward(p.dy, ctx)[:3])
    assert np.isnan(dweight).tolist() == np.isnan(dbias).tolist() == [False, False, True, False]
    expected = all_of(mask, p.x) & (np.arange(4) == 2)[:, None]
    expected[n, 2, i] = True
    assert (np.isnan(dx) == expected).all()


@every_dtype
def test_hard_data_in_worse_padding(dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.HARD_ARRANGEMENTS:
        x = cases.stack_channels(list(cases.hard_channels(1554, dtype).values()), shape, axis)
        p = cases.problem(x.shape, axis, dtype)
        p.x = x
        mask = cases.mask(x.shape, axis)
        m = rustbn.moments(padded(p, mask, np.nan), axis=axis, mask=mask)
        exact = oracle.moments(x, axis, np.longdouble, mask)
        assert_moments(m.mean, m.m2, exact, f"{shape}")
        _, ctx = forward(p, mask)
        gradients = rustbn.batch_norm_backward(p.dy, ctx)
        exact_gradients = oracle.train_backward(p.dy, x, p.weight, axis=axis, mask=mask)
        assert_backward(*gradients[:3], exact_gradients, f"{shape}")


@every_dtype
def test_a_channel_of_one_constant_among_other_values_gives_exactly_bias(
    dtype: npt.DTypeLike,
) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)
        mask = cases.mask(shape, axis)
        for constant in cases.constants(dtype):
            x = np.where(mask, np.asarray(constant, dtype), p.x)
            y, ctx = forward(p, mask, x)
            assert (present(ctx.moments).m2 == 0).all()
            bias = np.broadcast_to(oracle.per_channel(p.bias, x.ndim, axis), shape)
            here = all_of(mask, x)
            np.testing.assert_array_equal(y[here], bias[here])


# A mask that says nothing.


@every_dtype
@every_arrangement
def test_a_mask_that_counts_all_gives_the_bits_of_none(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    everything = np.ones_like(cases.mask(shape, axis))
    masked: dict[str, Any] = {"axis": axis, "mask": everything}
    found = []
    for options in (masked, {"axis": axis}):
        mean, var, weight, bias = p.copied_vectors()
        y, ctx = rustbn.batch_norm_forward(
            p.x, mean, var, weight, bias, activation="relu", residual=p.dy, **options
        )
        m = rustbn.moments(p.x, **options)
        sums = rustbn.backward_reduce(p.dy, p.x, m, **options)
        dx = rustbn.backward_apply(p.dy, p.x, m, sums, p.weight, **options)
        assert ctx.moments == m
        gradients = rustbn.batch_norm_backward(p.dy, ctx)
        halves = m.mean, m.m2, sums.sum_dy, sums.sum_dy_xmu, dx
        found.append([y, mean, var, *gradients, *halves])
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


@every_dtype
@pytest.mark.parametrize("activation", [None, "relu"])
def test_running_statistics_do_not_feel_a_mask_in_evaluation(
    activation: oracle.Activation, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((5, 4, 9), 1, dtype)
    stats = p.running_mean.copy(), p.running_var.copy()
    plain = forward(p, None, training=False, activation=activation)
    for mask in (cases.mask(p.x.shape, 1), np.zeros((5, 1, 9), np.bool_)):
        y, ctx = forward(p, mask, training=False, activation=activation)
        assert_same_bits(y, plain[0])
        for a, b in zip(
            rustbn.batch_norm_backward(p.dy, ctx),
            rustbn.batch_norm_backward(p.dy, plain[1]),
            strict=True,
        ):
            assert_same_bits(a, b)
        called = rustbn.batch_norm(p.x, *p.vectors, activation=activation, mask=mask)
        assert_same_bits(called, plain[0])
    assert_same_bits(p.running_mean, stats[0])
    assert_same_bits(p.running_var, stats[1])


# Forms.


def forms(mask: Array, axis: int) -> Iterator[tuple[str, Any]]:
    """Yield what says the same as a mask of x's rank."""
    without = mask.squeeze(axis)
    for rank, values in (("x's rank", mask), ("no channel axis", without)):
        yield rank, values
        yield f"{rank}, backwards", cases.reversed_along(values, tuple(range(values.ndim)))
        yield f"{rank}, transposed", np.asfortranarray(values)
        wide = np.zeros([3 * n for n in values.shape], np.bool_)
        wide[tuple(slice(1, None, 3) for _ in values.shape)] = values
        yield f"{rank}, gaps", wide[tuple(slice(1, None, 3) for _ in values.shape)]
        yield f"{rank}, odd strides", cases.with_odd_strides_of_length_one(values)
        read_only = values.copy()
        read_only.flags.writeable = False
        yield f"{rank}, read-only", read_only
        if values.flags.c_contiguous:
            yield f"{rank}, a tensor", torch.from_numpy(values.copy())


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((70, 3), 1), ((4, 70), 0), ((5, 3, 70), 1), ((5, 7, 3), -1), ((3, 4, 5, 6), 1),
     ((3, 5, 6, 4), 3), ((2, 3, 2, 3, 2), 2)],
)  # fmt: skip
def test_a_mask_may_come_in_many_forms(shape: tuple[int, ...], axis: int) -> None:
    p = cases.problem(shape, axis)
    x = p.x
    mask = cases.mask(shape, axis)
    for order in list(permutations(range(len(shape))))[:12]:
        p.x = cases.in_order(x, order)
        y, ctx = forward(p, mask)
        dx = rustbn.batch_norm_backward(p.dy, ctx).dx
        for name, form in forms(mask, axis):
            y_, ctx_ = forward(p, form)
            assert_same_bits(y_, y, f"{name}, order {order}")
            assert_same_bits(rustbn.batch_norm_backward(p.dy, ctx_).dx, dx, name)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 5), 1), ((6, 4, 5, 3), 3), ((3, 6, 5), 0)])
def test_a_mask_may_be_one_long_along_any_axis(shape: tuple[int, ...], axis: int) -> None:
    p = cases.problem(shape, axis)
    others = [i for i in range(len(shape)) if i != axis]
    for repeated in product([False, True], repeat=len(others)):
        short = [1] * len(shape)
        for i, is_repeated in zip(others, repeated, strict=True):
            short[i] = 1 if is_repeated else shape[i]
        mask = np.ones(short, np.bool_)
        mask.flat[: mask.size // 3] = False
        whole = np.broadcast_to(mask, [1 if i == axis else n for i, n in enumerate(shape)])
        y, ctx = forward(p, whole.copy())
        for form in (mask, mask.squeeze(axis), whole):
            y_, ctx_ = forward(p, form)
            assert_same_bits(y_, y, f"mask {mask.shape}")
            assert ctx_.moments == ctx.moments


@every_dtype
def test_lengths_have_the_bits_of_their_mask(dtype: npt.DTypeLike) -> None:
    for rank in (3, 4, 5):
        shape = cases.SHAPE_OF_RANK[rank]
        for axis in range(rank):
            p = cases.problem(shape, axis, dtype)
            x = p.x
            lengths = lengths_of(shape, axis)
            mask = mask_of_lengths(lengths, shape, axis)
            for order in permutations(range(rank)):
                p.x = cases.in_order(x, order)
                y, ctx = forward(p, mask)
                y_, ctx_ = forward(p, None, lengths=lengths)
                what = f"{shape} axis {axis} order {order}"
                assert_same_bits(y_, y, what)
                assert ctx_.moments == ctx.moments, what
                for a, b in zip(
                    rustbn.batch_norm_backward(p.dy, ctx_),
                    rustbn.batch_norm_backward(p.dy, ctx),
                    strict=True,
                ):
                    assert_same_bits(a, b, what)


def test_lengths_go_wherever_a_mask_goes() -> None:
    p = cases.problem((6, 4, 70))
    lengths = lengths_of(p.x.shape, 1)
    mask = mask_of_lengths(lengths, p.x.shape, 1)
    assert_same_bits(
        rustbn.batch_norm(p.x, training=True, lengths=lengths),
        rustbn.batch_norm(p.x, training=True, mask=mask),
    )
    m = rustbn.moments(p.x, lengths=lengths)
    assert m == rustbn.moments(p.x, mask=mask)
    sums = rustbn.backward_reduce(p.dy, p.x, m, lengths=lengths)
    assert sums == rustbn.backward_reduce(p.dy, p.x, m, mask=mask)
    dx = rustbn.backward_apply(p.dy, p.x, m, sums, lengths=lengths)
    assert_same_bits(dx, rustbn.backward_apply(p.dy, p.x, m, sums, mask=mask))


def test_lengths_may_be_any_whole_numbers() -> None:
    p = cases.problem((6, 4, 70))
    lengths = [70, 0, 1, 63, 64, 65]
    y, _ = forward(p, None, lengths=lengths)
    numbers: list[Any] = [tuple(lengths), np.array(lengths)[::-1][::-1], torch.tensor(lengths)]
    numbers += [np.array(lengths, kind) for kind in "bBhHiIlLqQ"]
    numbers += [np.array(lengths, ">i4"), np.repeat(lengths, 3)[::3]]
    for same in numbers:
        assert_same_bits(forward(p, None, lengths=same)[0], y, repr(same))


# What a mask leaves as it is.


@every_dtype
def test_out_in_place_and_needs_change_no_bit(dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS[::3]:
        p = cases.problem(shape, axis, dtype)
        mask = cases.mask(shape, axis)
        y, ctx = forward(p, mask)
        x = p.x.copy()
        arguments: dict[str, Any] = {"training": True, "axis": axis, "mask": mask, "out": x}
        assert rustbn.batch_norm(x, *p.copied_vectors(), **arguments) is x
        assert_same_bits(x, y, f"in place {shape}")
        out = cases.gapped(np.zeros_like(p.x), (2,) * p.x.ndim)
        assert forward(p, mask, out=out)[0] is out
        assert_same_bits(out, y, f"out {shape}")
        whole = rustbn.batch_norm_backward(p.dy, ctx)
        dy = p.dy.copy()
        assert rustbn.batch_norm_backward(dy, ctx, out=dy).dx is dy
        assert_same_bits(dy, whole.dx, f"dx in place {shape}")
        for needs in ("x", "weight", "bias"):
            some = rustbn.batch_norm_backward(p.dy, ctx, needs=(needs,))
            name = f"d{needs}"
            assert_same_bits(getattr(some, name), getattr(whole, name), f"{name} alone {shape}")


def test_a_mask_is_captured_by_forward() -> None:
    p = cases.problem((6, 4, 70))
    mask = cases.mask(p.x.shape, 1).copy()
    before = mask.copy()
    _, ctx = forward(p, mask)
    dx = rustbn.batch_norm_backward(p.dy, ctx).dx
    assert_same_bits(mask, before)
    mask[...] = True
    assert_same_bits(rustbn.batch_norm_backward(p.dy, ctx).dx, dx)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 3, 0)])
def test_an_empty_batch_may_have_an_empty_mask(shape: tuple[int, ...]) -> None:
    p = cases.problem((4, 3, 5))
    mean, var, weight, bias = p.copied_vectors()
    x = np.empty(shape, np.float32)
    counted: tuple[dict[str, Any], ...] = (
        {"mask": np.ones((shape[0], shape[2]), np.bool_)},
        {"mask": np.zeros((1, 1, 1), np.bool_)},
        {"lengths": [0] * shape[0]},
    )
    for which in counted:
        y, ctx = rustbn.batch_norm_forward(x, mean, var, weight, bias, **which)
        assert y.shape == shape
        assert rustbn.moments(x, **which).count == 0
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(x, ctx)
        assert present(dx).shape == shape
        assert not present(dweight).any()
        assert not present(dbias).any()
    assert_same_bits(mean, p.running_mean)
    assert_same_bits(var, p.running_var)


def test_moments_count_any_number() -> None:
    x = cases.problem((6, 4, 5)).x
    nothing = rustbn.moments(x, mask=np.zeros((6, 5), np.bool_))
    assert nothing == rustbn.moments(x[:0])
    one = rustbn.moments(x, lengths=[0, 0, 1, 0, 0, 0])
    assert one == rustbn.moments(x[2:3, :, :1])


# Parts.


@every_dtype
@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_masked_batch_are_the_whole(seed: int, dtype: npt.DTypeLike) -> None:
    rng = np.random.default_rng(seed)
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype, seed)
        mask = cases.mask(shape, axis)
        along = batch_and_last(len(shape), axis)[int(rng.integers(2))]
        edges = np.sort(rng.integers(0, shape[along] + 1, 5))
        cut = [
            tuple(np.split(values, edges, axis=along)) for values in (p.x, p.dy, mask)
        ]  # some are empty
        parts = list(zip(*cut, strict=True))
        options: dict[str, Any] = {"axis": axis}
        whole = reduce(
            rustbn.Moments.merge, [rustbn.moments(x, mask=m, **options) for x, _, m in parts]
        )
        exact = oracle.moments(p.x, axis, np.longdouble, mask)
        assert whole.count == exact[0]
        assert_moments(whole.mean, whole.m2, exact, f"{shape}", merged=True)

        sums = reduce(
            add, [rustbn.backward_reduce(dy, x, whole, mask=m, **options) for x, dy, m in parts]
        )
        dy = oracle.rows(p.dy, axis, np.longdouble)
        xmu = oracle.rows(p.x, axis, np.longdouble) - whole.mean[:, None]
        for name, found, terms in (
            ("sum_dy", sums.sum_dy, dy),
            ("sum_dy_xmu", sums.sum_dy_xmu, dy * xmu),
        ):
            allowed = ULPS * ulp(abs(terms).sum(axis=1), np.float64)
            assert_within(found, terms.sum(axis=1), allowed, f"{name} of {shape}")

        dx = np.concatenate(
            [
                rustbn.backward_apply(dy, x, whole, sums, p.weight, mask=m, **options)
                for x, dy, m in parts
            ],
            axis=along,
        )
        gradients = oracle.train_backward(p.dy, p.x, p.weight, axis=axis, mask=mask)
        assert_backward(dx, None, None, gradients, f"{shape}")


# Modules.


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("momentum", [0.25, None])
@pytest.mark.parametrize("by", ["mask", "lengths"])
def test_a_module_has_the_statistics_of_what_counts(
    by: str, momentum: float | None, convention: str
) -> None:
    p = cases.problem((6, 4, 9), dtype=np.float64)
    options: dict[str, Any] = {"eps": 1e-5, "momentum": momentum, "convention": convention}
    bn = rustbn.BatchNorm1d(4, dtype=np.float64, **options)
    bn.weight, bn.bias = p.weight.copy(), p.bias.copy()
    lengths = [9, 0, 1, 5, 4, 2]
    mask = mask_of_lengths(np.array(lengths), p.x.shape, 1)
    which: dict[str, Any] = {by: mask if by == "mask" else lengths}
    y = bn(padded(p, mask, np.nan), **which)
    here = all_of(mask, p.x)
    exact = oracle.train(p.x, p.weight, p.bias, mask=mask)
    error = np.broadcast_to(normalised_error(exact, np.float64), here.shape)
    assert_within(y[here], exact.y[here], error[here])
    p.dy[~here] = 0
    dx = bn.backward(p.dy)
    gradients = oracle.train_backward(p.dy, p.x, p.weight, mask=mask)
    assert_backward(dx, bn.weight_grad, bn.bias_grad, gradients)
    assert bn.num_batches_tracked == 1
    count, mean, m2 = oracle.moments(p.x, mask=mask)
    # The first batch of a cumulative average is all of it; Keras weighs the old average by 0.25.
    share = 1.0 if momentum is None else 0.25 if convention == "torch" else 0.75
    var = m2 / (count - (convention == "torch"))
    for found, wanted in (
        (bn.running_mean, share * mean),
        (bn.running_var, 1 - share + share * var),
    ):
        np.testing.assert_allclose(present(found), wanted.astype(float), rtol=1e-14)


def test_a_module_takes_masks_in_all_modes() -> None:
    p = cases.problem((6, 4, 9))
    mask, lengths = cases.mask(p.x.shape, 1), lengths_of(p.x.shape, 1)
    bn = rustbn.BatchNorm(4, activation="relu")
    bn(p.x, mask=mask)
    twin = copy.deepcopy(bn)
    before = bn.state_dict()
    assert_same_bits(bn(p.x, mask=mask, residual=p.dy, update=False),
                     twin(p.x, mask=mask, residual=p.dy))  # fmt: skip
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)
    for a, b in zip(bn.backward(p.dy), twin.backward(p.dy), strict=True):
        assert_same_bits(a, b)
    for mode in (bn.freeze, bn.unfreeze().eval):
        mode()
        assert_same_bits(bn(p.x, lengths=lengths), bn(p.x))
    untracked = rustbn.BatchNorm(4, track_running_stats=False).eval()
    assert_same_bits(untracked(p.x, mask=mask), rustbn.batch_norm(p.x, training=True, mask=mask))


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_padding_that_is_nan_is_no_cause_to_refuse(policy: str) -> None:
    p = cases.problem((6, 4, 9))
    mask = cases.mask(p.x.shape, 1)
    bn, plain = rustbn.BatchNorm(4, on_nonfinite=policy), rustbn.BatchNorm(4)
    bn(padded(p, mask, np.nan), mask=mask)
    plain(p.x, mask=mask)
    for name, value in plain.state_dict().items():
        assert_same_bits(bn.state_dict()[name], value, name)


def test_a_module_that_refuses_a_mask_is_as_before() -> None:
    p = cases.problem((6, 4, 9))
    bn = rustbn.BatchNorm(4)
    bn(p.x)
    dx = bn.backward(p.dy)
    before = bn.state_dict()
    bad: tuple[dict[str, Any], ...] = (
        {"mask": np.ones((6, 9))},
        {"mask": np.ones((6, 8), np.bool_)},
        {"mask": np.zeros((6, 9), np.bool_)},
        {"lengths": [1] * 5},
        {"lengths": [10] * 6},
        {"lengths": [0, 0, 1, 0, 0, 0]},
        {"lengths": [1] * 6, "mask": np.ones((6, 9), np.bool_)},
    )
    for wrong in bad:
        with pytest.raises((TypeError, ValueError), match=r"^(mask|lengths) must"):
            bn(p.x, **wrong)
        for name, value in bn.state_dict().items():
            assert_same_bits(value, before[name], name)
    assert_same_bits(bn.backward(p.dy), dx)  # still of the forward before
