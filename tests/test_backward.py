"""The backward function: gradients, which of them are computed, and what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from judge import ULPS, assert_backward, assert_same_bits, assert_within, present, ulp
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
both_modes = pytest.mark.parametrize("training", [True, False])

NAMES = ("x", "weight", "bias", "residual")


def forward(p: cases.Problem, training: bool = True) -> rustbn.Context:
    return rustbn.batch_norm_forward(p.x, *p.copied_vectors(), training, axis=p.axis)[1]


@both_dtypes
@both_modes
@pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)
def test_gradients_agree_with_the_oracle(
    shape: tuple[int, ...], axis: int, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    dx, dweight, dbias, dresidual = rustbn.batch_norm_backward(p.dy, forward(p, training))
    if training:
        exact = oracle.train_backward(p.dy, p.x, p.weight, axis=axis)
    else:
        args = p.dy, p.x, p.running_mean, p.running_var, p.weight
        exact = oracle.eval_backward(*args, axis=axis)
    assert_backward(dx, dweight, dbias, exact)
    assert dresidual is None


@both_dtypes
def test_eps_of_forward_is_that_of_backward(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    for eps in (1e-12, 1e-3, 0.5, 100.0):
        _, ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight, p.bias, eps=eps)
        exact = oracle.train_backward(p.dy, p.x, p.weight, eps)
        assert_backward(*rustbn.batch_norm_backward(p.dy, ctx)[:3], exact, f"eps {eps}")


@both_dtypes
def test_training_gradients_are_orthogonal_to_ones_and_to_xhat(dtype: npt.DTypeLike) -> None:
    # Adding a constant to x, or (but for eps) scaling it, does not change y.
    p = cases.problem((16, 5, 64), 1, dtype)
    _, ctx = rustbn.batch_norm_forward(p.x, weight=p.weight, eps=1e-30)
    dx = rustbn.batch_norm_backward(p.dy, ctx).dx
    xhat = oracle.train(p.x, eps=1e-30).y
    zero = np.zeros(5)
    size = oracle.train_backward(p.dy, p.x, p.weight, 1e-30).dx_terms
    wide = present(dx).astype(np.longdouble)
    # The roundings of 1024 elements, none of them larger than what `judge` allows.
    allowed = 1024 * ULPS * ulp(size, dtype)
    assert_within(wide.sum(axis=(0, 2)), zero, allowed, "sum of dx")
    assert_within((wide * xhat).sum(axis=(0, 2)), zero, 4 * allowed, "sum of dx * xhat")


@both_dtypes
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@both_modes
def test_absent_parameters_have_no_gradient(
    training: bool, with_bias: bool, with_weight: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    whole = rustbn.batch_norm_backward(p.dy, forward(p, training))
    weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
    mean, var, *_ = p.copied_vectors()
    _, ctx = rustbn.batch_norm_forward(p.x, mean, var, weight, bias, training)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    assert_same_bits(dweight, whole.dweight if with_weight else None, "dweight")
    assert_same_bits(dbias, whole.dbias if with_bias else None, "dbias")
    if training:
        exact = oracle.train_backward(p.dy, p.x, weight)
    else:
        exact = oracle.eval_backward(p.dy, p.x, p.running_mean, p.running_var, weight)
    assert_backward(dx, None, None, exact)


@both_dtypes
@both_modes
def test_needs_selects_gradients_and_changes_no_bit_of_them(
    training: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS[::3]:
        p = cases.problem(shape, axis, dtype)
        ctx = forward(p, training)
        whole = rustbn.batch_norm_backward(p.dy, ctx)
        for count in range(5):
            for needs in combinations(NAMES, count):
                some = rustbn.batch_norm_backward(p.dy, ctx, needs=needs)
                for name, part, expected in zip(NAMES, some, whole, strict=True):
                    what = f"{name} of {needs}"
                    assert_same_bits(part, expected if name in needs else None, what)


@both_dtypes
def test_needs_takes_any_sequence_in_any_order(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    ctx = forward(p)
    whole = rustbn.batch_norm_backward(p.dy, ctx)
    orders: list[Sequence[str]] = [*permutations(NAMES), list(NAMES), ("x", "bias", "weight", "x")]
    for needs in orders:
        for part, expected in zip(
            rustbn.batch_norm_backward(p.dy, ctx, needs=needs), whole, strict=True
        ):
            assert_same_bits(part, expected, f"{needs}")


@both_dtypes
def test_gradients_are_a_named_tuple(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    grads = rustbn.batch_norm_backward(p.dy, forward(p))
    assert isinstance(grads, tuple)
    assert grads._fields == ("dx", "dweight", "dbias", "dresidual")
    assert grads[0] is grads.dx
    assert type(grads).__name__ == "Gradients"


@both_dtypes
@both_modes
def test_parameter_gradients_are_float32_or_wider_whatever_the_parameters(
    training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    # Numbers that every dtype has.
    p.weight, p.bias = (v.astype(ml_dtypes.bfloat16) for v in (p.weight, p.bias))
    p.weight, p.bias = (v.astype(np.float16) for v in (p.weight, p.bias))
    expected = rustbn.batch_norm_backward(p.dy, forward(p, training))
    for other in cases.DTYPES:
        p.weight, p.bias = (v.astype(other) for v in (p.weight, p.bias))
        grads = rustbn.batch_norm_backward(p.dy, forward(p, training))
        for part, same in zip(grads[1:3], expected[1:3], strict=True):
            assert present(part).dtype == cases.parameter_dtype(dtype)
            assert_same_bits(part, same)


@both_dtypes
@both_modes
def test_one_context_serves_any_number_of_backwards(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    ctx = forward(p, training)
    first = rustbn.batch_norm_backward(p.dy, ctx)
    twice = rustbn.batch_norm_backward(2 * p.dy, ctx)  # a power of two scales without rounding
    again = rustbn.batch_norm_backward(p.dy, ctx)
    for a, b, c in zip(first[:3], again[:3], twice[:3], strict=True):
        assert_same_bits(a, b)
        assert_same_bits(c, 2 * present(a))


@both_dtypes
@both_modes
def test_parameters_are_captured_at_forward(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    expected = rustbn.batch_norm_backward(p.dy, forward(p, training))
    _, ctx = rustbn.batch_norm_forward(p.x, *p.vectors, training)
    moments, affine = ctx.moments, ctx.affine
    for vector in p.vectors:
        vector[...] = np.nan
    for part, same in zip(rustbn.batch_norm_backward(p.dy, ctx), expected, strict=True):
        assert_same_bits(part, same)
    assert ctx.moments == moments
    assert ctx.affine == affine


@both_dtypes
@both_modes
def test_out_changes_no_bit_and_may_be_dy(training: bool, dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)
        ctx = forward(p, training)
        expected = rustbn.batch_norm_backward(p.dy, ctx)
        targets: dict[str, tuple[Array, Array]] = {
            "an array": (p.dy.copy(), np.empty_like(p.x)),
            "Fortran order": (p.dy.copy(), np.empty_like(p.x, order="F")),
        }
        same = p.dy.copy()
        targets["dy itself"] = same, same
        same = p.dy.copy()
        targets["a view equal to dy"] = same, same[...]
        for name, (dy, out) in targets.items():
            grads = rustbn.batch_norm_backward(dy, ctx, out=out)
            assert grads.dx is out
            for part, wanted in zip(grads, expected, strict=True):
                assert_same_bits(part, wanted, f"{shape} into {name}")


@both_dtypes
def test_a_weight_of_zero_stops_dx_but_not_dweight(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    p.weight[2] = 0
    dx, dweight, _, _ = rustbn.batch_norm_backward(p.dy, forward(p))
    assert not present(dx)[:, 2].any()
    assert present(dweight).all()


@both_dtypes
def test_dy_of_one_value_leaves_nothing_for_x(dtype: npt.DTypeLike) -> None:
    # y sums to a constant, so its gradient is 0: exactly, where the sums are exact.
    x = np.array([[1, 2], [3, 6], [5, 4], [7, 8]], dtype)
    _, ctx = rustbn.batch_norm_forward(x, weight=np.array([3, 5], dtype))
    dx, dweight, _, _ = rustbn.batch_norm_backward(np.ones_like(x), ctx)
    assert not present(dx).any()
    assert not present(dweight).any()


@both_dtypes
def test_dweight_and_dbias_are_new_and_writeable(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    ctx = forward(p)
    one, two = rustbn.batch_norm_backward(p.dy, ctx), rustbn.batch_norm_backward(p.dy, ctx)
    for a, b in zip(one[:3], two[:3], strict=True):
        assert not np.shares_memory(present(a), present(b))
        present(a)[...] = 0
        assert present(b).any()
