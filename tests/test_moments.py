"""Moments: what they measure, how they merge, what they do to running statistics."""

from __future__ import annotations

import copy
import pickle

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from judge import assert_moments, assert_within, ulp

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)


def some_moments(channels: int = 3, seed: int = 0) -> rustbn.Moments:
    return rustbn.moments(cases.problem((8, channels, 4), seed=seed).x)


@both_dtypes
def test_count_mean_and_m2_of_small_integers_are_exact(dtype: npt.DTypeLike) -> None:
    x = np.array([[1, 10], [2, 10], [3, 10], [6, 14]], dtype)
    m = rustbn.moments(x)
    assert m.count == 4
    assert m.mean.tolist() == [3, 11]
    assert m.m2.tolist() == [4 + 1 + 0 + 9, 3 * 1 + 9]
    assert m.mean.dtype == m.m2.dtype == np.float64


@both_dtypes
def test_a_single_value_has_no_spread(dtype: npt.DTypeLike) -> None:
    m = rustbn.moments(np.array([[3.25, -7.5]], dtype))
    assert (m.count, m.mean.tolist(), m.m2.tolist()) == (1, [3.25, -7.5], [0, 0])


def test_variance_with_any_ddof() -> None:
    m = some_moments()
    assert m.count == 32
    np.testing.assert_array_max_ulp(m.var(), m.m2 / 32, 1)
    np.testing.assert_array_max_ulp(m.var(ddof=1), m.m2 / 31, 1)
    np.testing.assert_array_max_ulp(m.var(2.5), m.m2 / 29.5, 1)
    assert m.var().dtype == np.float64


def test_invstd_adds_eps_before_the_root() -> None:
    m = rustbn.Moments(4, np.zeros(2), np.array([12.0, 0.0]))
    assert m.invstd(1.0).tolist() == [0.5, 1.0]
    assert m.invstd(eps=0.25)[1] == 2.0
    np.testing.assert_array_max_ulp(m.invstd(), 1 / np.sqrt(np.array([3 + 1e-5, 1e-5])), 2)


def test_parts_are_read_only_and_cannot_be_replaced() -> None:
    m = some_moments()
    for name in ("mean", "m2"):
        assert not getattr(m, name).flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            getattr(m, name)[0] = 1
    for name in ("count", "mean", "m2"):
        with pytest.raises(AttributeError):
            setattr(m, name, 1)


def test_parts_given_are_copied() -> None:
    mean, m2 = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    m = rustbn.Moments(5, mean, m2)
    mean[0] = m2[0] = 99
    assert (m.count, m.mean.tolist(), m.m2.tolist()) == (5, [1, 2], [3, 4])


@both_dtypes
def test_parts_may_have_any_float_dtype_and_stride(dtype: npt.DTypeLike) -> None:
    m = rustbn.Moments(5, np.arange(6, dtype=dtype)[::-2], np.full(3, 0.5, dtype))
    assert (m.mean.tolist(), m.m2.tolist()) == ([5, 3, 1], [0.5] * 3)


def test_equality_compares_every_part() -> None:
    m = some_moments()
    assert m == rustbn.Moments(m.count, m.mean, m.m2)
    assert m != rustbn.Moments(m.count + 1, m.mean, m.m2)
    assert m != rustbn.Moments(m.count, m.mean + 1, m.m2)
    assert m != rustbn.Moments(m.count, m.mean, m.m2 + 1)
    assert m != some_moments(channels=2)
    assert m != (m.count, m.mean, m.m2)


def test_copies_and_pickles_are_equal() -> None:
    m = some_moments()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        restored = pickle.loads(pickle.dumps(m, protocol))
        assert restored == m
        assert not restored.mean.flags.writeable
    assert copy.copy(m) == m
    assert copy.deepcopy(m) == m


def test_repr_shows_the_parts() -> None:
    text = repr(rustbn.Moments(7, np.array([1.5]), np.array([2.25])))
    assert text.startswith("Moments(")
    for part in ("7", "1.5", "2.25"):
        assert part in text


def test_merging_with_nothing_changes_nothing() -> None:
    m = some_moments()
    nothing = rustbn.moments(np.empty((0, 3), np.float32))
    assert nothing.count == 0
    assert m.merge(nothing) == m
    assert nothing.merge(m) == m
    assert nothing.merge(nothing) == nothing


def test_merging_is_exact_where_the_numbers_are() -> None:
    a = rustbn.moments(np.array([[1.0], [3.0]]))
    b = rustbn.moments(np.array([[4.0], [8.0]]))
    assert a.merge(b) == rustbn.moments(np.array([[1.0], [3.0], [4.0], [8.0]]))


def test_merging_leaves_the_parts_alone() -> None:
    a, b = some_moments(seed=1), some_moments(seed=2)
    before = pickle.dumps((a, b))
    assert a.merge(b).count == a.count + b.count
    assert pickle.dumps((a, b)) == before


def test_merging_constants_far_apart_is_right() -> None:
    a = rustbn.Moments(1, np.array([-1e8]), np.zeros(1))
    b = rustbn.Moments(3, np.array([1e8]), np.zeros(1))
    merged = a.merge(b)
    assert merged.mean[0] == 5e7
    assert merged.m2[0] == 1.5e8**2 + 3 * 5e7**2


@both_dtypes
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.75, -0.25, 1.5])
def test_update_running_moves_by_momentum_towards_the_batch(
    momentum: float, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((8, 5, 7), dtype=dtype)
    _, mean, _ = oracle.moments(p.x, work=np.longdouble)
    var = oracle.unbiased(p.x)
    exact_mean = oracle.running(p.running_mean, mean, momentum)
    exact_var = oracle.running(p.running_var, var.astype(np.longdouble), momentum)
    rustbn.moments(p.x).update_running(p.running_mean, p.running_var, momentum)
    for name, actual, exact, batch in (
        ("running_mean", p.running_mean, exact_mean, mean),
        ("running_var", p.running_var, exact_var, var),
    ):
        allowed = ulp(exact, dtype) + 4 * ulp(batch, np.float64)
        assert_within(actual, exact, allowed, name)


@both_dtypes
def test_update_running_writes_through_any_stride(dtype: npt.DTypeLike) -> None:
    m = some_moments(channels=4)
    plain_mean, plain_var = np.full(4, 2, dtype), np.full(4, 3, dtype)
    m.update_running(plain_mean, plain_var, 0.1)
    whole = np.full((9, 2), 7, dtype)
    whole[::-2][:4] = [2, 3]
    mean, var = whole[::-2, 0][:4], whole[::-2, 1][:4]
    m.update_running(mean, var, 0.1)
    assert mean.tolist() == plain_mean.tolist()
    assert var.tolist() == plain_var.tolist()
    assert (whole[1::2] == 7).all()


def test_update_running_rounds_once() -> None:
    # In float32 arithmetic 0.9 * running + 0.1 * batch would be off by the rounding of 0.9 and 0.1.
    m = rustbn.Moments(3, np.array([1.0, 123.456]), np.array([2.0, 0.02]))
    mean, var = np.array([1, 123.456], np.float32), np.array([1, 0.01], np.float32)
    exact = 0.9 * mean.astype(np.float64) + 0.1 * m.mean
    m.update_running(mean, var, 0.1)
    assert mean.tolist() == exact.astype(np.float32).tolist()
    assert var[0] == 1


def test_update_running_does_nothing_for_no_values() -> None:
    mean, var = np.array([2.0, 3.0]), np.array([4.0, 5.0])
    rustbn.moments(np.empty((0, 2))).update_running(mean, var, 0.1)
    assert (mean.tolist(), var.tolist()) == ([2, 3], [4, 5])


@both_dtypes
@pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)
def test_moments_agree_with_the_oracle(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    exact = oracle.moments(p.x, axis, np.longdouble)
    m = rustbn.moments(p.x, axis=axis)
    assert m.count == exact[0]
    assert_moments(m.mean, m.m2, exact)


def test_a_channel_of_ten_million_values() -> None:
    x = np.random.default_rng(1).standard_normal((10_000_000, 1), dtype=np.float32)
    x += np.float32(10)
    exact = oracle.moments(x, 1, np.longdouble)
    for batch, axis in ((x, 1), (x.reshape(1, 1, -1), 1), (x.reshape(100, -1, 1), 2)):
        m = rustbn.moments(batch, axis=axis)
        assert m.count == exact[0]
        assert_moments(m.mean, m.m2, exact, f"of {batch.shape}")
