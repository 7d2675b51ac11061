"""SyncBatchNorm: what the ranks of a group find is what BatchNorm finds for the whole batch.

Ranks are threads here; `test_processes.py` has processes.
"""

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cases
import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import rustbn.distributed
import torch
from groups import Threads, check, problem, program, shards, step
from judge import assert_backward, assert_forward, assert_same_bits
from oracle import Array
from rustbn import SyncBatchNorm, _rustbn

SPLITS = [(9,), (4, 5), (9, 0), (0, 1, 0, 8), (1,) * 9, (3, 0, 6), (2, 7)]


def run(
    sizes: tuple[int, ...], shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike, **options: Any
) -> list[dict[str, Array]]:
    group = Threads(len(sizes))
    found = group.run(lambda rank: program(group, rank, sizes, shape, axis, dtype, **options))
    for result in found:
        if isinstance(result, Exception):
            raise result
    return found


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9, 5), 1), ((9, 4, 3, 6), 1), ((9, 7, 5, 4), -1), ((6, 9, 3), 0), ((9, 3, 2, 3, 2), 2)],
    ids=str,
)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_ranks_find_what_one_process_finds(
    sizes: tuple[int, ...], shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p, _ = problem(shape, axis, dtype)
    check(run(sizes, shape, axis, dtype), p)


@pytest.mark.parametrize("sizes", [(4, 5), (0, 1, 0, 8)], ids=str)
@pytest.mark.parametrize("activation", oracle.GATES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_residual_and_activation(
    sizes: tuple[int, ...],
    activation: oracle.Activation,
    with_residual: bool,
    dtype: npt.DTypeLike,
) -> None:
    if dtype in cases.HALVES and activation and not with_residual:
        pytest.skip("16 bits are too coarse to say where the corner of the gate is")
    shape = (9, 4, 3, 6)
    p, residual = problem(shape, 1, dtype)
    found = run(sizes, shape, 1, dtype, activation=activation, with_residual=with_residual)
    check(found, p, residual if with_residual else None, activation)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_group_of_one_is_a_batch_norm_bit_for_bit(activation: oracle.Activation) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        p, residual = problem(shape, axis, np.float32)
        options: dict[str, Any] = {"axis": axis, "activation": activation}
        expected = step(rustbn.BatchNorm(shape[axis], **options), p, p.x, p.dy, residual)
        group = Threads(1)

        group, options = Threads(1), options | {"num_features": shape[axis]}
        alone = step(SyncBatchNorm(**options), p, p.x, p.dy, residual)
        bn = SyncBatchNorm(**options, group=group)
        (grouped,) = group.run(lambda _: step(bn, p, p.x, p.dy, residual))  # noqa: B023
        for name, value in expected.items():
            assert_same_bits(alone[name], value, f"{name} of {shape}")
            assert_same_bits(grouped[name], value, f"{name} of {shape}")


def test_a_step_is_two_small_exchanges() -> None:
    channels, group = 7, Threads(3)

    def rank(_: int) -> None:
        bn = SyncBatchNorm(channels, group=group)
        x = cases.problem((4, channels, 5)).x
        for _ in range(2):
            bn(x)
            bn.backward(x)
        bn.eval()(x)
        bn.freeze()(x)
        bn.backward(x)

    assert group.run(rank) == [None] * 3
    features = [1] * 3  # before the first exchange: have all ranks as many features?
    assert group.gathered == [features, *[[2 * channels + 1] * 3] * 4]


def test_eval_and_frozen_are_of_this_rank_alone() -> None:
    class Silent:
        def allgather(self, sendobj: object) -> list[object]:
            raise AssertionError("nothing is to be gathered")

    p = cases.problem((6, 4, 5))
    bn, plain = SyncBatchNorm(4, group=Silent()), rustbn.BatchNorm(4)
    for module in (bn, plain):
        module.running_mean[:], module.running_var[:] = p.running_mean, p.running_var  # type: ignore[index]
    assert_same_bits(bn.eval()(p.x), plain.eval()(p.x))
    assert_same_bits(bn.freeze().train()(p.x), plain.freeze().train()(p.x))
    assert_same_bits(bn.backward(p.dy), plain.backward(p.dy))
    assert_same_bits(bn.weight_grad, plain.weight_grad)


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("momentum", [None, 0.25])
def test_running_statistics_over_steps(momentum: float | None, convention: str) -> None:
    if momentum is None and convention != "torch":
        pytest.skip("the cumulative average is PyTorch's")
    group = Threads(3)
    batches = [cases.problem((9, 4, 5), seed=seed).x for seed in range(4)]
    sizes = [(9, 0, 0), (1, 4, 4), (3, 3, 3), (0, 8, 1)]
    options: dict[str, Any] = {"momentum": momentum, "convention": convention}

    def rank(r: int) -> SyncBatchNorm:
        bn = SyncBatchNorm(4, group=group, **options)
        for batch, cut in zip(batches, sizes, strict=True):
            bn(shards(batch, cut)[r])
        bn(batches[0][:r], update=False)
        return bn

    plain = rustbn.BatchNorm(4, **options)
    for batch in batches:
        plain(batch)
    ranks = group.run(rank)
    for name, expected in plain.state_dict().items():
        for bn in ranks:
            assert_same_bits(bn.state_dict()[name], ranks[0].state_dict()[name])
            np.testing.assert_allclose(bn.state_dict()[name], expected, rtol=3e-7)
    assert {bn.num_batches_tracked for bn in ranks} == {4}


MASK = np.ones((9, 1, 5), np.bool_)
MASK[:4] = MASK[6, 0, 2:] = False  # nothing counts in the first four samples
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mask of all samples": ({"mask": np.array([[[True, False, True, True, False]]])}, {}),
    "mask, renorm, cumulative": ({"mask": MASK}, {"renorm": (1.5, 0.25), "momentum": None}),
    "renorm, update": ({"update": False}, {"renorm": (1.5, 0.25)}),
    "no statistics": ({}, {"track_running_stats": False}),
    "no bias": ({}, {"bias": False}),
}


@pytest.mark.parametrize("sizes", [(4, 5), (9, 0), (1, 0, 8)], ids=str)
@pytest.mark.parametrize("case", OTHERS)
def test_steps_are_those_of_one_process(case: str, sizes: tuple[int, ...]) -> None:
    """Three steps of two backwards each are those of `BatchNorm` on whole batches."""
    group, (arguments, options) = Threads(len(sizes)), OTHERS[case]
    problems = [cases.problem((9, 4, 5), seed=seed) for seed in range(3)]

    def cut(value: Any, rank: int) -> Any:
        sliced = isinstance(value, np.ndarray) and len(value) == 9
        return shards(value, sizes)[rank] if sliced else value

    def train(
        bn: rustbn.BatchNorm, rank: int | None = None
    ) -> tuple[rustbn.BatchNorm, list[Array]]:
        found = []
        for p in problems:
            x, dy, own = p.x, p.dy, arguments
            if rank is not None:
                x, dy = cut(x, rank), cut(dy, rank)
                own = {name: cut(value, rank) for name, value in arguments.items()}
            found += [bn(x, **own), bn.backward(dy), bn.backward(2 * dy)]
        return bn, found

    plain, expected = train(rustbn.BatchNorm(4, **options))
    ranks = group.run(lambda r: train(SyncBatchNorm(4, group=group, **options), r))
    for result in ranks:
        if isinstance(result, Exception):
            raise result
    for index, whole in enumerate(expected):
        parts = np.concatenate([found[index] for _, found in ranks])
        np.testing.assert_allclose(parts, whole, rtol=0, atol=3e-6)
    state = ranks[0][0].state_dict()
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(state[name], value, rtol=1e-6)
        for bn, _ in ranks:
            assert_same_bits(bn.state_dict()[name], state[name], f"{name} on every rank")
    for name, value in plain.named_grads():
        total = np.sum([dict(bn.named_grads())[name] for bn, _ in ranks], axis=0)
        np.testing.assert_allclose(total, value, rtol=1e-5, atol=1e-5)


def test_modules_of_a_network_share_a_group() -> None:
    group = Threads(2)
    p = cases.problem((9, 4, 5))
    mix = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)

    def network(bns: list[Any], x: Array, dy: Array) -> tuple[Array, Array]:
        y = bns[1](np.einsum("oc,ncl->nol", mix, bns[0](x)))
        return y, bns[0].backward(np.einsum("oc,nol->ncl", mix, bns[1].backward(dy)))

    def rank(r: int) -> tuple[Array, Array]:
        bns = [SyncBatchNorm(features, group=group) for features in (4, 3)]
        return network(bns, shards(p.x, (2, 7))[r], shards(p.dy[:, :3], (2, 7))[r])

    expected = network([rustbn.BatchNorm(4), rustbn.BatchNorm(3)], p.x, p.dy[:, :3])
    for parts, whole in zip(zip(*group.run(rank), strict=True), expected, strict=True):
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5)


def test_renormalisation_is_by_the_statistics_of_the_group() -> None:
    group, sizes = Threads(3), (2, 0, 7)
    p, _ = problem((9, 4, 5), 1, np.float64)
    options: dict[str, Any] = {"renorm": (1.5, 0.5), "dtype": np.float64}
    plain = rustbn.BatchNorm(4, **options)
    modules = [SyncBatchNorm(4, group=group, **options) for _ in range(3)]
    expected = step(plain, p, p.x, p.dy, None)
    found = group.run(
        lambda r: step(modules[r], p, shards(p.x, sizes)[r], shards(p.dy, sizes)[r], None)
    )
    for name in ("y", "dx"):
        whole = np.concatenate([each[name] for each in found])
        np.testing.assert_allclose(whole, expected[name], rtol=0, atol=1e-13)
    for each in found:
        np.testing.assert_allclose(each["running_var"], expected["running_var"], rtol=1e-14)
    share = np.sum([each["weight_grad"] for each in found], axis=0)
    np.testing.assert_allclose(share, expected["weight_grad"], rtol=1e-12)


def test_a_batch_that_is_empty_on_all_ranks() -> None:
    group = Threads(2)

    def rank(_: int) -> Any:
        bn = SyncBatchNorm(3, group=group)
        y = bn(np.empty((0, 3, 2), np.float32))
        dx = bn.backward(np.empty((0, 3, 2), np.float32))
        return y.shape, dx.shape, bn.num_batches_tracked, bn.running_var, bn.weight_grad

    for shape, dx_shape, batches, running_var, weight_grad in group.run(rank):
        assert shape == dx_shape == (0, 3, 2)
        assert batches == 1
        assert running_var.tolist() == [1, 1, 1]
        assert weight_grad.tolist() == [0, 0, 0]


def test_ranks_may_hold_different_dtypes() -> None:
    x = cases.problem((6, 4)).x
    group = Threads(2)
    parts = [x[:2].astype(np.float64), x[2:]]
    found = group.run(lambda r: SyncBatchNorm(4, group=group)(parts[r]))
    assert [y.dtype for y in found] == [np.float64, np.float32]
    np.testing.assert_allclose(np.concatenate(found), rustbn.BatchNorm(4)(x), atol=1e-6)


def test_gradient_through_the_group_by_finite_differences() -> None:
    rng = np.random.default_rng(3)
    x, g = rng.normal(size=(2, 7, 3)), rng.normal(size=(7, 3))
    weight = rng.normal(size=3)
    sizes = (2, 5)

    def loss(values: Array) -> float:
        return float((g * oracle.train(values, weight).y ** 2).sum())

    group = Threads(2)

    def rank(r: int) -> Array:
        bn = SyncBatchNorm(3, dtype=np.float64, group=group)
        bn.weight = weight
        y = bn(shards(x[0], sizes)[r])
        gradient: Array = bn.backward(2 * shards(g, sizes)[r] * y)
        return gradient

    dx, direction, h = np.concatenate(group.run(rank)), x[1], 1e-5
    slope = (loss(x[0] + h * direction) - loss(x[0] - h * direction)) / (2 * h)
    assert abs((dx * direction).sum() - slope) < 1e-7 * abs(slope)


# Errors: nobody waits for a rank that knows it cannot go on, and nothing has changed anywhere.

FORWARD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype of x": ({"x": np.ones((2, 4, 3), np.int32)}, TypeError, r"x must have dtype"),
    "no array": ({"x": [[1.0]]}, TypeError, r"x must be"),
    "no array at all": ({"x": [[1.0], [1.0, 2.0]]}, TypeError, r"x must be"),
    "rank of x": ({"x": np.ones(4, np.float32)}, ValueError, r"x must have"),
    "channels": ({"x": np.ones((2, 5, 3), np.float32)}, ValueError, r"\(5,\)|5 channels|4"),
    "residual": ({"residual": np.ones((2, 4, 4), np.float32)}, ValueError, "residual must"),
    "dtype of residual": ({"residual": np.ones((2, 4, 3))}, TypeError, "residual must"),
    "out": ({"out": np.ones((2, 4, 4), np.float32)}, ValueError, "out must"),
    "dtype of out": ({"out": np.ones((2, 4, 3))}, TypeError, "out must"),
    "update": ({"update": 1}, TypeError, "update must be a bool"),
}


def snapshot(bn: rustbn.BatchNorm) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in [*bn.state_dict().items(), *bn.named_grads()]}


def fails(
    group: Threads, program: Callable[[int], Any], error: type[Exception], match: str
) -> None:
    """Assert that rank 1 raises this error, and all others one that tells of it."""
    found = group.run(program)
    for rank, result in enumerate(found):
        with pytest.raises(error if rank == 1 else RuntimeError) as caught:
            raise result
        assert rank != 1 or caught.match(match)
        if rank != 1:
            assert str(result).startswith(f"rank 1 of the group has raised {error.__name__}: ")


@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("steps_before", [0, 1])
def test_what_is_wrong_on_one_rank_is_an_error_on_all(case: str, steps_before: int) -> None:
    changes, error, match = FORWARD[case]
    group = Threads(3)
    p = cases.problem((2, 4, 3))
    modules = [SyncBatchNorm(4, group=group) for _ in range(3)]
    out = np.full((2, 4, 3), 42, np.float32)

    def train(r: int) -> None:
        for _ in range(steps_before):
            modules[r](p.x)
            modules[r].backward(p.dy)

    assert group.run(train) == [None] * 3
    before = [snapshot(bn) for bn in modules]
    calls: list[dict[str, Any]] = [{"x": p.x, "out": out}, {"x": p.x} | changes, {"x": p.x}]
    fails(group, lambda r: modules[r](**calls[r]), error, match)
    assert [snapshot(bn) for bn in modules] == before
    assert (out == 42).all()
    # All go on from here, in step.
    found = group.run(lambda r: step(modules[r], p, p.x, p.dy, None))
    assert [set(f) for f in found] == [set(found[0])] * 3


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda bn: setattr(bn, "eps", 0.0), ValueError, "eps must be positive"),
        (lambda bn: setattr(bn, "momentum", "high"), TypeError, "momentum must be"),
        (lambda bn: setattr(bn, "weight", np.ones(5, np.float32)), ValueError, "weight must"),
        (lambda bn: setattr(bn, "running_mean", [0.0] * 4), TypeError, "running_mean must"),
        (lambda bn: bn.running_var.setflags(write=False), ValueError, "running_var"),
        (lambda bn: setattr(bn, "activation", "silu"), ValueError, "activation must"),
        (lambda bn: setattr(bn, "group_size", 2), ValueError, "group_size must be None"),
    ],
)
def test_what_is_wrong_with_a_module_is_an_error_on_all_ranks(
    spoil: Callable[[Any], None], error: type[Exception], match: str
) -> None:
    group = Threads(3)
    modules = [SyncBatchNorm(4, group=group) for _ in range(3)]
    spoil(modules[1])
    before = [snapshot(bn) for bn in (modules[0], modules[2])]
    fails(group, lambda r: modules[r](np.ones((2, 4), np.float32)), error, match)
    assert [snapshot(bn) for bn in (modules[0], modules[2])] == before


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"dy": np.ones((2, 4, 4), np.float32)}, ValueError, "dy must"),
        ({"dy": np.ones((2, 4, 3))}, TypeError, "dy must"),
        ({"out": np.ones((2, 4, 3))}, TypeError, "out must"),
        ({"out": np.ones((2, 4, 3), np.float32)[:, ::-1][:, :3]}, ValueError, "out must"),
    ],
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_what_is_wrong_with_a_backward_is_an_error_on_all_ranks(
    arguments: dict[str, Any], error: type[Exception], match: str, activation: str | None
) -> None:
    group = Threads(3)
    p = cases.problem((2, 4, 3))
    modules = [SyncBatchNorm(4, activation=activation, group=group) for _ in range(3)]
    assert all(isinstance(y, np.ndarray) for y in group.run(lambda r: modules[r](p.x)))
    before = [snapshot(bn) for bn in modules]
    fails(
        group,
        lambda r: modules[r].backward(**({"dy": p.dy} | (arguments if r == 1 else {}))),
        error,
        match,
    )
    assert [snapshot(bn) for bn in modules] == before
    expected = rustbn.BatchNorm(4, activation=activation)
    expected(np.concatenate([p.x] * 3))
    dx = expected.backward(np.concatenate([p.dy] * 3))
    np.testing.assert_allclose(
        np.concatenate(group.run(lambda r: modules[r].backward(p.dy))), dx, atol=1e-6
    )


def test_backward_without_a_forward_on_one_rank() -> None:
    group = Threads(3)
    x = cases.problem((4, 5)).x

    def rank(r: int) -> Any:
        bn = SyncBatchNorm(5, group=group)
        bn(x)
        if r == 1:
            bn = copy.deepcopy(bn)
        return bn.backward(x)

    fails(group, rank, RuntimeError, "backward needs")


def test_ranks_must_be_in_step() -> None:
    group = Threads(3)
    x = cases.problem((4, 5)).x
    modules = [SyncBatchNorm(5, group=group) for _ in range(3)]
    assert all(isinstance(y, np.ndarray) for y in group.run(lambda r: modules[r](x)))
    before = [snapshot(bn) for bn in modules]
    for result in group.run(lambda r: modules[r](x) if r == 1 else modules[r].backward(x)):
        assert isinstance(result, RuntimeError)
        assert str(result).startswith("ranks [0, 2] of the group are in backward, the others in f")
    assert [snapshot(bn) for bn in modules] == before


def test_ranks_must_have_the_same_features() -> None:
    group = Threads(3)
    modules = [SyncBatchNorm(features, group=group) for features in (4, 6, 4)]
    for _ in range(2):
        found = group.run(lambda r: modules[r](np.ones((2, 6 if r == 1 else 4), np.float32)))
        for result in found:
            assert isinstance(result, ValueError)
            assert str(result) == "num_features must be the same on all ranks, got [4, 6, 4]"
    assert {bn.num_batches_tracked for bn in modules} == {0}


@pytest.mark.parametrize("sizes", [(1, 0), (0, 1)])
def test_one_value_per_channel_in_the_group(sizes: tuple[int, int]) -> None:
    group = Threads(2)
    modules = [SyncBatchNorm(4, group=group) for _ in range(2)]
    found = group.run(lambda r: modules[r](np.ones((sizes[r], 4), np.float32)))
    for result in found:
        assert isinstance(result, ValueError)
        assert "x must have at least 2 values per channel" in str(result)
    assert {bn.num_batches_tracked for bn in modules} == {0}


def test_nonfinite_statistics_are_everybody_s() -> None:
    group = Threads(2)
    x = cases.problem((6, 4)).x
    x[5, 2] = np.inf

    def rank(r: int, policy: str) -> SyncBatchNorm:
        bn = SyncBatchNorm(4, on_nonfinite=policy, group=group)
        bn(shards(x, (2, 4))[r])
        return bn

    for result in group.run(lambda r: rank(r, "raise")):
        assert isinstance(result, FloatingPointError)
        assert "channels [2]" in str(result)
    for bn in group.run(lambda r: rank(r, "skip")):
        assert bn.running_var[2] == 1
        assert (bn.running_var[[0, 1, 3]] != 1).all()


@pytest.mark.parametrize("length", [1, 7])
def test_the_text_of_an_error_may_be_cut(length: int) -> None:
    row = np.zeros(length)
    rustbn.distributed._write_text(row, "häßlich" * 10)
    found = rustbn.distributed._text(row)
    assert found.endswith("...")
    assert ("häßlich" * 10).startswith(found[:-3])
    rustbn.distributed._write_text(row, "short")
    assert rustbn.distributed._text(row) == "short"


# Masks: each rank has its own; what counts is what they count together.

LENGTHS = [(6, 1, 0, 3, 6, 2, 5, 4, 1), (0, 0, 0, 0, 6, 6, 1, 1, 0), (0, 1, 0, 0, 0, 0, 0, 0, 1)]


def counted(lengths: Sequence[int] | Array, length: int = 6) -> Array:
    return np.arange(length) < np.array(lengths)[:, None]


def pieces(rank: int, sizes: Sequence[int], lengths: Sequence[int], form: str) -> dict[str, Any]:
    """Return what tells a rank which of its positions count, in one of the forms there are."""
    mine = shards(np.array(lengths), sizes)[rank]
    if form == "lengths":
        return {"lengths": mine.tolist()}
    mask = counted(mine)
    return {"mask": mask[:, None] if form == "mask of x's rank" else mask}


@pytest.mark.parametrize("form", ["lengths", "mask", "mask of x's rank"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("sizes", [(4, 5), (9, 0), (3, 1, 5)], ids=str)
def test_only_what_counts_enters(
    sizes: tuple[int, ...], lengths: tuple[int, ...], form: str
) -> None:
    """Positions that do not count are NaN, and as if they were not there."""
    p, _ = problem((9, 4, 6), 1, np.float32)
    here = counted(lengths)
    x, dy = p.x.copy(), p.dy.copy()
    x.transpose(0, 2, 1)[~here] = np.nan
    dy.transpose(0, 2, 1)[~here] = 0
    group = Threads(len(sizes))

    def rank(r: int) -> tuple[Array, Array, SyncBatchNorm]:
        bn = SyncBatchNorm(4, group=group)
        bn.weight[:], bn.bias[:] = p.weight, p.bias  # type: ignore[index]
        y = bn(shards(x, sizes)[r], **pieces(r, sizes, lengths, form))
        return y, bn.backward(shards(dy, sizes)[r]), bn

    found = group.run(rank)
    y = np.concatenate([each[0] for each in found]).transpose(0, 2, 1)
    dx = np.concatenate([each[1] for each in found]).transpose(0, 2, 1)
    values = x.transpose(0, 2, 1)[here]  # (positions that count, channels)
    exact = oracle.train(values, p.weight, p.bias)
    assert_forward(y[here], exact)
    gradients = oracle.train_backward(dy.transpose(0, 2, 1)[here], values, p.weight)
    assert_backward(dx[here], None, None, gradients)
    assert not dx[~here].any()
    for _, _, bn in found:
        assert_same_bits(bn.running_var, found[0][2].running_var)
        expected = 0.9 + 0.1 * oracle.unbiased(values)
        np.testing.assert_allclose(bn.running_var, expected, rtol=3e-7)
    share = np.sum([bn.weight_grad for _, _, bn in found], axis=0)
    np.testing.assert_allclose(share, gradients.dweight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_of_all_positions_beside_autograd(
    activation: oracle.Activation, with_residual: bool
) -> None:
    """Every position is normalised, so each has a gradient, though few made the statistics."""
    p, residual = problem((9, 4, 6), 1, np.float64)
    sizes, lengths = (2, 0, 7), LENGTHS[0]
    group = Threads(3)

    def rank(r: int) -> tuple[Array, Any]:
        bn = SyncBatchNorm(4, dtype=np.float64, activation=activation, group=group)
        bn.weight[:], bn.bias[:] = p.weight, p.bias  # type: ignore[index]
        extra = shards(residual, sizes)[r] if with_residual else None
        y = bn(shards(p.x, sizes)[r], residual=extra, mask=shards(counted(lengths), sizes)[r])
        gradients = bn.backward(shards(p.dy, sizes)[r])
        return y, gradients if with_residual else (gradients,)

    found = group.run(rank)
    x, r = (torch.from_numpy(v.copy()).requires_grad_() for v in (p.x, residual))
    m = torch.from_numpy(counted(lengths).astype(float))[:, None]
    n = m.sum()
    mean = (x * m).sum((0, 2), keepdim=True) / n
    var = ((x - mean) ** 2 * m).sum((0, 2), keepdim=True) / n
    weight, bias = (torch.from_numpy(v)[:, None] for v in (p.weight, p.bias))
    z = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
    if with_residual:
        z = z + r
    slope = {None: 1.0, "relu": 0.0}.get(activation, 0.3)  # type: ignore[arg-type]
    y = torch.where(z > 0, z, z * slope)
    y.backward(torch.from_numpy(p.dy))  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(np.concatenate([f[0] for f in found]), y.detach(), atol=1e-13)
    for which, tensor in enumerate((x, r)[: 1 + with_residual]):
        gradient = np.concatenate([f[1][which] for f in found])
        assert tensor.grad is not None
        np.testing.assert_allclose(gradient, tensor.grad, atol=1e-13)


@pytest.mark.parametrize("lengths", [(0, 0, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0)])
def test_too_few_that_count_in_the_group(lengths: tuple[int, ...]) -> None:
    group, sizes = Threads(3), (2, 0, 2)
    modules = [SyncBatchNorm(4, group=group) for _ in range(3)]
    x = cases.problem((4, 4, 6)).x
    found = group.run(
        lambda r: modules[r](shards(x, sizes)[r], **pieces(r, sizes, lengths, "lengths"))
    )
    for result in found:
        assert isinstance(result, ValueError)
        assert (
            f"over all ranks of the group, for batch statistics in training, got {sum(lengths)}"
            in (str(result))
        )
    assert {bn.num_batches_tracked for bn in modules} == {0}


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"mask": np.ones((2, 4), np.float32)}, TypeError, "mask must"),
        ({"mask": np.ones((3, 3), np.bool_)}, ValueError, "mask must"),
        ({"lengths": [1, 9]}, ValueError, "lengths must"),
        ({"lengths": [1.5, 1.0]}, TypeError, "lengths must"),
        ({"lengths": [1, 1], "mask": np.ones((2, 3), np.bool_)}, ValueError, "mask|lengths"),
    ],
)
def test_a_wrong_mask_on_one_rank(
    changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    group = Threads(3)
    modules = [SyncBatchNorm(4, group=group) for _ in range(3)]
    x = cases.problem((2, 4, 3)).x
    fails(group, lambda r: modules[r](x, **(changes if r == 1 else {})), error, match)
    assert {bn.num_batches_tracked for bn in modules} == {0}


# What a group is.


@pytest.mark.parametrize(
    "group",
    [1, "world", [1, 2], object(), Threads, np.ones(3)],
    ids=lambda group: type(group).__name__,
)
def test_what_is_no_group_is_refused_at_once(group: Any) -> None:
    with pytest.raises(TypeError, match=r"group must be None, have a method allgather"):
        SyncBatchNorm(3, group=group)
    bn = SyncBatchNorm(3)
    with pytest.raises(TypeError, match=r"group must be"):
        bn.group = group
    assert bn.group is None


def test_buffers_are_preferred_to_objects() -> None:
    class Communicator:
        def Get_size(self) -> int:
            return 2

        def Allgather(self, sendbuf: Array, recvbuf: Array) -> None:
            recvbuf[:] = sendbuf

        def allgather(self, sendobj: object) -> list[object]:
            raise AssertionError("no pickles, please")

    p = cases.problem((6, 4, 5))
    twice = rustbn.BatchNorm(4)
    expected = twice(np.concatenate([p.x, p.x]))
    dx = twice.backward(np.concatenate([p.dy, p.dy]))
    bn = SyncBatchNorm(4, group=Communicator())
    np.testing.assert_allclose(bn(p.x), expected[:6], atol=1e-6)
    np.testing.assert_allclose(bn.backward(p.dy), dx[:6], atol=1e-6)


class Returns:
    """A group whose allgather is broken."""

    def __init__(self, gathered: Any, after: int = 0) -> None:
        self.gathered, self.after = gathered, after

    def allgather(self, sendobj: Any) -> Any:
        self.after -= 1
        return [sendobj] if self.after >= 0 else self.gathered


@pytest.mark.parametrize(
    ("gathered", "error", "got"),
    [
        (None, TypeError, "NoneType"),
        (3, TypeError, "int"),
        (iter(()), TypeError, "tuple_iterator"),
        ([], ValueError, "none"),
        ([None], ValueError, "NoneType"),
        ([np.zeros(5), np.zeros(7)], ValueError, "shape (5,), shape (7,)"),
        ([np.zeros((1, 9))], ValueError, "shape (1, 9)"),
        ([np.float64(1.0), "row"], ValueError, "float64, str"),
        (np.zeros((2, 3)), ValueError, "shape (3,), shape (3,)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_allgather_must_return(
    gathered: Any, error: type[Exception], got: str, after: int
) -> None:
    bn = SyncBatchNorm(4, group=Returns(gathered, after))
    x = cases.problem((6, 4)).x
    shape = (1,) if after == 0 else (9,)
    expected = f"an array of shape {shape} for each rank, got {got}"
    if after == 2:  # the exchange of backward
        bn(x)
    before = snapshot(bn)
    with pytest.raises(error) as caught:
        bn.backward(x) if after == 2 else bn(x)
    assert str(caught.value) == f"group.allgather must return a list of {expected}"
    assert snapshot(bn) == before


def test_rows_may_be_lists() -> None:
    class Lists:
        def allgather(self, sendobj: Array) -> tuple[list[float], ...]:
            return (sendobj.tolist(),)

    x = cases.problem((6, 4)).x
    assert_same_bits(SyncBatchNorm(4, group=Lists())(x), rustbn.BatchNorm(4)(x))


def test_a_part_takes_what_the_whole_takes_but_the_last_two() -> None:
    whole, part = (inspect.signature(f) for f in (_rustbn.module_forward, _rustbn.part_forward))
    assert list(whole.parameters)[-2:] == ["training", "group_size"]
    assert list(part.parameters) == ["merge", *list(whole.parameters)[:-2]]


def test_copies_share_the_group_and_pickles_leave_it_out() -> None:
    group = Threads(2)
    x = cases.problem((6, 4)).x

    def rank(r: int) -> Any:
        bn = SyncBatchNorm(4, group=group)
        copies = copy.copy(bn), copy.deepcopy(bn)
        assert all(each.group is group for each in copies)
        return [each(shards(x, (2, 4))[r]) for each in (bn, *copies)]

    for found in group.run(rank):
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])

    bn = SyncBatchNorm(4, activation="relu", on_nonfinite="skip", group=group)
    bn.running_mean[:] = 3  # type: ignore[index]
    loaded = pickle.loads(pickle.dumps(bn))
    assert_same_bits(loaded.running_mean, bn.running_mean)
    assert (loaded.activation, loaded.on_nonfinite) == ("relu", "skip")
    assert repr(loaded.group) == "<lost in a pickle>"
    with pytest.raises(RuntimeError, match=r"^group must be set .*, got <lost in a pickle>$"):
        loaded(x)
    with pytest.raises(TypeError, match="group must be None, have"):
        SyncBatchNorm(4, group=loaded.group)
    loaded.eval()(x)
    loaded.train().group = None
    assert loaded.group is None
    assert_same_bits(loaded(x), rustbn.BatchNorm(4, activation="relu")(x))
    alone = pickle.loads(pickle.dumps(SyncBatchNorm(4)))
    assert_same_bits(alone(x), rustbn.BatchNorm(4)(x))
    # What was unpickled once can be pickled again, and is still without a group.
    with pytest.raises(RuntimeError, match="group must be set"):
        pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(bn))))(x)


def test_repr_and_examples() -> None:
    assert repr(SyncBatchNorm(3, group=Threads(1))).startswith("SyncBatchNorm(3, eps=1e-05, ")
    results = doctest.testmod(rustbn.distributed)
    assert results.attempted > 0
    assert results.failed == 0


def test_bfloat16_parameters() -> None:
    x = cases.problem((6, 4)).x.astype(ml_dtypes.bfloat16)
    group = Threads(2)
    found = group.run(
        lambda r: SyncBatchNorm(4, dtype=ml_dtypes.bfloat16, group=group)(shards(x, (2, 4))[r])
    )
    expected = rustbn.BatchNorm(4, dtype=ml_dtypes.bfloat16)(x)
    assert_same_bits(np.concatenate(found), expected)
