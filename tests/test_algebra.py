"""The halves: parts merge to wholes, and halves composed are the fused functions bit for bit."""

from __future__ import annotations

import copy
import pickle
from functools import reduce
from itertools import pairwise
from operator import add

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from judge import ULPS, assert_moments, assert_same_bits, assert_within, present, ulp
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
seeds = pytest.mark.parametrize("seed", range(8))


def random_parts(x: Array, axis: int, rng: np.random.Generator) -> list[tuple[slice, ...]]:
    """Cut an array along one of the axes that are not `axis` into parts, empty ones included."""
    along = int(rng.choice([i for i in range(x.ndim) if i != axis]))
    cuts = np.sort(rng.integers(0, x.shape[along] + 1, rng.integers(0, 12)))
    edges = [0, *(int(cut) for cut in cuts), x.shape[along]]
    return [
        tuple(slice(a, b) if i == along else slice(None) for i in range(x.ndim))
        for a, b in pairwise(edges)
    ]


def merge_in_any_order(parts: list[rustbn.Moments], rng: np.random.Generator) -> rustbn.Moments:
    """Merge random pairs until one is left."""
    parts = list(parts)
    while len(parts) > 1:
        rng.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    return parts[0]


@both_dtypes
@seeds
def test_moments_of_the_parts_merge_to_those_of_the_whole(seed: int, dtype: npt.DTypeLike) -> None:
    rng = np.random.default_rng(seed)
    for shape, axis in (*cases.ARRANGEMENTS, ((6, 30_000), 0)):
        p = cases.problem(shape, axis, dtype, seed)
        exact = oracle.moments(p.x, axis, np.longdouble)
        parts = [rustbn.moments(p.x[part], axis=axis) for part in random_parts(p.x, axis, rng)]
        for merged in (reduce(rustbn.Moments.merge, parts), merge_in_any_order(parts, rng)):
            assert merged.count == exact[0]
            what = f"of {shape} in {len(parts)} parts"
            assert_moments(merged.mean, merged.m2, exact, what, merged=True)


@both_dtypes
def test_moments_of_single_values_merge_to_those_of_the_whole(dtype: npt.DTypeLike) -> None:
    for name, values in cases.hard_channels(300, dtype).items():
        x = values[:, None]
        parts = [rustbn.moments(x[i : i + 1]) for i in range(len(x))]
        while len(parts) > 1:  # pairwise, so that roundings do not add up
            parts = [a.merge(b) for a, b in zip(parts[::2], parts[1::2], strict=False)] + (
                parts[-1:] if len(parts) % 2 else []
            )
        exact = oracle.moments(x, 1, np.longdouble)
        assert parts[0].count == exact[0]
        assert_moments(parts[0].mean, parts[0].m2, exact, f"of {name}", merged=True)


def test_parts_of_any_size_and_distance_merge() -> None:
    rng = np.random.default_rng(0)
    parts, values = [], []
    for length, mean in ((1, 1e6), (2, -1e6), (1000, 3.0), (7, 1e-3), (100_000, 50.0)):
        part = rng.standard_normal((length, 4)) + mean
        parts.append(rustbn.moments(part))
        values.append(part)
    exact = oracle.moments(np.concatenate(values), 1, np.longdouble)
    for _ in range(10):
        merged = merge_in_any_order(parts, rng)
        assert merged.count == exact[0]
        assert_moments(merged.mean, merged.m2, exact, merged=True)


@both_dtypes
@seeds
def test_grad_sums_of_the_parts_add_up_to_those_of_the_whole(
    seed: int, dtype: npt.DTypeLike
) -> None:
    rng = np.random.default_rng(seed)
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype, seed)
        m = rustbn.moments(p.x, axis=axis)
        cut = random_parts(p.x, axis, rng)
        parts = [rustbn.backward_reduce(p.dy[i], p.x[i], m, axis=axis) for i in cut]
        dy = oracle.rows(p.dy, axis, np.longdouble)
        xmu = oracle.rows(p.x, axis, np.longdouble) - m.mean[:, None]
        for sums in (reduce(add, parts), rustbn.backward_reduce(p.dy, p.x, m, axis=axis)):
            for name, actual, terms in (
                ("sum_dy", sums.sum_dy, dy),
                ("sum_dy_xmu", sums.sum_dy_xmu, dy * xmu),
            ):
                allowed = ULPS * ulp(abs(terms).sum(axis=1), np.float64)
                assert_within(actual, terms.sum(axis=1), allowed, f"{name} of {shape}")


def test_grad_sums_are_values() -> None:
    sums = rustbn.GradSums(np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0]))
    assert (sums.sum_dy.tolist(), sums.sum_dy_xmu.tolist()) == ([1, 2], [3, 4])
    for part in (sums.sum_dy, sums.sum_dy_xmu):
        assert part.dtype == np.float64
        assert not part.flags.writeable
    for name in ("sum_dy", "sum_dy_xmu"):
        with pytest.raises(AttributeError):
            setattr(sums, name, sums.sum_dy)
    assert sums + sums == rustbn.GradSums(2 * sums.sum_dy, 2 * sums.sum_dy_xmu)
    assert sum([sums, sums, sums]) == sums + sums + sums
    with pytest.raises(TypeError):
        _ = 1 + sums
    assert sums != rustbn.GradSums(sums.sum_dy + 1, sums.sum_dy_xmu)
    assert sums != rustbn.GradSums(sums.sum_dy, sums.sum_dy_xmu + 1)
    assert sums != (sums.sum_dy, sums.sum_dy_xmu)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(sums, protocol)) == sums
    assert copy.deepcopy(sums) == sums
    text = repr(sums)
    assert text.startswith("GradSums(")
    assert all(part in text for part in ("1.", "2.", "3.", "4."))


PATTERNS = [(True, True), (True, False), (False, True), (False, False)]


@both_dtypes
@pytest.mark.parametrize(("with_weight", "with_bias"), PATTERNS)
def test_moments_then_affine_is_the_training_forward(
    with_bias: bool, with_weight: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS + cases.LARGE:
        p = cases.problem(shape, axis, dtype)
        weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
        mean, var = p.running_mean.copy(), p.running_var.copy()
        y = rustbn.batch_norm(p.x, mean, var, weight, bias, True, 0.3, 1e-3, axis=axis)
        m = rustbn.moments(p.x, axis=axis)
        m.update_running(p.running_mean, p.running_var, 0.3)
        halves = rustbn.Affine.from_moments(m, weight, bias, 1e-3)(p.x, axis=axis)
        assert_same_bits(halves, y, f"y of {shape}")
        assert_same_bits(p.running_mean, mean, f"running_mean of {shape}")
        assert_same_bits(p.running_var, var, f"running_var of {shape}")


@both_dtypes
def test_affine_from_running_is_the_evaluation_forward(dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS + cases.LARGE:
        p = cases.problem(shape, axis, dtype)
        vectors = p.running_mean, p.running_var, p.weight, p.bias
        y = rustbn.batch_norm(p.x, *vectors, eps=1e-3, axis=axis)
        halves = rustbn.Affine.from_running(*vectors, 1e-3)(p.x, axis=axis)
        assert_same_bits(halves, y, f"{shape}")


@both_dtypes
@pytest.mark.parametrize("with_weight", [True, False])
def test_reduce_then_apply_is_the_training_backward(
    with_weight: bool, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS + cases.LARGE:
        p = cases.problem(shape, axis, dtype)
        weight = p.weight if with_weight else None
        _, ctx = rustbn.batch_norm_forward(p.x, None, None, weight, p.bias, eps=1e-3, axis=axis)
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
        m = rustbn.moments(p.x, axis=axis)
        sums = rustbn.backward_reduce(p.dy, p.x, m, axis=axis)
        halves = rustbn.backward_apply(p.dy, p.x, m, sums, weight, 1e-3, axis=axis)
        assert_same_bits(halves, dx, f"dx of {shape}")
        parameter = cases.parameter_dtype(dtype)
        assert_same_bits(sums.sum_dy.astype(parameter), dbias, f"dbias of {shape}")
        if with_weight:
            products = (sums.sum_dy_xmu * m.invstd(1e-3)).astype(parameter)
            assert_same_bits(products, dweight, f"dweight of {shape}")
        out = p.dy.copy()
        again = rustbn.backward_apply(out, p.x, m, sums, weight, 1e-3, axis=axis, out=out)
        assert again is out
        assert_same_bits(again, dx, f"dx of {shape} into dy")


@both_dtypes
def test_halves_and_fused_functions_agree_in_every_layout(dtype: npt.DTypeLike) -> None:
    p = cases.problem((3, 4, 2, 5), 1, dtype)
    for (name, x), (_, dy) in zip(cases.all_layouts(p.x), cases.all_layouts(p.dy), strict=True):
        y, ctx = rustbn.batch_norm_forward(x, None, None, p.weight, p.bias)
        m = rustbn.moments(x)
        assert_same_bits(rustbn.Affine.from_moments(m, p.weight, p.bias)(x), y, name)
        sums = rustbn.backward_reduce(dy, x, m)
        dx = rustbn.batch_norm_backward(dy, ctx).dx
        assert_same_bits(rustbn.backward_apply(dy, x, m, sums, p.weight), dx, name)


@both_dtypes
def test_statistics_and_sums_of_the_whole_make_every_part_right(dtype: npt.DTypeLike) -> None:
    # What synchronised, federated or out-of-core batch norm does. Elementwise halves know no
    # neighbours, so the parts have the bits of the whole.
    p = cases.problem((12, 6, 40), 1, dtype)
    m = rustbn.moments(p.x)
    affine = rustbn.Affine.from_moments(m, p.weight, p.bias)
    sums = rustbn.backward_reduce(p.dy, p.x, m)
    y, dx = affine(p.x), rustbn.backward_apply(p.dy, p.x, m, sums, p.weight)
    for part in (np.s_[:5], np.s_[5:6], np.s_[6:], np.s_[:, :, 3:20], np.s_[::3], np.s_[:0]):
        assert_same_bits(affine(p.x[part]), y[part])
        halves = rustbn.backward_apply(p.dy[part], p.x[part], m, sums, p.weight)
        assert_same_bits(halves, dx[part])


# float16 has too few exponents.
@pytest.mark.parametrize("dtype", [dtype for dtype in cases.DTYPES if dtype is not np.float16])
def test_scaling_by_powers_of_two_changes_no_bit_of_y(dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)
        for power in (-20, -1, 3, 30):
            factor = np.asarray(2.0**power, dtype)
            results = []
            for x, eps in ((p.x, 1e-3), (p.x * factor, 1e-3 * 4.0**power)):
                y, ctx = rustbn.batch_norm_forward(
                    x, None, None, p.weight, p.bias, eps=eps, axis=axis
                )
                results.append((y, *rustbn.batch_norm_backward(p.dy, ctx)[:3]))
            (y, dx, dweight, dbias), (y_, dx_, dweight_, dbias_) = results
            what = f"of {shape} times 2**{power}"
            assert_same_bits(y_, y, f"y {what}")
            assert_same_bits(dx_, present(dx) / factor, f"dx {what}")
            assert_same_bits(dweight_, dweight, f"dweight {what}")
            assert_same_bits(dbias_, dbias, f"dbias {what}")


@both_dtypes
def test_negating_x_negates_y_to_the_bit(dtype: npt.DTypeLike) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p = cases.problem(shape, axis, dtype)
        y = rustbn.batch_norm(p.x, None, None, p.weight, None, True, axis=axis)
        negated = rustbn.batch_norm(-p.x, None, None, p.weight, None, True, axis=axis)
        np.testing.assert_array_equal(negated, -y, f"{shape}")
