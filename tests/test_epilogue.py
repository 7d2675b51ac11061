"""Residual and activation after the normalisation, forward and backward.

The oracle computes them with a wider z than ours. Where the two could lie on either side of a
corner, the gradient from above is set to 0, so that nothing depends on the side.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import assert_backward, assert_epilogue, assert_same_bits, present, ulp
from oracle import GATES, SMOOTH, Activation, Array
from test_gradcheck import central_differences

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
both_modes = pytest.mark.parametrize("training", [True, False])
with_and_without_residual = pytest.mark.parametrize("with_residual", [True, False])
every_gate = pytest.mark.parametrize("activation", GATES)
every_smooth = pytest.mark.parametrize("activation", SMOOTH)

NAMES = ("x", "weight", "bias", "residual")
SHAPE = (6, 5, 7)


def residual_like(p: cases.Problem) -> Array:
    rng = np.random.default_rng([7, *p.x.shape])
    return (2 * rng.standard_normal(p.x.shape)).astype(p.x.dtype)


def forward(
    p: cases.Problem,
    training: bool = True,
    activation: Activation = "relu",
    residual: Array | None = None,
) -> tuple[Array, rustbn.Context]:
    return rustbn.batch_norm_forward(
        p.x,
        *p.copied_vectors(),
        training,
        axis=p.axis,
        activation=activation,
        residual=residual,
    )


def normalised(p: cases.Problem, training: bool) -> oracle.Forward:
    if training:
        return oracle.train(p.x, p.weight, p.bias, axis=p.axis)
    stats = p.running_mean, p.running_var
    return oracle.normalise(p.x, *stats, p.weight, p.bias, axis=p.axis)


def gradients(p: cases.Problem, training: bool, dz: Array) -> oracle.Backward:
    if training:
        return oracle.train_backward(dz, p.x, p.weight, axis=p.axis)
    stats = p.running_mean, p.running_var
    return oracle.eval_backward(dz, p.x, *stats, p.weight, axis=p.axis)


def away_from_corners(dy: Array, z: Array, activation: Activation, distance: Any) -> Array:
    """Return dy with 0 where z is close to a corner."""
    close = [abs(z - corner) <= distance for corner in oracle.corners(activation)]
    kept = np.where(np.any(close, axis=0) if close else False, dy.dtype.type(0), dy)
    assert np.count_nonzero(kept) > 0.9 * dy.size - 2
    return np.asarray(kept, dy.dtype)


# Against the oracle and against PyTorch.


@both_dtypes
@both_modes
@pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)
def test_every_result_agrees_with_the_oracle(
    shape: tuple[int, ...], axis: int, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    exact = normalised(p, training)
    some = residual_like(p)
    for activation, residual in product(GATES, (None, some)):
        what = f"{activation}{'' if residual is None else ' after a residual'}"
        y, ctx = forward(p, training, activation, residual)
        error = assert_epilogue(y, exact, residual, activation, what)
        z = exact.y if residual is None else exact.y + residual
        dy = away_from_corners(p.dy, z, activation, error)
        dx, dweight, dbias, dresidual = rustbn.batch_norm_backward(dy, ctx)
        dz = oracle.gate_backward(dy, z, activation)
        assert_backward(dx, dweight, dbias, gradients(p, training, dz), what)
        assert_same_bits(dresidual, None if residual is None else dz, f"dresidual {what}")


@both_dtypes
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 3, 0, 2)])
@both_modes
@with_and_without_residual
@every_gate
def test_every_result_agrees_with_autograd(
    activation: Activation,
    with_residual: bool,
    training: bool,
    order: tuple[int, ...],
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem((8, 5, 6, 7), 1, dtype)
    p.x = cases.in_order(p.x, order)
    residual = residual_like(p) if with_residual else None
    z = normalised(p, training).y
    z = z if residual is None else z + residual
    dy = away_from_corners(p.dy, z, activation, 1e-4)

    def wide(values: Array) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float64)).requires_grad_()

    inputs = [wide(p.x), wide(p.weight), wide(p.bias)]
    stats = [torch.tensor(v, dtype=torch.float64) for v in (p.running_mean, p.running_var)]
    z_ = torch.nn.functional.batch_norm(inputs[0], *stats, *inputs[1:], training)
    if residual is not None:
        inputs.append(wide(residual))
        z_ = z_ + inputs[-1]
    if isinstance(activation, tuple):
        y_ = torch.nn.functional.leaky_relu(z_, activation[1])
    else:
        y_ = z_ if activation is None else getattr(torch.nn.functional, activation)(z_)
    theirs = torch.autograd.grad(y_, inputs, torch.from_numpy(dy.astype(np.float64)))

    y, ctx = forward(p, training, activation, residual)
    ours = rustbn.batch_norm_backward(dy, ctx)
    assert y.strides == p.x.strides
    tolerance = 64 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, y_.detach(), rtol=tolerance, atol=4 * tolerance)
    for name, mine, their in zip(NAMES, ours, theirs, strict=False):
        scale = their.abs().max().item()
        np.testing.assert_allclose(
            present(mine), their, rtol=tolerance, atol=4 * tolerance * scale, err_msg=name
        )
    assert (ours.dresidual is None) == (residual is None)


@both_dtypes
@both_modes
@with_and_without_residual
@every_gate
def test_one_pass_gives_the_bits_of_three(
    activation: Activation, with_residual: bool, training: bool, dtype: npt.DTypeLike
) -> None:
    # These dtypes are their own precision: what is rounded between the passes was rounded anyway.
    for shape, axis in cases.ARRANGEMENTS[::2]:
        p = cases.problem(shape, axis, dtype)
        residual = residual_like(p) if with_residual else None
        z, plain = forward(p, training, None)
        z = z if residual is None else z + residual
        expected = np.asarray(oracle.activate(z, activation), dtype)
        y, ctx = forward(p, training, activation, residual)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(
            rustbn.batch_norm(
                p.x,
                *p.copied_vectors(),
                training,
                axis=axis,
                activation=activation,
                residual=residual,
            ),
            y,
        )
        grads = rustbn.batch_norm_backward(p.dy, ctx)
        dz = oracle.gate_backward(p.dy, z, activation)
        for name, one, three in zip(
            NAMES, grads[:3], rustbn.batch_norm_backward(dz, plain)[:3], strict=False
        ):
            assert_same_bits(one, three, f"d{name} {shape}")
        if not training:
            affine = rustbn.Affine.from_running(*p.vectors)
            fused = affine(p.x, axis=axis, activation=activation, residual=residual)
            assert_same_bits(fused, y, f"Affine {shape}")


@both_dtypes
@with_and_without_residual
@every_smooth
def test_smooth_activations_agree_with_the_oracle_in_inference(
    activation: Activation, with_residual: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)
        residual = residual_like(p) if with_residual else None
        fused: dict[str, Any] = {"axis": axis, "activation": activation, "residual": residual}
        y = rustbn.batch_norm(p.x, *p.vectors, **fused)
        assert_epilogue(y, normalised(p, False), residual, activation, f"{activation} {shape}")
        assert_same_bits(rustbn.Affine.from_running(*p.vectors)(p.x, **fused), y)


def everywhere(dtype: npt.DTypeLike) -> Array:
    """Return numbers of every size, dense where activations bend."""
    info = np.finfo(dtype)
    sizes = np.geomspace(info.tiny, info.max / 2, 40_000)
    subnormal = np.arange(1, 100) * float(info.smallest_subnormal)
    ends = np.array([0.0, info.max, np.inf, info.smallest_normal])
    positive = np.concatenate([sizes, subnormal, ends, np.linspace(0, 800, 200_001)])
    near = np.linspace(-10, 10, 200_001)
    return np.concatenate([positive, -positive, near]).astype(dtype)


@both_dtypes
@every_smooth
def test_smooth_activations_are_rounded_well_everywhere(
    activation: str, dtype: npt.DTypeLike
) -> None:
    z = everywhere(dtype)
    one = rustbn.Affine(np.zeros(1), np.ones(1), np.zeros(1))
    y = one(z[:, None], activation=activation)[:, 0]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        exact = oracle.activate(z.astype(np.longdouble), activation)
        error = abs(y - exact) / ulp(exact, dtype)
    error = error[np.isfinite(z)]
    assert error.size > z.size - 10
    assert error.max() <= (0.51 if dtype is np.float32 else 2)
    limits = {
        "sigmoid": [1.0, 0.0],
        "tanh": [1.0, -1.0],
        "silu": [np.inf, -0.0],  # the limit, where the formula has infinity / infinity
        "hardswish": [np.inf, np.nan],
    }[activation]
    ends = np.array([[np.inf], [-np.inf]], dtype)
    assert_same_bits(one(ends, activation=activation)[:, 0], np.array(limits, dtype))


@both_dtypes
@pytest.mark.parametrize("activation", [*GATES, *SMOOTH])
def test_special_values_are_those_of_pytorch(activation: Activation, dtype: npt.DTypeLike) -> None:
    # An Affine that changes nothing, and a frozen batch norm that changes (almost) nothing.
    z = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 6, 1e-30, -1e-30, 3, -3, 7], dtype)
    z = np.repeat(z, 3)[:, None]
    dy = np.resize(np.array([1.5, np.nan, np.inf], dtype), z.size)[:, None]
    identity = np.zeros(1), np.ones(1), None, None
    z_ = torch.from_numpy(z.copy()).requires_grad_()
    if isinstance(activation, tuple):
        y_ = torch.nn.functional.leaky_relu(z_, activation[1])
    elif activation is None:
        y_ = z_ * 1
    else:
        y_ = getattr(torch.nn.functional, activation, getattr(torch, activation, None))(z_)
    theirs = y_.detach().numpy()
    y = rustbn.batch_norm(z, *identity, eps=0.0, activation=activation)
    if activation == "silu":
        assert np.isnan(theirs[z == -np.inf]).all()
        assert (y[z == -np.inf] == 0).all()
        y[z == -np.inf] = np.nan
    np.testing.assert_allclose(y, theirs, rtol=4 * np.finfo(dtype).eps)
    if activation in GATES:
        (dx_,) = torch.autograd.grad(y_, z_, torch.from_numpy(dy))
        _, ctx = rustbn.batch_norm_forward(
            z, *identity, False, eps=0.0, activation=activation, residual=np.zeros_like(z)
        )
        grads = rustbn.batch_norm_backward(dy, ctx)
        # At NaN the gradient of PyTorch's relu6 depends on where in memory an element lies.
        told = ~np.isnan(z) if activation == "relu6" else np.full(z.shape, True)
        for gradient in (grads.dx, grads.dresidual):
            np.testing.assert_array_equal(present(gradient)[told], dx_.numpy()[told])
        if activation == "relu6":
            np.testing.assert_array_equal(present(grads.dx)[~told], dy[~told])


@both_dtypes
def test_corners_belong_to_the_flat_side(dtype: npt.DTypeLike) -> None:
    # z is exactly the residual: a weight of zero leaves nothing of x.
    tiny = float(np.finfo(dtype).smallest_subnormal)
    below = float(np.nextafter(dtype(6), dtype(0)))  # type: ignore[operator]
    residual = np.array([[0.0, -0.0, tiny, -tiny, 6.0, below, np.inf, -np.inf]], dtype).T
    x = np.arange(8, dtype=dtype)[:, None]
    for activation, wanted in (
        ("relu", [0, 0, 1, 0, 1, 1, 1, 0]),
        ("relu6", [0, 0, 1, 0, 0, 1, 0, 0]),
        (("leaky_relu", 0.25), [0.25, 0.25, 1, 0.25, 1, 1, 1, 0.25]),
        (("leaky_relu", -2.0), [-2, -2, 1, -2, 1, 1, 1, -2]),
    ):
        weight = np.zeros(1, dtype)
        _, ctx = rustbn.batch_norm_forward(
            x, weight=weight, activation=activation, residual=residual
        )
        dresidual = present(rustbn.batch_norm_backward(np.ones_like(x), ctx).dresidual)
        assert dresidual[:, 0].tolist() == wanted, activation


# Slopes.


@both_modes
@with_and_without_residual
@every_gate
def test_gradients_are_slopes(activation: Activation, with_residual: bool, training: bool) -> None:
    p = cases.problem((4, 3, 5), 1, np.float64)
    residual = residual_like(p) if with_residual else np.zeros_like(p.x)
    z = normalised(p, training).y.astype(np.float64) + residual
    dy = away_from_corners(p.dy, z, activation, 1e-3)

    def loss(x: Array, weight: Array, bias: Array, residual: Array) -> float:
        y = rustbn.batch_norm(
            x,
            p.running_mean.copy(),
            p.running_var.copy(),
            weight,
            bias,
            training,
            activation=activation,
            residual=residual if with_residual else None,
        )
        return float((y * dy).sum())

    _, ctx = forward(p, training, activation, residual if with_residual else None)
    given = [p.x, p.weight, p.bias, residual]
    for i, gradient in enumerate(rustbn.batch_norm_backward(dy, ctx)):
        if i == 3 and not with_residual:
            assert gradient is None
            continue

        def moved(at: Array, i: int = i) -> float:
            return loss(*given[:i], at, *given[i + 1 :])

        slope = central_differences(moved, given[i], 1e-6)
        np.testing.assert_allclose(present(gradient), slope, rtol=1e-6, atol=1e-6, err_msg=NAMES[i])


class Fused(torch.autograd.Function):
    """Batch norm, residual and ReLU as one operation of PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        skip = None if residual is None else residual.detach()
        y, ctx.rustbn = rustbn.batch_norm_forward(x.detach(), activation="relu", residual=skip)
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        dx, _, _, dresidual = rustbn.batch_norm_backward(dy, ctx.rustbn)
        return tuple(None if g is None else torch.from_numpy(g) for g in (dx, dresidual))


def test_autograd_agrees_on_a_residual_block() -> None:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.requires_grad_()

    def block(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        hidden = Fused.apply(torch.nn.functional.conv2d(x, first, padding=1), None)
        y: torch.Tensor = Fused.apply(torch.nn.functional.conv2d(hidden, second, padding=1), x)
        return y

    inputs = normal(3, 2, 3, 3), normal(4, 2, 3, 3), normal(2, 4, 3, 3)
    assert torch.autograd.gradcheck(block, inputs)


# Memory: layouts, aliases, lifetimes.


def residual_layouts(values: Array) -> Iterator[tuple[str, Array]]:
    yield from cases.all_layouts(values)
    yield "byte-swapped", cases.byteswapped(values)
    yield "read-only", np.broadcast_to(values, values.shape)
    yield "odd strides", cases.with_odd_strides_of_length_one(values)


@both_dtypes
@both_modes
@every_gate
def test_a_residual_may_lie_anywhere(
    activation: Activation, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((3, 4, 1, 5), 1, dtype)
    residual = residual_like(p)
    y, ctx = forward(p, training, activation, residual)
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    for name, other in residual_layouts(residual):
        y_, ctx_ = forward(p, training, activation, other)
        assert_same_bits(y_, y, name)
        assert y_.strides == y.strides
        for part, wanted in zip(rustbn.batch_norm_backward(p.dy, ctx_), grads, strict=True):
            assert_same_bits(part, wanted, name)
        assert_same_bits(other.astype(dtype), residual, f"{name} is unchanged")


@both_dtypes
def test_a_broadcast_residual_is_read_as_it_looks(dtype: npt.DTypeLike) -> None:
    p = cases.problem(SHAPE, 1, dtype)
    row = residual_like(p)[:1]
    spread = np.broadcast_to(row, SHAPE)
    assert_same_bits(forward(p, residual=spread)[0], forward(p, residual=spread.copy())[0])


@both_dtypes
@both_modes
def test_outputs_have_the_order_of_x_whatever_the_residual(
    training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((3, 4, 2, 5), 1, dtype)
    p.x = cases.in_order(p.x, (0, 2, 3, 1))
    for activation in (None, "relu"):
        y, ctx = forward(p, training, activation, residual_like(p))
        dx, _, _, dresidual = rustbn.batch_norm_backward(p.dy, ctx)
        for output in (y, dx, dresidual):
            assert present(output).strides == p.x.strides


@both_dtypes
@both_modes
@every_gate
def test_the_residual_may_be_x(
    activation: Activation, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(SHAPE, 1, dtype)
    y, ctx = forward(p, training, activation, p.x)
    expected, ctx_ = forward(p, training, activation, p.x.copy())
    assert_same_bits(y, expected)
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    for part, wanted in zip(grads, rustbn.batch_norm_backward(p.dy, ctx_), strict=True):
        assert_same_bits(part, wanted)


@both_dtypes
@both_modes
@pytest.mark.parametrize("activation", ["relu", None, "tanh"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)])
def test_out_may_be_x_or_the_residual_or_both(
    order: tuple[int, ...], activation: Activation, training: bool, dtype: npt.DTypeLike
) -> None:
    if training and activation == "tanh":
        pytest.skip("inference only")
    p = cases.problem(SHAPE, 1, dtype)
    affine = rustbn.Affine.from_running(*p.vectors)

    def function(x: Array, residual: Array, out: Array | None = None) -> Array:
        return rustbn.batch_norm(
            x, *p.copied_vectors(), training, activation=activation, residual=residual, out=out
        )

    def transform(x: Array, residual: Array, out: Array | None = None) -> Array:
        return affine(x, activation=activation, residual=residual, out=out)

    for call in (function, transform):
        x, residual = p.x.copy(), cases.in_order(residual_like(p), order)
        expected = call(x, residual)
        assert call(x, residual, residual) is residual
        assert_same_bits(residual, expected, "out is the residual")
        residual = cases.in_order(residual_like(p), order)
        assert call(x, residual, x) is x
        assert_same_bits(x, expected, "out is x")
        residual = cases.in_order(residual_like(p), order)
        call(p.x, residual, residual[...])
        assert_same_bits(residual, expected, "out is an equal view of the residual")
        x = cases.in_order(p.x, order)
        expected = call(x, x.copy(order="K"))
        assert_same_bits(call(x, x, x), expected, "all are one")


@both_dtypes
@both_modes
@with_and_without_residual
@every_gate
def test_backward_may_write_to_dy(
    activation: Activation, with_residual: bool, training: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS[::3]:
        p = cases.problem(shape, axis, dtype)
        residual = residual_like(p) if with_residual else None
        _, ctx = forward(p, training, activation, residual)
        expected = rustbn.batch_norm_backward(p.dy, ctx)
        for order in ("C", "F"):
            dy = p.dy.copy(order=order)
            grads = rustbn.batch_norm_backward(dy, ctx, out=dy)
            assert grads.dx is dy
            for part, wanted in zip(grads, expected, strict=True):
                assert_same_bits(part, wanted, f"{shape} {order}")
            dy = p.dy.copy(order=order)
            needs = NAMES[:3]
            grads = rustbn.batch_norm_backward(dy, ctx, out=dy[...], needs=needs)
            for part, wanted in zip(grads[:3], expected, strict=False):
                assert_same_bits(part, wanted, f"{shape} {order} without dresidual")


@both_dtypes
@both_modes
@every_gate
def test_dresidual_is_an_array_of_its_own(
    activation: Activation, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(SHAPE, 1, dtype)
    residual = residual_like(p)
    _, ctx = forward(p, training, activation, residual)
    first = rustbn.batch_norm_backward(p.dy, ctx)
    second = rustbn.batch_norm_backward(p.dy, ctx, needs=("residual",))
    dresidual = present(first.dresidual)
    assert dresidual.flags.writeable
    assert dresidual.flags.owndata
    for other in (p.dy, p.x, residual, first.dx, second.dresidual):
        assert not np.shares_memory(dresidual, present(other))
    if activation is None:
        assert_same_bits(dresidual, p.dy)
    dy = p.dy.copy()
    grads = rustbn.batch_norm_backward(dy, ctx, out=dy)
    assert not np.shares_memory(present(grads.dresidual), dy)
    assert_same_bits(grads.dresidual, dresidual)


@both_dtypes
@both_modes
@with_and_without_residual
@every_gate
def test_needs_changes_no_bit(
    activation: Activation, with_residual: bool, training: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS[::4]:
        p = cases.problem(shape, axis, dtype)
        residual = residual_like(p) if with_residual else None
        _, ctx = forward(p, training, activation, residual)
        whole = rustbn.batch_norm_backward(p.dy, ctx)
        dy = p.dy.copy()
        for count in range(5):
            for needs in combinations(NAMES, count):
                some = rustbn.batch_norm_backward(p.dy, ctx, needs=needs)
                for name, part, wanted in zip(NAMES, some, whole, strict=True):
                    what = f"{name} of {needs} {shape}"
                    assert_same_bits(part, wanted if name in needs else None, what)
        assert_same_bits(p.dy, dy, "dy")


@both_modes
def test_a_context_refers_to_the_residual(training: bool) -> None:
    p = cases.problem(SHAPE)
    residual = residual_like(p)
    _, ctx = forward(p, training, "relu", residual)
    residual[...] = np.inf  # every gate is open from here on
    assert_same_bits(rustbn.batch_norm_backward(p.dy, ctx).dresidual, p.dy)
    residual[...] = -np.inf
    assert not present(rustbn.batch_norm_backward(p.dy, ctx).dresidual).any()


def test_a_context_keeps_the_residual_alive_and_lets_it_go() -> None:
    p = cases.problem(SHAPE)
    residual = residual_like(p)
    _, ctx = forward(p, True, "relu", residual)
    expected = rustbn.batch_norm_backward(p.dy, ctx)
    dead = weakref.ref(residual)
    del residual
    gc.collect()
    assert dead() is not None
    for part, wanted in zip(rustbn.batch_norm_backward(p.dy, ctx), expected, strict=True):
        assert_same_bits(part, wanted)
    del ctx
    gc.collect()
    assert dead() is None


# Threads.


@pytest.mark.parametrize(("shape", "axis"), cases.LARGE[1:])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], axis: int) -> None:
    p = cases.problem(shape, axis)
    found = []
    for n in (1, 2, 3):
        with rustbn.threads(n):
            y, ctx = forward(p, True, "relu", p.dy)
            y_frozen, ctx_frozen = forward(p, False, "relu6", p.dy)
            grads = rustbn.batch_norm_backward(p.dy, ctx)
            frozen = rustbn.batch_norm_backward(p.dy, ctx_frozen)
            smooth = rustbn.batch_norm(p.x, *p.vectors, axis=axis, activation="silu")
        found.append((y, y_frozen, smooth, *grads, *frozen))
    for other in found[1:]:
        for part, wanted in zip(other, found[0], strict=True):
            assert_same_bits(part, wanted)


# Edges.


@both_dtypes
@both_modes
@every_gate
@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 7), (3, 5, 0)])
def test_an_empty_batch_has_empty_gradients(
    shape: tuple[int, ...], activation: Activation, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(SHAPE, 1, dtype)
    p.x = np.empty(shape, dtype)
    y, ctx = forward(p, training, activation, np.empty(shape, dtype))
    grads = rustbn.batch_norm_backward(np.empty(shape, dtype), ctx)
    for array in (y, grads.dx, grads.dresidual):
        assert present(array).shape == shape
        assert present(array).dtype == dtype
    for vector in (grads.dweight, grads.dbias):
        assert present(vector).tolist() == [0] * 5


@pytest.mark.parametrize("activation", [*GATES, *SMOOTH])
def test_names_and_pairs_are_equal_ways_to_say_it(activation: Activation) -> None:
    p = cases.problem(SHAPE)
    default = rustbn.batch_norm(p.x, *p.vectors, activation=("leaky_relu", 0.01))
    assert_same_bits(rustbn.batch_norm(p.x, *p.vectors, activation="leaky_relu"), default)
    zero = rustbn.batch_norm(p.x, *p.vectors, activation=("leaky_relu", 0))
    np.testing.assert_array_equal(rustbn.batch_norm(p.x, *p.vectors, activation="relu"), zero)
    whole = rustbn.batch_norm(p.x, *p.vectors, activation=("leaky_relu", np.float32(1)))
    assert_same_bits(rustbn.batch_norm(p.x, *p.vectors), whole)


# Modules.


@both_dtypes
@with_and_without_residual
@every_gate
def test_a_module_trains_through_its_epilogue(
    activation: Activation, with_residual: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 4, 3), 1, dtype)
    residual = residual_like(p) if with_residual else None
    bn = rustbn.BatchNorm2d(5, dtype=dtype, activation=activation)
    present(bn.weight)[:], present(bn.bias)[:] = p.weight, p.bias
    for frozen in (False, True):
        stats = np.array(bn.running_mean), np.array(bn.running_var)
        y = bn(p.x, residual=residual)
        expected, ctx = rustbn.batch_norm_forward(
            p.x, *stats, p.weight, p.bias, not frozen, activation=activation, residual=residual
        )
        assert_same_bits(y, expected)
        for name, wanted in zip(("running_mean", "running_var"), stats, strict=True):
            assert_same_bits(getattr(bn, name), wanted, name)
        bn.zero_grad()
        dy = p.dy.copy()
        returned = bn.backward(dy, out=dy)
        grads = rustbn.batch_norm_backward(p.dy, ctx)
        dx, dresidual = returned if with_residual else (returned, None)
        assert dx is dy
        assert_same_bits(dx, grads.dx)
        assert_same_bits(dresidual, grads.dresidual)
        assert_same_bits(bn.weight_grad, grads.dweight)
        assert_same_bits(bn.bias_grad, grads.dbias)
        bn.freeze()


@pytest.mark.parametrize("activation", [*GATES, *SMOOTH])
def test_a_module_infers_in_place(activation: Activation) -> None:
    p = cases.problem(SHAPE)
    bn = rustbn.BatchNorm1d(5, activation=activation).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(bn, name)[:] = getattr(p, name)
    residual = residual_like(p)
    expected = rustbn.batch_norm(p.x, *p.vectors, activation=activation, residual=residual)
    assert_same_bits(bn(p.x, residual=residual), expected)
    for target in (residual.copy(), p.x.copy()):
        x = p.x if target[0, 0, 0] != p.x[0, 0, 0] else target
        r = residual if x is target else target
        assert bn(x, residual=r, out=target) is target
        assert_same_bits(target, expected)
    with pytest.raises(RuntimeError, match="eval"):
        bn.backward(p.dy)


@every_smooth
def test_a_module_refuses_to_train_through_what_is_for_inference(activation: Activation) -> None:
    p = cases.problem(SHAPE)
    bn = rustbn.BatchNorm(5, activation=activation)
    before, out = bn.state_dict(), np.full(SHAPE, 42, np.float32)
    for mode in (bn.train, bn.freeze):
        mode()
        with pytest.raises(ValueError, match=rf"activation.*training.*{activation}"):
            bn(p.x, out=out)
        assert (out == 42).all()
        for name, value in bn.state_dict().items():
            assert_same_bits(value, before[name], name)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize("kind", [rustbn.BatchNorm, rustbn.BatchNorm1d])
@pytest.mark.parametrize("activation", [*GATES, *SMOOTH])
def test_a_module_keeps_its_activation(activation: Activation, kind: Any) -> None:
    p = cases.problem(SHAPE)
    bn = kind(5, activation=activation)
    assert bn.activation == activation
    said = "" if activation is None else f", activation={activation!r}"
    assert repr(bn).endswith(f"track_running_stats=True{said})")
    bn.eval()
    y = bn(p.x)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn)), eval(repr(bn), vars(rustbn))):
        assert repr(other) == repr(bn)
        assert_same_bits(other.eval()(p.x), y)


def test_copies_of_a_module_hold_no_residual() -> None:
    p = cases.problem(SHAPE)
    bn = rustbn.BatchNorm(5, activation="relu")
    bn(p.x, residual=residual_like(p))
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        with pytest.raises(RuntimeError, match="copied"):
            other.backward(p.dy)
    assert len(bn.backward(p.dy)) == 2


def test_a_module_refuses_an_activation_when_it_is_made() -> None:
    for wrong in ("gelu", ("relu", 0.1), ("leaky_relu", np.inf), ""):
        with pytest.raises(ValueError, match="activation"):
            rustbn.BatchNorm(5, activation=wrong)  # type: ignore[arg-type]
    for kind in (3, ["relu"], ("leaky_relu",), np.tanh):
        with pytest.raises(TypeError, match="activation"):
            rustbn.BatchNorm(5, activation=kind)  # type: ignore[arg-type]
