"""How far results are from the true ones, on data that breaks the usual ways of computing them."""

from __future__ import annotations

from typing import Any

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import peer
import pytest
import rustbn
from judge import (
    ULPS,
    assert_backward,
    assert_forward,
    assert_moments,
    assert_same_bits,
    present,
    ulp,
    y_size,
)
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
every_arrangement = pytest.mark.parametrize(("shape", "axis"), cases.HARD_ARRANGEMENTS)

COUNT = 1554


def hard(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> tuple[cases.Problem, list[str]]:
    """Return a problem whose channels are `cases.hard_channels`, and the channels' names."""
    channels = cases.hard_channels(COUNT, dtype)
    x = cases.stack_channels(list(channels.values()), shape, axis)
    p = cases.problem(x.shape, axis, dtype)
    p.x = x
    return p, list(channels)


def of_channel(values: Array, index: int, axis: int) -> Array:
    """Return one channel, its axis kept."""
    return np.take(values, [index], axis=axis)


@both_dtypes
@every_arrangement
def test_moments_of_hard_data_are_right_to_a_few_ulp(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p, names = hard(shape, axis, dtype)
    m = rustbn.moments(p.x, axis=axis)
    count, mean, m2 = oracle.moments(p.x, axis, np.longdouble)
    for i, name in enumerate(names):
        one = slice(i, i + 1)
        assert_moments(m.mean[one], m.m2[one], (count, mean[one], m2[one]), f"of {name}")


@both_dtypes
@every_arrangement
@pytest.mark.parametrize("eps", [1e-5, 1e-70])
def test_forward_of_hard_data_is_right_to_a_few_ulp(
    eps: float, shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p, names = hard(shape, axis, dtype)
    y = rustbn.batch_norm(p.x, None, None, p.weight, p.bias, True, eps=eps, axis=axis)
    for i, name in enumerate(names):
        x = of_channel(p.x, i, axis)
        exact = oracle.train(x, p.weight[i : i + 1], p.bias[i : i + 1], eps, axis)
        if exact.invstd[0] > np.finfo(np.float32).max / 4:
            continue  # 1 / std of float32 subnormals is no float32
        assert_forward(of_channel(y, i, axis), exact, name)


@both_dtypes
@every_arrangement
def test_evaluation_of_hard_data_is_right_to_a_few_ulp(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p, names = hard(shape, axis, dtype)
    _, mean, m2 = oracle.moments(p.x, axis, np.longdouble)
    running = mean.astype(np.float64), (m2 / COUNT).astype(np.float64)
    y = rustbn.batch_norm(p.x, *running, p.weight, p.bias, axis=axis)
    for i, name in enumerate(names):
        one = slice(i, i + 1)
        args = of_channel(p.x, i, axis), running[0][one], running[1][one]
        exact = oracle.normalise(*args, p.weight[one], p.bias[one], axis=axis)
        assert_forward(of_channel(y, i, axis), exact, name)


@both_dtypes
@every_arrangement
def test_gradients_of_hard_data_are_right_to_a_few_ulp(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p, names = hard(shape, axis, dtype)
    _, ctx = rustbn.batch_norm_forward(p.x, None, None, p.weight, p.bias, axis=axis)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    dx, dweight, dbias = present(dx), present(dweight), present(dbias)
    for i, name in enumerate(names):
        one = slice(i, i + 1)
        x, dy = of_channel(p.x, i, axis), of_channel(p.dy, i, axis)
        exact = oracle.train_backward(dy, x, p.weight[one], axis=axis)
        assert_backward(of_channel(dx, i, axis), dweight[one], dbias[one], exact, name)


@both_dtypes
@every_arrangement
def test_a_constant_channel_gives_exactly_bias(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    constants = [np.full(COUNT, value, dtype) for value in cases.constants(dtype)]
    x = cases.stack_channels(constants, shape, axis)
    p = cases.problem(x.shape, axis, dtype)
    for eps in (1e-5, 1e-30):
        y, ctx = rustbn.batch_norm_forward(x, None, None, p.weight, p.bias, eps=eps, axis=axis)
        bias = oracle.per_channel(p.bias, x.ndim, axis)
        assert_same_bits(y, np.broadcast_to(bias, x.shape))
        assert ctx.moments is not None
        assert not ctx.moments.m2.any()
        assert ctx.moments.mean.tolist() == [float(c[0]) for c in constants]


@both_dtypes
def test_data_whose_answers_are_representable_gives_exactly_these(dtype: npt.DTypeLike) -> None:
    # Deviations +-a, +-b with (a * a + b * b) / 2 + 3 = 4, 16, 64, so that invstd = 1/2, 1/4, 1/8.
    deviations = np.array([[1, -1, 1, -1], [1, -1, 5, -5], [11, -11, 1, -1]])
    invstd = np.array([0.5, 0.25, 0.125])
    limit = 100 if dtype is ml_dtypes.bfloat16 else 1000  # integers that the dtype has
    rng = np.random.default_rng(0)
    for others, axis in (
        ((64, 0), 1),
        ((2, 0, 512), 1),
        ((1, 0, 4096), 1),
        ((64, 0, 4, 4), 1),
        ((32, 8, 0), 2),
        ((0, 16, 16), 0),
        ((16, 0, 2, 64), 1),
    ):
        shape = tuple(30 if i == axis else n for i, n in enumerate(others))
        count = int(np.prod(shape)) // 30
        kinds = rng.integers(0, 3, 30)
        mean = rng.integers(-limit, limit, 30)
        values = np.array([rng.permutation(np.resize(deviations[k], count)) for k in kinds])
        values += mean[:, None]
        x = cases.stack_channels(list(values.astype(dtype)), shape, axis)
        dy = rng.integers(-4, 5, x.shape).astype(dtype)
        weight, bias = (rng.integers(-8, 9, 30).astype(dtype) / 4 for _ in range(2))
        running_mean = rng.integers(-64, 64, 30).astype(dtype)
        running_var = np.ones(30, dtype)
        exact = oracle.train(x, weight, bias, 3.0, axis)
        exact_mean = oracle.running(running_mean, mean.astype(np.float64), 0.25)

        y, ctx = rustbn.batch_norm_forward(
            x, running_mean, running_var, weight, bias, momentum=0.25, eps=3.0, axis=axis
        )
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(dy, ctx)

        assert ctx.moments is not None
        assert ctx.affine is not None
        assert ctx.moments.count == count
        assert ctx.affine is not None
        results: list[tuple[str, Array | None, Array]] = [
            ("mean", ctx.moments.mean, mean.astype(np.float64)),
            ("m2", ctx.moments.m2, count * (invstd[kinds] ** -2 - 3)),
            ("scale", ctx.affine.scale, invstd[kinds] * weight),
            ("y", y, exact.y.astype(dtype)),
            ("running_mean", running_mean, exact_mean.astype(dtype)),
        ]
        gradient = oracle.train_backward(dy, x, weight, 3.0, axis)
        results += [
            ("dweight", dweight, gradient.dweight.astype(cases.parameter_dtype(dtype))),
            ("dbias", dbias, gradient.dbias.astype(cases.parameter_dtype(dtype))),
        ]
        if count <= 128:  # beyond, sums / count need more bits than float32 has
            results.append(("dx", dx, gradient.dx.astype(dtype)))
        for name, actual, wanted in results:
            np.testing.assert_array_equal(actual, wanted, f"{name} of {shape}, axis {axis}")


@both_dtypes
def test_subnormals_are_kept(dtype: npt.DTypeLike) -> None:
    tiny = ml_dtypes.finfo(dtype).smallest_subnormal
    x = np.array([[1], [3], [-7], [100]], dtype) * np.asarray(tiny, dtype)
    identity = rustbn.Affine(np.zeros(1), np.ones(1), np.zeros(1))
    assert_same_bits(identity(x), x)
    one = np.array([1], dtype)
    _, ctx = rustbn.batch_norm_forward(x, 0 * one, one, eps=0.0, training=False)
    assert_same_bits(rustbn.batch_norm_backward(x, ctx).dx, x)
    if dtype is not np.float64:  # which has no room for a quarter of it
        assert rustbn.moments(x).mean[0] == float(tiny) * 97 / 4


def with_bad_value(shape: tuple[int, ...], dtype: npt.DTypeLike, bad: float) -> cases.Problem:
    """Return a problem in whose channel 1 one value, neither first nor last, is `bad`."""
    p = cases.problem(shape, 1, dtype)
    index = tuple(1 if i == 1 else n // 2 for i, n in enumerate(shape))
    p.x[index] = bad
    return p


def assert_same_kinds(ours: Array | None, theirs: Array | None, what: str) -> None:
    """Assert that NaN and the infinities stand in the same places."""
    for test in (np.isnan, np.isposinf, np.isneginf):
        assert_same_bits(test(present(ours)), test(present(theirs)), f"{test.__name__} of {what}")


@both_dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 50), (2, 3, 1000), (6, 3, 7, 7), (600, 3)])
def test_a_value_that_is_not_finite_spoils_its_channel_as_in_pytorch(
    shape: tuple[int, ...], bad: float, dtype: npt.DTypeLike
) -> None:
    p = with_bad_value(shape, dtype, bad)
    good = cases.problem(shape, 1, dtype)
    theirs = peer.batch_norm(p.x, p.running_mean, p.running_var, p.weight, p.bias, dy=p.dy)
    clean_mean, clean_var = good.running_mean, good.running_var
    clean, clean_ctx = rustbn.batch_norm_forward(
        good.x, clean_mean, clean_var, good.weight, good.bias
    )
    clean_grads = rustbn.batch_norm_backward(good.dy, clean_ctx)

    y, ctx = rustbn.batch_norm_forward(p.x, p.running_mean, p.running_var, p.weight, p.bias)
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    results: list[tuple[str, Any, Any, Any]] = [
        ("y", y, theirs.y, clean),
        ("dx", grads.dx, theirs.dx, clean_grads.dx),
        ("dweight", grads.dweight, theirs.dweight, clean_grads.dweight),
        ("dbias", grads.dbias, theirs.dbias, clean_grads.dbias),
        ("running_mean", p.running_mean, theirs.running_mean, clean_mean),
        ("running_var", p.running_var, theirs.running_var, clean_var),
    ]
    for name, ours, peers, undisturbed in results:
        assert_same_kinds(ours, peers, name)
        axis = min(1, ours.ndim - 1)
        for channel in (0, 2):
            others = of_channel(ours, channel, axis), of_channel(undisturbed, channel, axis)
            assert_same_bits(*others, f"{name} of channel {channel}")


@both_dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_and_the_last_value_may_be_the_bad_one(bad: float, dtype: npt.DTypeLike) -> None:
    for shape in ((8, 3), (600, 3), (4, 3, 7), (2, 3, 1000)):
        for index in (0, -1):
            p = cases.problem(shape, 1, dtype)
            channel = np.moveaxis(p.x, 1, 0)[1]
            channel[(index,) * channel.ndim] = bad
            theirs = peer.batch_norm(p.x, p.running_mean, p.running_var, dy=p.dy)
            y, ctx = rustbn.batch_norm_forward(p.x, p.running_mean, p.running_var)
            assert_same_kinds(y, theirs.y, f"y of {shape}")
            assert_same_kinds(p.running_mean, theirs.running_mean, f"running_mean of {shape}")
            assert_same_kinds(p.running_var, theirs.running_var, f"running_var of {shape}")
            dx = rustbn.batch_norm_backward(p.dy, ctx).dx
            assert_same_kinds(dx, theirs.dx, f"dx of {shape}")


# Not of 16 bits, where a value may be so near the mean that in one of the two their difference is
# 0, and 0 times infinity NaN.
@pytest.mark.parametrize("dtype", cases.WIDE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("training", [True, False])
def test_an_upstream_gradient_that_is_not_finite_spreads_as_in_pytorch(
    training: bool, bad: float, dtype: npt.DTypeLike
) -> None:
    for shape in ((8, 3), (4, 3, 50), (2, 3, 1000), (600, 3)):
        p = cases.problem(shape, 1, dtype)
        np.moveaxis(p.dy, 1, 0)[1].flat[1] = bad
        theirs = peer.batch_norm(p.x, *p.vectors, training, dy=p.dy)
        _, ctx = rustbn.batch_norm_forward(p.x, *p.vectors, training)
        grads = rustbn.batch_norm_backward(p.dy, ctx)
        assert_same_kinds(grads.dx, theirs.dx, f"dx of {shape}")
        assert_same_kinds(grads.dweight, theirs.dweight, f"dweight of {shape}")
        assert_same_kinds(grads.dbias, theirs.dbias, f"dbias of {shape}")


def error(actual: Array | None, exact: Array) -> float:
    """Return the largest error."""
    return float(abs(present(actual).astype(exact.dtype) - exact).max())


def assert_no_further_than_pytorch(p: cases.Problem, training: bool, what: str) -> None:
    """Assert that our largest error is PyTorch's, or 1 ULP of the largest output more.

    Two cases need more room. dx of two or three values per channel is a difference that cancels
    (of two it is 0 but for eps): the ULP is that of its terms. And float64 has no wider type for
    its statistics, so that chance decides whose error is smaller: `ULPS` of the terms, condition
    number included.
    """
    theirs = peer.batch_norm(p.x, *p.vectors, training, dy=p.dy, axis=p.axis)
    if training:
        forward = oracle.train(p.x, p.weight, p.bias, axis=p.axis)
        backward = oracle.train_backward(p.dy, p.x, p.weight, axis=p.axis)
        mean = oracle.running(p.running_mean, forward.mean, 0.1)
        var = oracle.running(p.running_var, oracle.unbiased(p.x, p.axis), 0.1)
    else:
        forward = oracle.normalise(p.x, *p.vectors, axis=p.axis)
        backward = oracle.eval_backward(p.dy, p.x, *p.vectors[:3], axis=p.axis)
        mean, var = (v.astype(forward.y.dtype) for v in p.vectors[:2])
    condition = 1 + abs(forward.mean) * forward.invstd
    dweight_terms = backward.dweight_terms + backward.dbias_terms * condition
    mean_terms = abs(mean) + np.sqrt(forward.var)

    mean_, var_, weight, bias = p.copied_vectors()
    y, ctx = rustbn.batch_norm_forward(p.x, mean_, var_, weight, bias, training, axis=p.axis)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    for name, ours, peers, exact, terms in (
        ("y", y, theirs.y, forward.y, y_size(forward).ravel() * condition),
        ("dx", dx, theirs.dx, backward.dx, backward.dx_terms * condition),
        ("dweight", dweight, theirs.dweight, backward.dweight, dweight_terms),
        ("dbias", dbias, theirs.dbias, backward.dbias, backward.dbias_terms),
        ("running_mean", mean_, theirs.running_mean, mean, mean_terms),
        ("running_var", var_, theirs.running_var, var, var),
    ):
        if p.x.dtype == np.float64:
            allowed = ULPS * ulp(terms.max(), np.float64)
        else:
            cancels = name == "dx" and backward.count < 4
            largest = backward.dx_terms if cancels else exact
            allowed = ulp(abs(largest).max(), present(ours).dtype)
        assert error(ours, exact) <= error(peers, exact) + float(allowed), f"{name} of {what}"


@both_dtypes
@pytest.mark.parametrize("training", [True, False])
def test_error_is_never_larger_than_that_of_pytorch(training: bool, dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        for seed in range(3):
            p = cases.problem(shape, axis, dtype, seed)
            assert_no_further_than_pytorch(p, training, f"{shape} axis {axis}, seed {seed}")


@both_dtypes
@pytest.mark.parametrize("training", [True, False])
@every_arrangement
def test_error_on_hard_data_is_never_larger_than_that_of_pytorch(
    shape: tuple[int, ...], axis: int, training: bool, dtype: npt.DTypeLike
) -> None:
    whole, names = hard(shape, axis, dtype)
    for i, name in enumerate(names):
        if name in ("around 1e30", "around 1e37") and dtype is not np.float64:
            continue  # squares overflow in PyTorch's float32 variance, so that there is no contest
        p = cases.problem((*shape[:axis], 1, *shape[axis + 1 :]), axis, dtype, seed=i)
        p.x = of_channel(whole.x, i, axis)
        if not training:
            _, mean, m2 = oracle.moments(p.x, axis, np.float64)
            if m2[0] / COUNT > cases.largest(dtype):
                continue
            p.running_mean, p.running_var = mean.astype(dtype), (m2 / COUNT).astype(dtype)
        assert_no_further_than_pytorch(p, training, name)
