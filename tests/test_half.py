"""float16 and bfloat16: values of 16 bits around arithmetic and statistics that are wider."""

from __future__ import annotations

import pickle
import subprocess
import sys
from copy import deepcopy
from itertools import product
from typing import Any

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import (
    ULPS,
    assert_backward,
    assert_moments,
    assert_same_bits,
    assert_within,
    present,
    ulp,
    y_size,
)
from oracle import GATES, Activation, Array
from test_epilogue import away_from_corners, gradients, normalised, residual_like

HALVES = [pytest.param(dtype, id=np.dtype(dtype).name) for dtype in cases.HALVES]
half_dtypes = pytest.mark.parametrize("dtype", HALVES)

# Planes and rows, with tails of every kind; the last two are beyond the caches.
SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((64, 5), 1),
    ((130, 129), 1),
    ((6, 17, 70), 1),
    ((4, 16, 7, 7), 1),
    ((3, 40, 14, 14), 1),
    ((4, 7, 7, 66), 3),
    ((80, 300, 14, 14), 1),
    ((80, 14, 14, 300), 3),
)


def assert_rounded_once(actual: Array | None, exact: Array, size: Array, what: str) -> None:
    """Assert that `actual` is `exact` rounded to the nearest.

    What is rounded is a float32 result, some float32 ULP of its terms' `size` away from the exact
    one. That moves a result to the other neighbour where `exact` is next to the middle of two. It
    shows as more than a unit only where the terms cancel to a small part of their size.
    """
    actual = present(actual)
    unit = ulp(exact, actual.dtype)
    assert_within(actual, exact, unit / 2 + ULPS * ulp(size, np.float32), what)
    units = abs(actual.astype(exact.dtype) - exact) / unit
    assert (units[abs(exact) >= size / 256] <= 1).all(), f"{what}: more than a unit"
    assert (units <= 0.51).mean() > 0.999, f"{what}: {(units > 0.51).sum()} of {units.size}"


@half_dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_outputs_are_the_float64_answer_rounded_once(
    shape: tuple[int, ...], axis: int, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    y, ctx = rustbn.batch_norm_forward(p.x, *p.copied_vectors(), training, axis=axis)
    dx = present(rustbn.batch_norm_backward(p.dy, ctx).dx)
    if training:
        forward = oracle.train(p.x, p.weight, p.bias, axis=axis)
        backward = oracle.train_backward(p.dy, p.x, p.weight, axis=axis)
    else:
        forward = oracle.normalise(p.x, *p.vectors, axis=axis)
        backward = oracle.eval_backward(p.dy, p.x, *p.vectors[:3], axis=axis)
    assert_rounded_once(y, forward.y, y_size(forward), "y")
    terms = oracle.per_channel(backward.dx_terms, dx.ndim, axis)
    assert_rounded_once(dx, backward.dx, terms, "dx")


def with_float32_vectors(shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike) -> cases.Problem:
    """Return values of 16 bits, and vectors that 16 bits do not hold."""
    p, exact = cases.problem(shape, axis, dtype), cases.problem(shape, axis, np.float32)
    p.weight, p.bias = exact.weight, exact.bias
    p.running_mean, p.running_var = exact.running_mean, exact.running_var
    assert (p.weight.astype(dtype).astype(np.float32) != p.weight).any()
    return p


@half_dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), SHAPES[:6])
def test_residual_and_gate_are_rounded_once_with_the_rest(
    shape: tuple[int, ...], axis: int, training: bool, dtype: npt.DTypeLike
) -> None:
    p = with_float32_vectors(shape, axis, dtype)
    exact = normalised(p, training)
    for activation, residual in product(GATES, (None, residual_like(p))):
        what = f"{activation}{'' if residual is None else ' after a residual'}"
        z, size = exact.y, y_size(exact)
        if residual is not None:
            z, size = z + residual.astype(np.float64), size + float(abs(residual).max())
        fused: dict[str, Any] = {"axis": axis, "activation": activation, "residual": residual}
        y, ctx = rustbn.batch_norm_forward(p.x, *p.copied_vectors(), training, **fused)
        assert_rounded_once(y, oracle.activate(z, activation), size, f"y {what}")
        without_context = rustbn.batch_norm(p.x, *p.copied_vectors(), training, **fused)
        assert_same_bits(without_context, y, what)
        if not training:
            affine = rustbn.Affine.from_running(*p.vectors)
            assert_same_bits(affine(p.x, **fused), y, f"Affine {what}")
        dy = away_from_corners(p.dy, z, activation, ULPS * ulp(size, np.float32))
        grads = rustbn.batch_norm_backward(dy, ctx)
        dz = oracle.gate_backward(dy.astype(np.float64), z, activation)
        # dx follows from what dresidual holds: the product with a slope is rounded before.
        rounded = oracle.gate_backward(dy.astype(np.float32), z, activation).astype(dtype)
        backward = gradients(p, training, rounded)
        terms = oracle.per_channel(backward.dx_terms, dy.ndim, axis)
        assert_rounded_once(grads.dx, backward.dx, terms, f"dx {what}")
        assert_backward(None, grads.dweight, grads.dbias, backward, what)
        if residual is None:
            assert grads.dresidual is None
        else:
            assert_rounded_once(grads.dresidual, dz, abs(dz), f"dresidual {what}")


@half_dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 3, 0, 2)])
@pytest.mark.parametrize("activation", GATES)
def test_residual_and_gate_agree_with_autograd(
    activation: Activation, order: tuple[int, ...], training: bool, dtype: npt.DTypeLike
) -> None:
    p = with_float32_vectors((8, 5, 6, 7), 1, dtype)
    p.x, residual = cases.in_order(p.x, order), residual_like(p)
    unit = float(ml_dtypes.finfo(dtype).eps)
    z = normalised(p, training).y + residual.astype(np.float64)
    # PyTorch rounds after each of the three operations.
    dy = away_from_corners(p.dy, z, activation, 2 * unit * abs(z).max())

    y, ctx = rustbn.batch_norm_forward(
        p.x, *p.copied_vectors(), training, activation=activation, residual=residual
    )
    ours = rustbn.batch_norm_backward(dy, ctx)
    inputs = [as_tensor(array).requires_grad_() for array in (p.x, p.weight, p.bias, residual)]
    stats = [as_tensor(array) for array in (p.running_mean.copy(), p.running_var.copy())]
    batch_norm: Any = torch.nn.functional.batch_norm
    z_ = batch_norm(inputs[0], *stats, *inputs[1:3], training) + inputs[3]
    if isinstance(activation, tuple):
        y_ = torch.nn.functional.leaky_relu(z_, activation[1])
    else:
        y_ = z_ if activation is None else getattr(torch.nn.functional, activation)(z_)
    theirs = torch.autograd.grad(y_, inputs, as_tensor(dy))
    names = "y", "dx", "dweight", "dbias", "dresidual"
    for name, mine, their in zip(names, (y, *ours), (y_, *theirs), strict=True):
        wanted = their.detach().double().numpy()
        # One more unit in front of those that PyTorch's operations round away.
        allowed = 4 * unit * abs(wanted).max()
        np.testing.assert_allclose(
            present(mine).astype(np.float64), wanted, 0, allowed, err_msg=name
        )


def as_tensor(array: Array) -> torch.Tensor:
    """Return a copy as a tensor, which has no way from bfloat16 but through its bits."""
    if array.dtype != ml_dtypes.bfloat16:
        return torch.from_numpy(array.copy(order="K"))
    return torch.from_numpy(array.view(np.int16).copy(order="K")).view(torch.bfloat16)


@half_dtypes
@pytest.mark.parametrize("activation", GATES)
def test_modules_with_residual_and_gate(activation: Activation, dtype: npt.DTypeLike) -> None:
    p = with_float32_vectors((4, 5, 3, 6), 1, dtype)
    residual = residual_like(p)
    bn = rustbn.BatchNorm2d(5, activation=activation)
    state = dict(zip(("running_mean", "running_var", "weight", "bias"), p.vectors, strict=True))
    bn.load_state_dict(state)
    for mode in ("train", "freeze", "eval"):
        if mode == "eval":
            bn.unfreeze()
        getattr(bn, mode)()
        vectors = {name: np.array(getattr(bn, name)) for name in state}
        fused: dict[str, Any] = {"activation": activation, "residual": residual, **vectors}
        y = bn(p.x, residual=residual)
        if mode == "eval":
            assert_same_bits(y, rustbn.batch_norm(p.x, **fused), mode)
            continue
        bn.zero_grad()
        dx, dresidual = bn.backward(p.dy)
        wanted, ctx = rustbn.batch_norm_forward(p.x, training=mode == "train", **fused)
        grads = rustbn.batch_norm_backward(p.dy, ctx)
        parts = (y, dx, bn.weight_grad, bn.bias_grad, dresidual)
        for part, same in zip(parts, (wanted, *grads), strict=True):
            assert_same_bits(part, same, mode)
        for name, vector in vectors.items():
            assert_same_bits(getattr(bn, name), vector, f"{name} {mode}")


@pytest.mark.parametrize("mean", [60_000.0, -60_000.0])
def test_values_near_the_largest_float16_have_the_right_moments(mean: float) -> None:
    rng = np.random.default_rng(0)
    x = (mean + 500 * rng.standard_normal((16, 3, 224, 224), dtype=np.float32)).astype(np.float16)
    m = rustbn.moments(x)
    exact = oracle.moments(x, 1, np.longdouble)
    assert m.count == exact[0]
    assert_moments(m.mean, m.m2, exact, f"around {mean}")
    y = rustbn.batch_norm(x, training=True)
    assert_within(y.mean(axis=(0, 2, 3), dtype=np.float64), np.zeros(3), 1e-4)
    assert_within(y.var(axis=(0, 2, 3), dtype=np.float64), np.ones(3), 1e-3)


@half_dtypes
def test_narrowing_rounds_to_even_and_overflows_to_infinity(dtype: npt.DTypeLike) -> None:
    info: Any = ml_dtypes.finfo(dtype)
    one, eps, largest = 1.0, float(info.eps), float(info.max)
    tiny, last = float(info.smallest_subnormal), float(ulp(largest, dtype))
    wanted = {
        one + eps / 2: one,  # ties
        one + 3 * eps / 2: one + 2 * eps,
        one + eps / 2 * (1 + 2**-10): one + eps,
        tiny / 2: 0.0,
        tiny * 1.5: 2 * tiny,
        tiny * 0.75: tiny,
        largest + 0.49 * last: largest,
        largest + 0.5 * last: np.inf,
    }
    values = np.array([sign * value for value in wanted for sign in (1, -1)])
    expected = np.array([sign * value for value in wanted.values() for sign in (1, -1)])
    # y = (x - 0) * scale + 0 of x = 1 is the scale.
    zeros, x = np.zeros(values.size), np.ones((3, values.size), dtype)
    y = rustbn.Affine(zeros, np.abs(values), zeros)(x * np.sign(values).astype(dtype))
    assert_same_bits(y, np.broadcast_to(expected.astype(dtype), y.shape))


@half_dtypes
def test_every_value_passes_through_the_identity(dtype: npt.DTypeLike) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(-1, 1)
    identity = rustbn.Affine(np.zeros(1), np.ones(1), np.zeros(1))
    with np.errstate(invalid="ignore"):  # to compare NaN
        wanted = np.where(
            x == 0, np.zeros_like(x), x
        )  # of plus and minus zero the sum is plus zero
        assert_same_bits(identity(x), wanted)


@half_dtypes
@pytest.mark.parametrize("training", [True, False])
def test_vectors_may_have_any_dtype(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    # Numbers that every dtype has.
    weight, bias, mean, var = (np.arange(5) / 8 + k for k in (1, -1, 0, 2))
    results = []
    for other in cases.DTYPES:
        vectors = [v.astype(other) for v in (mean, var, weight, bias)]
        mean_, var_, weight_, bias_ = vectors
        y, ctx = rustbn.batch_norm_forward(p.x, mean_, var_, weight_, bias_, training)
        results.append((y, *rustbn.batch_norm_backward(p.dy, ctx)[:3]))
        exact = (mean, var)
        if training:
            exact = (
                oracle.running(mean, oracle.moments(p.x)[1], 0.1),
                oracle.running(var, oracle.unbiased(p.x, 1), 0.1),
            )
        for vector, wanted in zip(vectors, exact, strict=False):
            assert vector.dtype == other
            assert_within(vector, wanted, ulp(wanted, other) / 2 * (1 + 1e-12) + 1e-15)
    for result in results[1:]:
        for part, same in zip(result, results[0], strict=True):
            assert_same_bits(part, same)
    assert [present(part).dtype for part in results[0][1:]] == [dtype, np.float32, np.float32]


@half_dtypes
def test_running_statistics_are_rounded_from_float64_once(dtype: npt.DTypeLike) -> None:
    eps = float(ml_dtypes.finfo(dtype).eps)
    # Just above a tie, by less than a float32 can tell: rounded to float32 first it would be a tie.
    value = 1 + eps / 2 + 2.0**-40
    moments = rustbn.Moments(2, np.full(3, value), np.full(3, value))
    mean, var = np.zeros(3, dtype), np.zeros(3, dtype)
    moments.update_running(mean, var, 1.0)
    assert mean.tolist() == var.tolist() == [1 + eps] * 3


@half_dtypes
@pytest.mark.parametrize("layout", ["byte-swapped", "unaligned", "gapped"])
def test_any_memory(layout: str, dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    x = {
        "byte-swapped": cases.byteswapped(p.x),
        "unaligned": cases.unaligned(p.x),
        "gapped": cases.gapped(p.x, (1, 2, 3)),
    }[layout]
    y = rustbn.batch_norm(x, training=True)
    assert y.dtype == np.dtype(dtype)
    assert_same_bits(y, rustbn.batch_norm(p.x, training=True))


@half_dtypes
@pytest.mark.parametrize("parameters", [np.float32, *HALVES])
def test_modules(parameters: Any, dtype: Any) -> None:
    bn = rustbn.BatchNorm2d(5, dtype=parameters)
    assert bn.dtype == np.dtype(parameters)
    p = cases.problem((4, 5, 3, 6), 1, dtype)
    y = bn(p.x)
    dx = bn.backward(p.dy)
    assert y.dtype == dx.dtype == dtype
    wanted, ctx = rustbn.batch_norm_forward(p.x, None, None, np.ones(5), np.zeros(5))
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    assert_same_bits(y, wanted)
    assert_same_bits(dx, grads.dx)
    for name, gradient in (("weight_grad", grads.dweight), ("bias_grad", grads.dbias)):
        assert_same_bits(getattr(bn, name), present(gradient).astype(parameters), name)
    bn.eval()
    for other in (deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert other.dtype == bn.dtype
        assert_same_bits(other(p.x), bn(p.x))
    other = rustbn.BatchNorm2d(5, dtype=parameters)
    other.load_state_dict(bn.state_dict())
    assert_same_bits(other.eval()(p.x), bn(p.x))
    float32 = rustbn.BatchNorm2d(5)
    float32.load_state_dict(bn.state_dict())
    assert_same_bits(float32.running_var, present(bn.running_var).astype(np.float32))


@half_dtypes
def test_parts_merge(dtype: npt.DTypeLike) -> None:
    p = cases.problem((9, 5, 7), 1, dtype)
    merged = rustbn.moments(p.x[:4]).merge(rustbn.moments(p.x[4:]))
    assert_moments(merged.mean, merged.m2, oracle.moments(p.x), "of parts", merged=True)


def test_dtypes_do_not_mix() -> None:
    half, bfloat = (cases.problem((4, 3), dtype=dtype) for dtype in cases.HALVES)
    with pytest.raises(TypeError, match=r"\bout\b.*float16.*bfloat16"):
        rustbn.batch_norm(half.x, training=True, out=np.empty_like(bfloat.x))
    _, ctx = rustbn.batch_norm_forward(bfloat.x)
    with pytest.raises(TypeError, match=r"\bdy\b.*bfloat16.*float16"):
        rustbn.batch_norm_backward(half.dy, ctx)


def test_other_small_floats_are_refused() -> None:
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        expected = r"\bx\b.*float16, bfloat16, float32 or float64.*float8"
        with pytest.raises(TypeError, match=expected):
            rustbn.batch_norm(np.zeros((4, 3), dtype), training=True)
        with pytest.raises(TypeError, match="float16, bfloat16, float32 or float64"):
            rustbn.BatchNorm(3, dtype=dtype)


RECOGNISED = """
import sys
import numpy as np
import rustbn

x = np.arange(12.0).reshape(4, 3)
assert rustbn.batch_norm(x.astype(np.float16), training=True).dtype == np.float16
assert "ml_dtypes" not in sys.modules, "rustbn loads nothing by itself"

import ml_dtypes
module = sys.modules.pop("ml_dtypes")
x = x.astype(module.bfloat16)
for call in (lambda: rustbn.moments(x), lambda: rustbn.BatchNorm(3, dtype=x.dtype)):
    try:
        call()
    except TypeError as error:
        assert "bfloat16" in str(error)
    else:
        raise AssertionError("recognised without ml_dtypes")

sys.modules["ml_dtypes"] = module
assert rustbn.batch_norm(x, training=True).dtype == module.bfloat16
assert rustbn.BatchNorm(3, dtype=x.dtype)(x).dtype == module.bfloat16
"""


def test_bfloat16_is_recognised_once_ml_dtypes_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", RECOGNISED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
