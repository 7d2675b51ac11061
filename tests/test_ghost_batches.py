"""Ghost batches: each group of samples is a batch of its own, but for the running statistics."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from functools import reduce
from itertools import combinations, permutations
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from judge import ULPS, assert_same_bits, assert_within, present, ulp
from oracle import Array
from rustbn import BatchNorm

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)

# (shape, axis, size of the groups): whole groups, a short last one, groups of one sample.
GROUPED = [
    ((6, 4, 5), 1, 2),
    ((7, 4, 5), 1, 3),
    ((7, 4, 70), 1, 1),
    ((14, 4), 1, 4),
    ((7, 5, 6, 4), 3, 2),
    ((4, 7, 5), 0, 3),
    ((5, 3, 4, 2, 3), -2, 2),
]
every_grouping = pytest.mark.parametrize(("shape", "axis", "size"), GROUPED, ids=str)


def along(axis: int, ndim: int) -> int:
    """Return the axis of samples."""
    return 1 if axis % ndim == 0 else 0


def groups(values: Array | None, size: int, batch: int) -> Iterator[Array | None]:
    """Yield each group's part of an array of samples along axis `batch`; of None, None."""
    if values is None:
        while True:
            yield None
    for start in range(0, values.shape[batch], size):
        yield values[(slice(None),) * batch + (slice(start, start + size),)]


def forward(
    p: cases.Problem, x: Array, stats: tuple[Array, Array] | None = None, **options: Any
) -> tuple[Array, rustbn.Context]:
    mean, var = stats or (None, None)
    return rustbn.batch_norm_forward(x, mean, var, p.weight, p.bias, axis=p.axis, **options)


def apart(
    p: cases.Problem,
    size: int,
    x: Array,
    dy: Array,
    residual: Array | None = None,
    mask: Array | None = None,
    **options: Any,
) -> tuple[list[Array], list[rustbn.Gradients], rustbn.Moments]:
    """Normalise each group by a call of its own; return outputs, gradients, merged moments."""
    batch = along(p.axis, x.ndim)
    ys, gradients, moments = [], [], []
    parts = [groups(v, size, batch) for v in (x, dy, residual, mask)]
    for part, dy_part, residual_part, mask_part in zip(*parts, strict=False):
        y, ctx = forward(p, present(part), residual=residual_part, mask=mask_part, **options)
        ys.append(y)
        gradients.append(rustbn.batch_norm_backward(present(dy_part), ctx))
        moments.append(present(ctx.moments))
    return ys, gradients, reduce(rustbn.Moments.merge, moments)


def total(gradients: list[rustbn.Gradients], name: str) -> Array:
    """Return the sum of parts that were rounded from float64, and of that the rounding."""
    return np.asarray(sum(getattr(g, name).astype(np.float64) for g in gradients))


@every_dtype
@every_grouping
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_groups_are_calls_of_their_own(
    shape: tuple[int, ...],
    axis: int,
    size: int,
    masked: bool,
    activation: oracle.Activation,
    with_residual: bool,
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem(shape, axis, dtype)
    batch = along(axis, len(shape))
    residual = cases.problem(shape, axis, dtype, seed=1).x if with_residual else None
    mask = cases.mask(shape, axis) if masked else None
    if mask is not None:  # two positions of each sample, or of neighbours where it has but one
        mask[...] |= np.arange(mask.size).reshape(mask.shape) % 5 < 4
    options: dict[str, Any] = {"activation": activation, "residual": residual, "mask": mask}
    stats = p.running_mean.copy(), p.running_var.copy()
    y, ctx = forward(p, p.x, stats, group_size=size, **options)
    gradients = rustbn.batch_norm_backward(p.dy, ctx)
    ys, parts, merged = apart(p, size, p.x, p.dy, **options)

    assert_same_bits(y, np.concatenate(ys, batch), "y")
    assert_same_bits(gradients.dx, np.concatenate([present(g.dx) for g in parts], batch), "dx")
    if with_residual:
        dresidual = np.concatenate([present(g.dresidual) for g in parts], batch)
        assert_same_bits(gradients.dresidual, dresidual, "dresidual")
    else:
        assert gradients.dresidual is None
    for name in ("dweight", "dbias"):
        found, exact = present(getattr(gradients, name)), total(parts, name)
        # What parts were rounded to has errors of its own.
        terms = np.sum([abs(getattr(g, name).astype(np.float64)) for g in parts], axis=0)
        assert found.dtype == cases.parameter_dtype(dtype)
        assert_within(found, exact, ULPS * ulp(terms, found.dtype), name)

    # Merged in the order of the groups.
    assert ctx.moments == merged
    assert ctx.affine is None
    expected = p.running_mean.copy(), p.running_var.copy()
    merged.update_running(*expected, 0.1)
    for moved, wanted in zip(stats, expected, strict=True):
        assert_same_bits(moved, wanted, "running statistics")

    function = rustbn.batch_norm(
        p.x, None, None, p.weight, p.bias, True, axis=axis, group_size=size, **options
    )
    assert_same_bits(function, y, "batch_norm")


@every_dtype
def test_running_statistics_are_those_of_the_whole_batch(dtype: npt.DTypeLike) -> None:
    """Not the mean of the groups' means, nor of their variances: groups differ in size and mean."""
    p = cases.problem((23, 5, 9), 1, dtype)
    p.x += np.linspace(0, 50, 23)[:, None, None].astype(dtype)
    for mask in (None, cases.mask(p.x.shape, 1)):
        stats = p.running_mean.copy(), p.running_var.copy()
        forward(p, p.x, stats, group_size=7, mask=mask)
        _, mean, _ = oracle.moments(p.x, 1, np.longdouble, mask)
        var = oracle.unbiased(p.x, 1, mask).astype(np.longdouble)
        for moved, old, batch in zip(
            stats, (p.running_mean, p.running_var), (mean, var), strict=True
        ):
            wanted = oracle.running(old, batch, 0.1)
            # Means of groups were float64 themselves.
            allowed = ulp(wanted, moved.dtype) + 16 * ulp(abs(batch) + abs(mean), np.float64)
            assert_within(moved, wanted, allowed)


@pytest.mark.parametrize("order", list(permutations(range(4))))
@pytest.mark.parametrize("axis", range(4))
def test_samples_may_lie_anywhere_in_memory(order: tuple[int, ...], axis: int) -> None:
    shape = (7, 4, 5, 6)
    p = cases.problem(shape, axis)
    batch, size = along(axis, 4), 3
    x, dy = cases.in_order(p.x, order), cases.in_order(p.dy, order[::-1])
    residual = cases.in_order(cases.problem(shape, axis, seed=1).x, order)
    mask = cases.mask(shape, axis)
    options: dict[str, Any] = {"residual": residual, "mask": mask, "activation": "relu"}
    y, ctx = forward(p, x, group_size=size, **options)
    gradients = rustbn.batch_norm_backward(dy, ctx)
    ys, parts, _ = apart(p, size, x, dy, **options)
    assert_same_bits(y, np.concatenate(ys, batch))
    assert_same_bits(gradients.dx, np.concatenate([present(g.dx) for g in parts], batch))
    assert_same_bits(
        gradients.dresidual, np.concatenate([present(g.dresidual) for g in parts], batch)
    )
    assert y.strides == x.strides
    assert present(gradients.dx).strides == x.strides


def test_x_and_out_may_lie_loosely() -> None:
    p = cases.problem((5, 4, 1, 6))
    y, _ = forward(p, p.x, group_size=2, residual=p.dy)
    for (name, x), (_, residual) in zip(
        cases.all_layouts(p.x), cases.all_layouts(p.dy), strict=True
    ):
        for _, out in cases.loose_layouts(np.zeros_like(p.x)):
            found, _ = forward(p, x, group_size=2, residual=residual, out=out)
            assert found is out
            np.testing.assert_allclose(out, y, rtol=0, atol=2e-6, err_msg=name)


def test_gradients_may_be_written_anywhere() -> None:
    p = cases.problem((5, 4, 1, 6))
    _, ctx = forward(p, p.x, group_size=2, activation="relu")
    dx = present(rustbn.batch_norm_backward(p.dy, ctx).dx)
    for name, out in cases.all_layouts(np.zeros_like(p.x)):
        assert rustbn.batch_norm_backward(p.dy, ctx, out=out).dx is out
        assert_same_bits(out, dx, name)
    for name, dy in cases.all_layouts(p.dy):
        assert rustbn.batch_norm_backward(dy, ctx, out=dy).dx is dy
        assert_same_bits(dy, dx, f"in place, {name}")


@every_grouping
def test_in_place_and_needs_change_no_bit(shape: tuple[int, ...], axis: int, size: int) -> None:
    p = cases.problem(shape, axis)
    residual = cases.problem(shape, axis, seed=1).x
    options: dict[str, Any] = {"activation": "relu", "residual": residual, "group_size": size}
    y, ctx = forward(p, p.x, **options)
    for place in ("x", "residual"):
        x, options["residual"] = p.x.copy(), residual.copy()
        out = x if place == "x" else options["residual"]
        arguments = x, None, None, p.weight, p.bias, True
        assert rustbn.batch_norm(*arguments, axis=axis, out=out, **options) is out
        assert_same_bits(out, y, f"in the place of {place}")

    whole = rustbn.batch_norm_backward(p.dy, ctx)
    dy = p.dy.copy()
    assert rustbn.batch_norm_backward(dy, ctx, out=dy).dx is dy
    assert_same_bits(dy, whole.dx, "dx in the place of dy")
    names = ("x", "weight", "bias", "residual")
    for count in range(5):
        for needs in combinations(names, count):
            some = rustbn.batch_norm_backward(p.dy, ctx, needs=needs)
            for name, part, expected in zip(names, some, whole, strict=True):
                assert_same_bits(part, expected if name in needs else None, f"{name} of {needs}")


@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_absent_parameters_have_no_gradient(with_weight: bool, with_bias: bool) -> None:
    p = cases.problem((6, 4, 5))
    whole = rustbn.batch_norm_backward(p.dy, forward(p, p.x, group_size=2)[1])
    weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
    _, ctx = rustbn.batch_norm_forward(p.x, None, None, weight, bias, group_size=2)
    _, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    assert_same_bits(dweight, whole.dweight if with_weight else None)
    assert_same_bits(dbias, whole.dbias if with_bias else None)


def test_lengths_and_masks_that_all_share_go_with_groups() -> None:
    p = cases.problem((7, 4, 9))
    lengths = [9, 2, 0, 5, 1, 1, 8]
    mask = np.arange(9) < np.array(lengths)[:, None]
    y, _ = forward(p, p.x, mask=mask, group_size=3)
    for same in (lengths, tuple(lengths), np.array(lengths)):
        assert_same_bits(forward(p, p.x, lengths=same, group_size=3)[0], y)
    every = np.arange(9) < 6
    y, _ = forward(p, p.x, mask=np.broadcast_to(every, (7, 9)), group_size=3)
    for shared in (every[None], every[None, None]):
        assert_same_bits(forward(p, p.x, mask=shared, group_size=3)[0], y)

    # Samples along the second axis, and channels along the first.
    turned = cases.problem((4, 7, 9), 0)
    y, _ = forward(turned, turned.x, mask=mask, group_size=3)
    assert_same_bits(forward(turned, turned.x, mask=mask[None], group_size=3)[0], y)
    assert_same_bits(forward(turned, turned.x, lengths=lengths, group_size=3)[0], y)


@pytest.mark.parametrize("size", [7, 8, 1000, np.int64(7), 2**62])
def test_a_group_as_large_as_the_batch_is_batch_norm(size: Any) -> None:
    p = cases.problem((7, 4, 5))
    for mask in (None, cases.mask(p.x.shape)):
        y, ctx = forward(p, p.x, mask=mask)
        y_, ctx_ = forward(p, p.x, mask=mask, group_size=size)
        assert_same_bits(y_, y)
        assert ctx_.moments == ctx.moments
        assert ctx_.affine == ctx.affine
        for a, b in zip(
            rustbn.batch_norm_backward(p.dy, ctx_),
            rustbn.batch_norm_backward(p.dy, ctx),
            strict=True,
        ):
            assert_same_bits(a, b)


def test_groups_do_not_matter_in_evaluation() -> None:
    p = cases.problem((7, 4, 5))
    y = rustbn.batch_norm(p.x, *p.vectors)
    assert_same_bits(rustbn.batch_norm(p.x, *p.vectors, group_size=2), y)
    y_, ctx = rustbn.batch_norm_forward(p.x, *p.vectors, training=False, group_size=2)
    assert_same_bits(y_, y)
    assert ctx.affine is not None


def test_a_batch_of_no_samples_or_no_values_has_no_groups() -> None:
    p = cases.problem((7, 4, 5))
    for shape in ((0, 4, 5), (7, 4, 0)):
        x = np.empty(shape, np.float32)
        stats = p.running_mean.copy(), p.running_var.copy()
        y, ctx = forward(p, x, stats, group_size=3)
        assert y.shape == shape
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(x, ctx)
        assert present(dx).shape == shape
        assert not present(dweight).any()
        assert not present(dbias).any()
        assert_same_bits(stats[0], p.running_mean)
        assert_same_bits(stats[1], p.running_var)


def test_a_context_serves_any_number_of_backwards() -> None:
    p = cases.problem((7, 4, 5))
    _, ctx = forward(p, p.x, group_size=3)
    first, second = (rustbn.batch_norm_backward(p.dy, ctx) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)
    before = p.dy.copy()
    out = np.full_like(p.x, 42)
    for wrong, error in ((p.dy[:6], ValueError), (p.dy.astype(np.float64), TypeError)):
        with pytest.raises(error, match=r"^dy must"):
            rustbn.batch_norm_backward(wrong, ctx, out=out)
    with pytest.raises(ValueError, match=r"^out must"):
        rustbn.batch_norm_backward(p.dy, ctx, out=p.x)
    assert (out == 42).all()
    assert_same_bits(p.dy, before)


@pytest.mark.parametrize("dtype", cases.WIDE)
def test_every_number_of_threads_gives_the_same_bits(dtype: npt.DTypeLike) -> None:
    p = cases.problem((9, 40, 56, 56), 1, dtype)
    found = []
    for n in (1, 2, 3):
        with rustbn.threads(n):
            y, ctx = forward(p, p.x, group_size=4)
            found.append([y, *rustbn.batch_norm_backward(p.dy, ctx)])
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            assert_same_bits(a, b)


# Modules.


def test_a_module_normalises_groups_in_training_alone() -> None:
    p = cases.problem((7, 4, 5))
    bn, plain = BatchNorm(4, group_size=3, momentum=0.3), BatchNorm(4, momentum=0.3)
    stats = np.zeros(4, np.float32), np.ones(4, np.float32)
    arguments: dict[str, Any] = {"training": True, "momentum": 0.3, "group_size": 3}
    y = rustbn.batch_norm(p.x, *stats, bn.weight, bn.bias, **arguments)
    assert_same_bits(bn(p.x), y)
    plain(p.x)
    dx = bn.backward(p.dy)
    assert_same_bits(bn.running_mean, stats[0])
    assert_same_bits(bn.running_var, stats[1])
    # The same data makes the same running statistics, however it is grouped.
    np.testing.assert_allclose(present(bn.running_var), present(plain.running_var), rtol=1e-6)
    assert bn.num_batches_tracked == 1
    _, ctx = rustbn.batch_norm_forward(p.x, None, None, bn.weight, bn.bias, group_size=3)
    expected = rustbn.batch_norm_backward(p.dy, ctx)
    for a, b in zip((dx, bn.weight_grad, bn.bias_grad), expected, strict=False):
        assert_same_bits(a, b)

    plain.load_state_dict(bn.state_dict())
    for mode in ("freeze", "eval"):
        for module in (bn, plain):
            getattr(module, mode)()
        assert_same_bits(bn(p.x), plain(p.x), mode)


def test_without_running_statistics_evaluation_is_of_the_whole_batch() -> None:
    p = cases.problem((7, 4, 5))
    bn = BatchNorm(4, track_running_stats=False, group_size=3)
    assert_same_bits(bn(p.x), rustbn.batch_norm(p.x, training=True, group_size=3))
    assert_same_bits(bn.eval()(p.x), rustbn.batch_norm(p.x, training=True))


def test_population_statistics_do_not_feel_groups() -> None:
    x = cases.problem((23, 4, 5)).x
    bn, plain = BatchNorm(4, group_size=3), BatchNorm(4)
    for module in (bn, plain):
        rustbn.recompute_statistics([module], [x[:10], x[10:]], module)
    np.testing.assert_allclose(present(bn.running_var), present(plain.running_var), rtol=1e-6)


@pytest.mark.parametrize("convention", ["torch", "flax"])
def test_conventions_take_the_merged_moments(convention: str) -> None:
    p = cases.problem((7, 4, 5), dtype=np.float64)
    bn = BatchNorm(4, momentum=0.25, group_size=3, convention=convention, dtype=np.float64)
    bn(p.x)
    count, mean, m2 = oracle.moments(p.x)
    share = 0.25 if convention == "torch" else 0.75
    var = m2 / (count - (convention == "torch"))
    for found, wanted in (
        (bn.running_mean, share * mean),
        (bn.running_var, 1 - share + share * var),
    ):
        np.testing.assert_allclose(present(found), wanted.astype(float), rtol=1e-14)


def test_a_group_of_one_value_changes_nothing() -> None:
    p = cases.problem((7, 4))
    bn = BatchNorm(4, group_size=3)  # 3, 3 and 1 sample
    before, out = bn.state_dict(), np.full((7, 4), 42, np.float32)
    with pytest.raises(
        ValueError, match=r"^x must hold at least 2 values per channel .*group_size.*got 1$"
    ):
        bn(p.x, out=out)
    assert (out == 42).all()
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)
    assert_same_bits(bn(p.x[:6])[3:], rustbn.batch_norm(p.x[3:6], training=True))


def test_the_size_is_part_of_the_module() -> None:
    bn = BatchNorm(4, group_size=3)
    assert "group_size=3" in repr(bn)
    assert "group_size" not in repr(BatchNorm(4))
    x = cases.problem((7, 4, 5)).x
    for twin in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert twin.group_size == 3
        assert_same_bits(twin(x), bn(x, update=False))
    bn.group_size = None
    assert_same_bits(bn(x), BatchNorm(4)(x))


@pytest.mark.parametrize("size", [0, -1])
def test_the_size_of_a_module_s_groups_is_positive(size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size must be positive, got {size}"):
        BatchNorm(4, group_size=size)


@pytest.mark.parametrize("size", [1.5, "3", (3,)])
def test_the_size_of_a_module_s_groups_is_an_integer(size: Any) -> None:
    with pytest.raises(TypeError, match="group_size must be an int, got"):
        BatchNorm(4, group_size=size)
