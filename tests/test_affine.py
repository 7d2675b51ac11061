"""Affine: y = (x - mean) * scale + bias, where it comes from and what it is applied to."""

from __future__ import annotations

import copy
import pickle

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import peer
import pytest
import rustbn
from judge import assert_forward, assert_same_bits, assert_within, ulp

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)


def some_affine(channels: int = 3) -> rustbn.Affine:
    rng = np.random.default_rng(channels)
    return rustbn.Affine(*rng.standard_normal((3, channels)))


@both_dtypes
def test_apply_is_exact_where_the_numbers_are(dtype: npt.DTypeLike) -> None:
    affine = rustbn.Affine(np.array([1.0, -2.0]), np.array([0.5, 3.0]), np.array([10.0, 0.0]))
    y = affine(np.array([[1, 2], [5, -2]], dtype))
    assert y.tolist() == [[10, 12], [12, 0]]
    assert y.dtype == dtype


@both_dtypes
@pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)
def test_apply_agrees_with_the_formula(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    affine = rustbn.Affine(p.running_mean, p.weight, p.bias)
    exact = oracle.normalise(
        p.x, p.running_mean, np.ones_like(p.weight), p.weight, p.bias, eps=0, axis=axis
    )
    assert_forward(affine(p.x, axis=axis), exact)


@both_dtypes
def test_applying_to_every_layout_gives_the_same_bits(dtype: npt.DTypeLike) -> None:
    # No sum is involved, so not even the memory order of x may change a bit.
    p = cases.problem((3, 4, 2, 5), 1, dtype)
    affine = rustbn.Affine(p.running_mean, p.weight, p.bias)
    expected = affine(p.x)
    for name, x in cases.all_layouts(p.x):
        assert_same_bits(affine(x), expected, name)


def test_a_mean_that_float32_cannot_hold_is_subtracted_all_the_same() -> None:
    mean = 1e6 + 1 / 3
    x = np.array([[1e6], [1e6 + 1]], np.float32)
    y = rustbn.Affine(np.array([mean]), np.array([3.0]), np.array([0.0]))(x)
    exact = (x.astype(np.float64) - mean) * 3
    assert_within(y, exact, ulp(exact, np.float32))


def test_a_mean_beyond_float32_leaves_nothing_but_infinity() -> None:
    x = np.zeros((2, 2), np.float32)
    y = rustbn.Affine(np.array([1e39, -1e39]), np.ones(2), np.zeros(2))(x)
    assert_same_bits(y, np.array([[-np.inf, np.inf]] * 2, np.float32))


@both_dtypes
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_from_moments_normalises_with_the_biased_variance(
    with_bias: bool, with_weight: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
    m = rustbn.moments(p.x)
    affine = rustbn.Affine.from_moments(m, weight, bias, 1e-3)
    exact = oracle.train(p.x, weight, bias, 1e-3)
    scale = exact.invstd * exact.weight
    assert affine.mean.tolist() == m.mean.tolist()
    assert_within(affine.scale, scale, 8 * ulp(scale, np.float64), "scale")
    assert affine.bias.tolist() == exact.bias.tolist()


@both_dtypes
@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_from_running_normalises_with_what_it_is_given(
    with_bias: bool, with_weight: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
    affine = rustbn.Affine.from_running(p.running_mean, p.running_var, weight, bias, eps=0.0)
    exact = oracle.normalise(p.x, p.running_mean, p.running_var, weight, bias, 0.0)
    scale = exact.invstd * exact.weight
    assert affine.mean.tolist() == p.running_mean.tolist()
    assert_within(affine.scale, scale, 4 * ulp(scale, np.float64), "scale")
    assert affine.bias.tolist() == exact.bias.tolist()
    assert_forward(affine(p.x), exact)


def test_default_eps_is_that_of_the_functions() -> None:
    p = cases.problem((6, 5, 7))
    m = rustbn.moments(p.x)
    assert rustbn.Affine.from_moments(m) == rustbn.Affine.from_moments(m, eps=1e-5)
    running = p.running_mean, p.running_var
    assert rustbn.Affine.from_running(*running) == rustbn.Affine.from_running(*running, eps=1e-5)


def test_parts_are_float64_read_only_and_cannot_be_replaced() -> None:
    affine = rustbn.Affine(*np.ones((3, 4), np.float32))
    for name in ("mean", "scale", "bias"):
        part = getattr(affine, name)
        assert part.dtype == np.float64
        assert not part.flags.writeable
        with pytest.raises(AttributeError):
            setattr(affine, name, part)


def test_parts_given_are_copied() -> None:
    parts = np.arange(6.0).reshape(3, 2)
    affine = rustbn.Affine(*parts)
    parts[...] = 99
    assert [affine.mean.tolist(), affine.scale.tolist(), affine.bias.tolist()] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]


def test_equality_compares_every_part() -> None:
    parts = np.arange(6.0).reshape(3, 2)
    affine = rustbn.Affine(*parts)
    assert affine == rustbn.Affine(*parts)
    for i in range(3):
        changed = parts.copy()
        changed[i, 1] += 1
        assert affine != rustbn.Affine(*changed)
    assert affine != rustbn.Affine(*parts[:, :1])
    assert affine != tuple(parts)


def test_copies_and_pickles_are_equal() -> None:
    affine = some_affine()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(affine, protocol)) == affine
    assert copy.copy(affine) == affine
    assert copy.deepcopy(affine) == affine


def test_repr_shows_the_parts() -> None:
    text = repr(rustbn.Affine(*np.array([[1.5], [2.25], [-3.125]])))
    assert text.startswith("Affine(")
    for part in ("1.5", "2.25", "-3.125"):
        assert part in text


@both_dtypes
def test_out_may_be_x(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    affine = rustbn.Affine(p.running_mean, p.weight, p.bias)
    expected = affine(p.x)
    assert affine(p.x, out=p.x) is p.x
    assert_same_bits(p.x, expected)


@both_dtypes
def test_values_that_are_not_finite_pass_through_as_in_pytorch(dtype: npt.DTypeLike) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.5, 1e-40], dtype)
    large = min(1e30, cases.largest(dtype) / 4)
    means = np.array([0, 1.5, np.inf, -np.inf, np.nan, large], dtype)
    variances = np.array([1, np.inf, np.nan, 0, 4, -1], dtype)
    mean, var = (grid.ravel() for grid in np.meshgrid(means, variances))
    weight, bias = np.resize([2, -1, 0], mean.size), np.resize([1.0, -3.0], mean.size)
    weight, bias = weight.astype(dtype), bias.astype(dtype)
    x = np.repeat(values, mean.size).reshape(values.size, mean.size)
    y = rustbn.Affine.from_running(mean, var, weight, bias)(x)
    theirs = peer.batch_norm(x, mean, var, weight, bias, False, dy=x).y
    for test in (np.isnan, np.isposinf, np.isneginf):
        assert_same_bits(test(y), test(theirs), test.__name__)
    finite = np.isfinite(theirs)
    ours, expected = y[finite].astype(np.float64), theirs[finite].astype(np.float64)
    allowed = 8 * float(ml_dtypes.finfo(dtype).eps) * abs(expected)
    assert (abs(ours - expected) <= allowed).all()
