"""`rustbn.batch_norm` in the place of `torch.nn.functional.batch_norm`: every result, swept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import peer
import pytest
import rustbn
import torch
from judge import (
    assert_backward,
    assert_forward,
    assert_same_bits,
    assert_within,
    present,
    ulp,
    y_size,
)
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)
both_modes = pytest.mark.parametrize("training", [True, False])

# Parity has two halves. What we compute is right: within a few ULP of the oracle, as `judge` says.
# And it is what PyTorch computes: within PyTorch's own error, which is up to 90 ULP of the terms
# where |mean| >> std or where its channels-last kernel adds up many float32 values in float32; and
# a few of 16 bits. There the vectors are float32: with others PyTorch keeps the statistics between
# forward and backward in 16 bits, which its gradients feel.
THEIR_ULPS = 128.0
HALF_ULPS = 2.0


def their_ulps(dtype: npt.DTypeLike) -> float:
    """Return how far PyTorch's results may be from ours."""
    return HALF_ULPS if np.dtype(dtype).itemsize == 2 else THEIR_ULPS


def assert_parity(
    p: cases.Problem,
    training: bool,
    given: str = "rwb",
    channels_last: bool = False,
    what: str = "",
) -> None:
    """Compare y, running statistics and gradients with the oracle's and with PyTorch's.

    `given` says which vectors there are: r(unning statistics), w(eight), b(ias).
    """
    mean, var, weight, bias = (
        vector.astype(cases.parameter_dtype(p.x.dtype)) if kind in given else None
        for vector, kind in zip(p.copied_vectors(), "rrwb", strict=True)
    )
    theirs = peer.batch_norm(
        p.x, mean, var, weight, bias, training, dy=p.dy, axis=p.axis, channels_last=channels_last
    )
    y, ctx = rustbn.batch_norm_forward(p.x, mean, var, weight, bias, training, axis=p.axis)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)

    if training:
        forward = oracle.train(p.x, weight, bias, axis=p.axis)
        backward = oracle.train_backward(p.dy, p.x, weight, axis=p.axis)
    else:
        forward = oracle.normalise(p.x, p.running_mean, p.running_var, weight, bias, axis=p.axis)
        stats = p.running_mean, p.running_var
        backward = oracle.eval_backward(p.dy, p.x, *stats, weight, axis=p.axis)
    assert_forward(y, forward, f"y {what}")
    assert_backward(dx, dweight, dbias, backward, what)

    results: list[tuple[str, Array | None, Array | None, Array]] = [
        ("y", y, theirs.y, y_size(forward)),
        ("dx", dx, theirs.dx, oracle.per_channel(backward.dx_terms, p.x.ndim, p.axis)),
        ("dweight", dweight, theirs.dweight, backward.dweight_terms),
        ("dbias", dbias, theirs.dbias, backward.dbias_terms),
        ("running_mean", mean, theirs.running_mean, abs(p.running_mean) + abs(forward.mean)),
        ("running_var", var, theirs.running_var, p.running_var + forward.var),
    ]
    for name, ours, other, size in results:
        if ours is None or other is None:
            assert ours is other, f"{name} {what}"
        else:
            assert ours.dtype == other.dtype, f"{name} {what}"
            allowed = their_ulps(p.x.dtype) * ulp(size, p.x.dtype)
            assert_within(ours, other, allowed, f"{name} {what} beside PyTorch's")


PATTERNS = ("rwb", "rw", "rb", "r", "wb", "w", "b", "")


def patterns(training: bool) -> Iterator[str]:
    """Yield which vectors may be there: evaluation needs running statistics."""
    return (pattern for pattern in PATTERNS if training or "r" in pattern)


@both_dtypes
@both_modes
def test_every_pattern_of_absent_vectors(training: bool, dtype: npt.DTypeLike) -> None:
    for shape, given in product(((6, 5), (3, 4, 7), (2, 3, 20, 20)), patterns(training)):
        p = cases.problem(shape, 1, dtype)
        assert_parity(p, training, given, what=f"of {shape} with {given!r}")


@both_dtypes
@both_modes
def test_every_number_of_channels_from_1_to_70(training: bool, dtype: npt.DTypeLike) -> None:
    for channels in range(1, 71):
        for shape in ((5, channels), (2, channels, 3), (33, channels), (3, channels, 2, 2)):
            assert_parity(cases.problem(shape, 1, dtype), training, what=f"of {shape}")


@both_dtypes
@both_modes
def test_every_plane_size_from_1_to_70(training: bool, dtype: npt.DTypeLike) -> None:
    for length in range(1, 71):
        for shape in ((2, 1, length), (3, 2, length), (9, 5, length), (2, 17, length)):
            assert_parity(cases.problem(shape, 1, dtype), training, what=f"of {shape}")
        assert_parity(cases.problem((2, length, 3), -1, dtype), training, what=f"of {length} last")


@both_dtypes
@both_modes
@pytest.mark.parametrize("rank", cases.SHAPE_OF_RANK)
def test_every_axis_of_every_rank(rank: int, training: bool, dtype: npt.DTypeLike) -> None:
    for axis in range(-rank, rank):
        p = cases.problem(cases.SHAPE_OF_RANK[rank], axis, dtype)
        assert_parity(p, training, what=f"along {axis}")


@both_modes
@pytest.mark.parametrize("shape", cases.NETWORK_SHAPES)
def test_shapes_of_networks(shape: tuple[int, ...], training: bool) -> None:
    p = cases.problem(shape)
    assert_parity(p, training)
    if len(shape) == 4:
        order = (0, 2, 3, 1)
        p.x, p.dy = cases.in_order(p.x, order), cases.in_order(p.dy, order)
        assert_parity(p, training, channels_last=True, what="in NHWC memory")


def test_a_whole_layer_of_resnet50() -> None:
    # 32 x 64 x 112 x 112, 98 MiB: larger than any cache. A few channels are compared in full.
    whole = cases.problem((32, 64, 112, 112))
    for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
        x, dy = cases.in_order(whole.x, order), cases.in_order(whole.dy, order)
        y, ctx = rustbn.batch_norm_forward(x, None, None, whole.weight, whole.bias)
        dx, dweight, dbias, _ = rustbn.batch_norm_backward(dy, ctx)
        dx, dweight, dbias = present(dx), present(dweight), present(dbias)
        for c in range(0, 64, 9):
            one = slice(c, c + 1)
            forward = oracle.train(whole.x[:, one], whole.weight[one], whole.bias[one])
            args = whole.dy[:, one], whole.x[:, one], whole.weight[one]
            backward = oracle.train_backward(*args)
            what = f"of channel {c} in order {order}"
            assert_forward(y[:, one], forward, f"y {what}")
            assert_backward(dx[:, one], dweight[one], dbias[one], backward, what)


@both_dtypes
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 1.0, -0.5, 2.0])
def test_momentum_moves_as_in_pytorch(momentum: float, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    args = p.weight, p.bias, True, momentum
    theirs = peer.batch_norm(p.x, p.running_mean, p.running_var, *args, dy=p.dy)
    rustbn.batch_norm(p.x, p.running_mean, p.running_var, *args)
    allowed = 4 * (1 + abs(momentum)) * ulp(4.0, dtype)
    assert_within(p.running_mean, present(theirs.running_mean), allowed, "running_mean")
    assert_within(p.running_var, present(theirs.running_var), allowed, "running_var")


@both_dtypes
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-3, 1.0, 100.0])
@both_modes
def test_eps_is_added_as_in_pytorch(training: bool, eps: float, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    args = p.weight, p.bias, training, 0.1, eps
    theirs = peer.batch_norm(p.x, p.running_mean, p.running_var, *args, dy=p.dy)
    y = rustbn.batch_norm(p.x, p.running_mean, p.running_var, *args)
    assert_within(y, theirs.y, their_ulps(dtype) * ulp(abs(theirs.y).max(), dtype))


@pytest.mark.parametrize("dtype", cases.WIDE)
def test_many_steps_keep_running_statistics_together(dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 9), 1, dtype)
    mean, var = torch.tensor(p.running_mean), torch.tensor(p.running_var)
    for seed in range(50):
        x = cases.problem((4, 5, 9), 1, dtype, seed).x
        rustbn.batch_norm(x, p.running_mean, p.running_var, training=True)
        torch.nn.functional.batch_norm(torch.from_numpy(x), mean, var, training=True)
    assert_within(p.running_mean, mean.numpy(), 50 * ulp(4.0, dtype), "running_mean")
    assert_within(p.running_var, var.numpy(), 50 * ulp(8.0, dtype), "running_var")


@pytest.mark.parametrize("dtype", cases.NUMPY_DTYPES)
@both_modes
def test_tensors_in_the_place_of_arrays(training: bool, dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 5, 7), 1, dtype)
    vectors = p.copied_vectors()
    mean, var, weight, bias = tensors = [torch.from_numpy(v.copy()) for v in vectors]
    y = rustbn.batch_norm(torch.from_numpy(p.x), mean, var, weight, bias, training)
    assert type(y) is np.ndarray
    assert_same_bits(y, rustbn.batch_norm(p.x, *vectors, training))
    for tensor, vector in zip(tensors, vectors, strict=True):
        assert_same_bits(tensor.numpy(), vector)
    x_last = torch.from_numpy(cases.problem((2, 3, 4, 5), 1, dtype).x)
    x_last = x_last.to(memory_format=torch.channels_last)
    y = rustbn.batch_norm(x_last, training=True)
    assert y.strides == x_last.numpy().strides


ALIKE: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "one value per channel": ((1, 3, 1), {"training": True}),
    "eps of zero": ((4, 3), {"training": True, "eps": 0.0}),
    "negative eps": ((4, 3), {"training": True, "eps": -1e-5}),
}


@pytest.mark.parametrize("what", ALIKE)
def test_what_pytorch_refuses_is_refused_with_the_same_exception(what: str) -> None:
    shape, options = ALIKE[what]
    x = cases.problem(shape).x
    with pytest.raises(ValueError, match=r"1 value|eps"):
        torch.nn.functional.batch_norm(torch.from_numpy(x), None, None, **options)
    with pytest.raises(ValueError, match=r"2 values|eps"):
        rustbn.batch_norm(x, None, None, **options)
