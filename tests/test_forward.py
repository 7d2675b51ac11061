"""The forward functions: statistics, running statistics, evaluation, and what a Context shows."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from judge import assert_forward, assert_same_bits, assert_within, present, ulp
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
both_modes = pytest.mark.parametrize("training", [True, False])


@both_dtypes
def test_training_normalises_with_the_biased_variance(dtype: npt.DTypeLike) -> None:
    x = np.array([[1], [1], [5], [5]], dtype)
    y = rustbn.batch_norm(x, training=True, eps=12.0)  # variance 4 (unbiased: 16 / 3)
    assert y.ravel().tolist() == [-0.5, -0.5, 0.5, 0.5]


@both_dtypes
def test_training_moves_running_statistics_towards_mean_and_unbiased_variance(
    dtype: npt.DTypeLike,
) -> None:
    x = np.array([[1], [1], [4]], dtype)  # mean 2, variance 2, unbiased 3
    mean, var = np.array([10], dtype), np.array([7], dtype)
    rustbn.batch_norm(x, mean, var, training=True, momentum=0.25)
    assert (mean.tolist(), var.tolist()) == ([8.0], [6.0])
    rustbn.batch_norm_forward(x, mean, var, momentum=1.0)
    assert (mean.tolist(), var.tolist()) == ([2.0], [3.0])


@both_dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, -0.25])
def test_running_statistics_agree_with_the_oracle(momentum: float, dtype: npt.DTypeLike) -> None:
    for running_dtype in cases.DTYPES:
        p = cases.problem((5, 33, 27), 1, dtype)
        _, mean, _ = oracle.moments(p.x, 1, np.longdouble)
        var = oracle.unbiased(p.x).astype(np.longdouble)
        running_mean = p.running_mean.astype(running_dtype)
        running_var = p.running_var.astype(running_dtype)
        exact_mean = oracle.running(running_mean, mean, momentum)
        exact_var = oracle.running(running_var, var, momentum)
        rustbn.batch_norm(p.x, running_mean, running_var, training=True, momentum=momentum)
        allowed = ulp(exact_mean, running_dtype) + 4 * ulp(mean, np.float64)
        assert_within(running_mean, exact_mean, allowed, "running_mean")
        allowed = ulp(exact_var, running_dtype) + 8 * ulp(var, np.float64)
        assert_within(running_var, exact_var, allowed, "running_var")


@both_dtypes
def test_running_statistics_are_updated_through_any_stride(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 4, 5), 1, dtype)
    plain_mean, plain_var = p.running_mean.copy(), p.running_var.copy()
    rustbn.batch_norm(p.x, plain_mean, plain_var, training=True)
    whole = np.full((8, 2), -1, dtype)
    mean, var = whole[::-2, 0], whole[::2, 1]
    mean[...], var[...] = p.running_mean, p.running_var
    rustbn.batch_norm(p.x, mean, var, training=True)
    assert_same_bits(mean, plain_mean)
    assert_same_bits(var, plain_var)
    assert (whole[::2, 0] == -1).all()
    assert (whole[1::2, 1] == -1).all()


@both_dtypes
def test_evaluation_uses_running_statistics_and_leaves_them_alone(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 4, 5), 1, dtype)
    p.running_mean.flags.writeable = p.running_var.flags.writeable = False
    y = rustbn.batch_norm(p.x, p.running_mean, p.running_var, p.weight, p.bias)
    exact = oracle.normalise(p.x, p.running_mean, p.running_var, p.weight, p.bias)
    assert_forward(y, exact)


@both_dtypes
def test_evaluation_may_have_an_eps_of_zero(dtype: npt.DTypeLike) -> None:
    x = np.array([[5.0], [9.0]], dtype)
    y = rustbn.batch_norm(x, np.array([5.0], dtype), np.array([4.0], dtype), eps=0.0)
    assert y.ravel().tolist() == [0, 2]


@both_dtypes
@both_modes
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_absent_weight_is_one_and_absent_bias_is_zero(
    with_bias: bool, with_weight: bool, training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    one, zero = np.ones_like(p.weight), np.zeros_like(p.bias)

    def forward(weight: Array | None, bias: Array | None) -> Array:
        mean, var, *_ = p.copied_vectors()
        return rustbn.batch_norm(p.x, mean, var, weight, bias, training)

    y = forward(p.weight if with_weight else None, p.bias if with_bias else None)
    assert_same_bits(y, forward(p.weight if with_weight else one, p.bias if with_bias else zero))


@both_dtypes
@both_modes
def test_vectors_may_be_of_the_other_dtype_and_of_any_stride(
    training: bool, dtype: npt.DTypeLike
) -> None:
    other = np.float64 if dtype is np.float32 else np.float32
    p = cases.problem((6, 5, 7), 1, other)
    x = p.x.astype(dtype)
    mean, var, weight, bias = (v[::-1].copy() for v in p.vectors)
    exact = (
        oracle.train(x, weight, bias) if training else oracle.normalise(x, mean, var, weight, bias)
    )
    mean, var, weight, bias = (np.repeat(v, 3)[::-3] for v in p.vectors)
    y, ctx = rustbn.batch_norm_forward(x, mean, var, weight, bias, training)
    assert y.dtype == dtype
    assert_forward(y, exact)
    assert ctx.affine is not None
    assert ctx.affine.bias.tolist() == p.bias[::-1].tolist()


@both_dtypes
def test_batch_norm_evaluates_and_batch_norm_forward_trains_by_default(
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    stats = p.running_mean, p.running_var
    assert_same_bits(rustbn.batch_norm(p.x, *stats), rustbn.batch_norm(p.x, *stats, training=False))
    trained = rustbn.batch_norm(p.x, p.running_mean.copy(), p.running_var.copy(), training=True)
    assert_same_bits(rustbn.batch_norm_forward(p.x, *stats)[0], trained)


def test_signatures_are_those_of_the_contract() -> None:
    vectors = ["running_mean", "running_var", "weight", "bias"]
    for function, training in ((rustbn.batch_norm, False), (rustbn.batch_norm_forward, True)):
        parameters = inspect.signature(function).parameters
        names = ["x", *vectors, "training", "momentum", "eps"]
        assert list(parameters)[:8] == names
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in list(parameters.values())[:8])
        assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[8:])
        defaults: dict[str, Any] = dict.fromkeys(vectors) | {
            "training": training,
            "momentum": 0.1,
            "eps": 1e-5,
            "axis": 1,
            "out": None,
        }
        assert {n: p.default for n, p in parameters.items() if n in defaults} == defaults


@both_dtypes
@both_modes
def test_positional_and_keyword_forms_are_the_same_call(
    training: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    one, two = p.copied_vectors(), p.copied_vectors()
    by_position = rustbn.batch_norm(p.x, *one, training, 0.3, 1e-3)
    by_name = rustbn.batch_norm(
        eps=1e-3,
        momentum=0.3,
        training=training,
        bias=two[3],
        weight=two[2],
        running_var=two[1],
        running_mean=two[0],
        x=p.x,
    )
    assert_same_bits(by_name, by_position)
    for ours, theirs in zip(one, two, strict=True):
        assert_same_bits(ours, theirs)


@both_dtypes
def test_scalars_of_every_real_type_mean_their_float64_value(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)

    def forward(momentum: Any, eps: Any, training: Any = True) -> tuple[Array, Array, Array]:
        mean, var = p.running_mean.copy(), p.running_var.copy()
        y = rustbn.batch_norm(p.x, mean, var, p.weight, p.bias, training, momentum, eps)
        return y, mean, var

    for kind in (np.float32, np.float64, np.float16, np.longdouble):
        momentum, eps = kind(0.3), kind(1e-3)
        expected = forward(float(momentum), float(eps))
        for actual, wanted in zip(forward(momentum, eps), expected, strict=True):
            assert_same_bits(actual, wanted, kind.__name__)
    for one in (1, np.int64(1), np.uint8(1), np.float32(1)):
        for actual, wanted in zip(forward(one, one), forward(1.0, 1.0), strict=True):
            assert_same_bits(actual, wanted, type(one).__name__)
    assert_same_bits(forward(0.1, 1e-5, np.True_)[0], forward(0.1, 1e-5)[0])


@both_dtypes
def test_a_training_context_shows_batch_statistics_and_their_transformation(
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    y, ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight, p.bias, eps=1e-3)
    m = rustbn.moments(p.x)
    assert ctx.moments == m
    assert ctx.affine == rustbn.Affine.from_moments(m, p.weight, p.bias, 1e-3)
    assert_same_bits(ctx.affine(p.x), y)


@both_dtypes
def test_an_evaluation_context_shows_the_transformation_alone(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    args = p.running_mean, p.running_var, p.weight, p.bias
    y, ctx = rustbn.batch_norm_forward(p.x, *args, training=False, eps=1e-3)
    assert ctx.moments is None
    assert ctx.affine == rustbn.Affine.from_running(*args, 1e-3)
    assert_same_bits(ctx.affine(p.x), y)


@both_modes
def test_a_context_refers_to_x_for_as_long_as_it_lives(training: bool) -> None:
    p = cases.problem((6, 5, 7))
    _, ctx = rustbn.batch_norm_forward(p.x, p.running_mean, p.running_var, training=training)
    x = weakref.ref(p.x)
    del p
    assert x() is not None
    del ctx
    assert x() is None


def test_batch_norm_keeps_nothing_alive() -> None:
    p = cases.problem((6, 5, 7))
    references = [weakref.ref(a) for a in (p.x, p.running_mean, p.running_var, p.weight, p.bias)]
    y = rustbn.batch_norm(p.x, p.running_mean, p.running_var, p.weight, p.bias, True)
    del p
    assert [r() for r in references] == [None] * 5
    assert y.shape == (6, 5, 7)


@both_dtypes
@both_modes
def test_function_and_forward_give_the_same_bits_with_and_without_out(
    training: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)

        y = rustbn.batch_norm(p.x, *p.copied_vectors(), training, axis=axis)
        out = np.empty_like(p.x)
        assert rustbn.batch_norm(p.x, *p.copied_vectors(), training, axis=axis, out=out) is out
        assert_same_bits(out, y, f"{shape} into out")
        z, _ = rustbn.batch_norm_forward(p.x, *p.copied_vectors(), training, axis=axis)
        assert_same_bits(z, y, f"{shape} by batch_norm_forward")
        out = np.empty_like(p.x)
        z, _ = rustbn.batch_norm_forward(p.x, *p.copied_vectors(), training, axis=axis, out=out)
        assert z is out
        assert_same_bits(z, y, f"{shape} by batch_norm_forward into out")
        same = p.x.copy()
        assert rustbn.batch_norm(same, *p.copied_vectors(), training, axis=axis, out=same) is same
        assert_same_bits(same, y, f"{shape} into x itself")


@both_dtypes
def test_two_values_per_channel_are_enough_and_one_is_not(dtype: npt.DTypeLike) -> None:
    for shape in ((2, 3), (1, 3, 2), (2, 3, 1), (1, 3, 1, 2)):
        x = cases.problem(shape, 1, dtype).x
        assert_forward(rustbn.batch_norm(x, training=True), oracle.train(x))
    for shape in ((1, 3), (1, 3, 1), (1, 3, 1, 1)):
        x = cases.problem(shape, 1, dtype).x
        with pytest.raises(ValueError, match=r"\bx\b.*\b2 values.*\b1\b"):
            rustbn.batch_norm(x, training=True)
        mean, var = np.zeros(3, dtype), np.ones(3, dtype)
        assert_forward(rustbn.batch_norm(x, mean, var), oracle.normalise(x, mean, var))


@both_dtypes
def test_an_empty_batch_trains_to_nothing(dtype: npt.DTypeLike) -> None:
    for shape in ((0, 3), (0, 3, 4), (2, 3, 0), (0, 3, 0, 5)):
        mean, var = np.array([1, 2, 3], dtype), np.array([4, 5, 6], dtype)
        weight, bias = np.ones(3, dtype), np.zeros(3, dtype)
        y, ctx = rustbn.batch_norm_forward(np.empty(shape, dtype), mean, var, weight, bias)
        assert y.shape == shape
        assert y.dtype == dtype
        assert (mean.tolist(), var.tolist()) == ([1, 2, 3], [4, 5, 6])
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(np.empty(shape, dtype), ctx)
        assert present(dx).shape == shape
        for gradient in (dweight, dbias):
            assert present(gradient).tolist() == [0, 0, 0]
            assert present(gradient).dtype == cases.parameter_dtype(dtype)


@both_dtypes
def test_an_empty_batch_evaluates_to_nothing(dtype: npt.DTypeLike) -> None:
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    x = np.empty((0, 3, 4), dtype)
    y, ctx = rustbn.batch_norm_forward(x, mean, var, var, mean, training=False)
    assert y.shape == x.shape
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(x, ctx)
    assert present(dx).shape == x.shape
    assert present(dweight).tolist() == present(dbias).tolist() == [0, 0, 0]
