"""Inputs the tests share: shapes, memory layouts, hard data, and a digest of everything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import rustbn
from numpy.lib.stride_tricks import as_strided
from oracle import Array, per_channel

HALVES = (np.float16, ml_dtypes.bfloat16)
WIDE = (np.float32, np.float64)
DTYPES = HALVES + WIDE
# Those that PyTorch gives to NumPy.
NUMPY_DTYPES = (np.float16, *WIDE)

# One small shape per rank, for sweeps over every axis and every order of the axes.
SHAPE_OF_RANK = {
    2: (5, 7),
    3: (4, 3, 6),
    4: (3, 5, 2, 4),
    5: (2, 3, 4, 2, 3),
    6: (2, 3, 2, 3, 1, 2),
}

# (shape, axis) for every way channels can lie in memory, at sizes around every boundary that a
# kernel may have: one row, one channel, lanes of 8 and 16 and their tails, small and large planes.
ARRANGEMENTS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((2, 1), 1),
    ((2, 23), 1),
    ((64, 5), 1),
    ((1000, 3), 1),
    ((37, 16), 1),
    ((130, 129), 1),
    ((300, 257), 1),
    ((5, 300), 0),
    ((1, 3, 1001), 1),
    ((2, 3, 1), 1),
    ((6, 17, 70), 1),
    ((5, 33, 27), 1),
    ((9, 40, 33), 2),
    ((2, 32, 32), 1),
    ((4, 16, 7, 7), 1),
    ((3, 40, 14, 14), 1),
    ((2, 5, 28, 28), 1),
    ((2, 3, 56, 56), 1),
    ((4, 7, 7, 66), 3),
    ((4, 200, 17, 16), 1),
    ((2, 16, 12, 12, 12), 1),
    ((1, 19, 4, 6, 6), 1),
    ((3, 2, 2, 3, 2, 3), 4),
)

# Large enough for every thread to have work, and for outputs beyond the caches.
LARGE: tuple[tuple[tuple[int, ...], int], ...] = (
    ((1, 1, 1_500_000), 1),
    ((1_500_000, 1), 1),
    ((20_000, 70), 1),
    ((8, 40, 56, 56), 1),
    ((8, 56, 56, 40), 3),
    ((32, 300, 7, 7), 1),
)

# Layers of real networks, with fewer images and channels where the layer is big:
# ResNet-50 (the first nine), then Inception v3 and others, then odd ones.
NETWORK_SHAPES: tuple[tuple[int, ...], ...] = (
    (2, 64, 112, 112),
    (2, 256, 56, 56),
    (4, 64, 56, 56),
    (4, 128, 28, 28),
    (2, 512, 28, 28),
    (4, 256, 14, 14),
    (2, 1024, 14, 14),
    (4, 512, 7, 7),
    (4, 2048, 7, 7),
    (2, 24, 147, 147),
    (2, 80, 73, 73),
    (4, 96, 35, 35),
    (4, 160, 17, 17),
    (16, 384, 8, 8),
    (16, 224, 14, 14),
    (16, 320, 7, 7),
    (2, 23),
    (2, 32, 32),
    (5, 33, 27),
    (2, 256, 28, 28),
    (4, 200, 17, 16),
    (2, 16, 12, 12, 12),
    (1, 19, 4, 6, 6),
)


Vectors = tuple[Array, Array, Array, Array]


@dataclass
class Problem:
    """A batch, its upstream gradient and the vectors of its channels, all of one dtype."""

    x: Array
    dy: Array
    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    axis: int

    @property
    def vectors(self) -> Vectors:
        """Return running_mean, running_var, weight, bias: the order of the functions."""
        return self.running_mean, self.running_var, self.weight, self.bias

    def copied_vectors(self) -> Vectors:
        """Return copies of them, for calls that update the running statistics."""
        mean, var, weight, bias = (vector.copy() for vector in self.vectors)
        return mean, var, weight, bias


def problem(
    shape: tuple[int, ...], axis: int = 1, dtype: npt.DTypeLike = np.float32, seed: int = 0
) -> Problem:
    """Return random data; every channel has a mean and a standard deviation of its own."""
    rng = np.random.default_rng([seed, axis % len(shape), *shape])
    channels = shape[axis]

    def vector(low: float, high: float) -> Array:
        return rng.uniform(low, high, channels).astype(dtype)

    mean, std = (per_channel(vector(*limits), len(shape), axis) for limits in ((-3, 3), (0.5, 2)))
    return Problem(
        x=(rng.standard_normal(shape) * std + mean).astype(dtype),
        dy=rng.standard_normal(shape).astype(dtype),
        weight=vector(-2, 2),
        bias=vector(-2, 2),
        running_mean=vector(-3, 3),
        running_var=vector(0.25, 4),
        axis=axis,
    )


def mask(shape: tuple[int, ...], axis: int = 1) -> Array:
    """Return a mask of an x of `shape`, of its rank; half of it counts, two positions at least."""
    short = [1 if i == axis % len(shape) else n for i, n in enumerate(shape)]
    counts: Array = np.random.default_rng([2, *short]).random(short) < 0.5
    counts.flat[[0, -1]] = True
    return counts


# Memory layouts: the same values, elsewhere.


def in_order(values: Array, order: tuple[int, ...]) -> Array:
    """Return `values` in dense memory whose slowest axis is order[0], the next order[1], ..."""
    dense = np.array(values.transpose(order), order="C", copy=True)
    return dense.transpose(np.argsort(order))


def dense_layouts(values: Array) -> Iterator[tuple[str, Array]]:
    """Yield `values` in dense memory under every order of its axes."""
    for order in permutations(range(values.ndim)):
        yield f"order {order}", in_order(values, order)


def gapped(values: Array, steps: tuple[int, ...]) -> Array:
    """Return `values` as every steps[i]-th element along axis i of a larger array full of NaN."""
    whole = np.full(
        [n * step for n, step in zip(values.shape, steps, strict=True)], np.nan, values.dtype
    )
    view = whole[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    return view


def reversed_along(values: Array, axes: tuple[int, ...]) -> Array:
    """Return `values` with negative strides along `axes`."""
    flip = tuple(slice(None, None, -1 if i in axes else 1) for i in range(values.ndim))
    return values[flip].copy()[flip]


def unaligned(values: Array) -> Array:
    """Return `values` one byte off every alignment."""
    raw = np.empty(values.nbytes + 1, np.uint8)
    view: Array = raw[1:].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


def byteswapped(values: Array) -> Array:
    """Return `values` in the other byte order."""
    return values.astype(values.dtype.newbyteorder("S"))


def loose_layouts(values: Array) -> Iterator[tuple[str, Array]]:
    """Yield `values` in memory that is not dense, not ascending or not aligned."""
    ndim = values.ndim
    for i in range(ndim):
        yield f"gaps along {i}", gapped(values, tuple(2 if j == i else 1 for j in range(ndim)))
        yield f"backwards along {i}", reversed_along(values, (i,))
    yield "gaps everywhere", gapped(values, tuple(range(2, ndim + 2)))
    yield "backwards everywhere", reversed_along(values, tuple(range(ndim)))
    yield "gaps, transposed", gapped(values.T, (3,) * ndim).T
    yield "unaligned", unaligned(values)
    yield "unaligned, transposed", unaligned(values.T).T


def all_layouts(values: Array) -> Iterator[tuple[str, Array]]:
    """Yield `values` in every writeable layout of its own dtype."""
    yield from dense_layouts(values)
    yield from loose_layouts(values)


def with_odd_strides_of_length_one(values: Array) -> Array:
    """Return a view of `values` whose axes of length 1 have strides that mean nothing."""
    strides = [
        step if n != 1 else 12_345 for n, step in zip(values.shape, values.strides, strict=True)
    ]
    return as_strided(values, strides=strides)


# Data that is hard on arithmetic.


def hard_channels(count: int, dtype: npt.DTypeLike) -> dict[str, Array]:
    """Return named samples of `count` values, each of which breaks some way of computing BN."""
    rng = np.random.default_rng(count)
    normal = rng.standard_normal(count)
    channels = {
        f"mean {sign * 10.0**k:g} std": normal + sign * 10.0**k
        for k in range(7)
        for sign in (1, -1)
    }
    outlier_first = normal.copy()
    outlier_first[0] = 1e6
    info: Any = ml_dtypes.finfo(dtype)
    near = np.full(count, 1.0, dtype)
    near[count // 2] = np.nextafter(near[0], np.asarray(2, dtype))
    channels |= {
        "ascending": np.sort(normal) + 100,
        "descending": np.sort(normal)[::-1] - 1e4,
        "outlier first": outlier_first,
        "outlier last": outlier_first[::-1],
        "alternating": np.where(np.arange(count) % 2, 1e4, -1e4) + normal,
        "one ULP off a constant": near,
        "around 1e30": 1e30 * (normal + 3),
        "around 1e37": 1e37 * rng.uniform(-1, 1, count),
        "around 1e-30": 1e-30 * (normal - 3),
        "subnormal": float(info.smallest_normal) / 100 * normal,
        "one subnormal among zeros": np.eye(1, count, 5)[0] * float(info.smallest_subnormal),
    }
    return {
        name: values.astype(dtype)
        for name, values in channels.items()
        if np.abs(values.astype(np.float64)).max() <= largest(dtype)
    }


def largest(dtype: npt.DTypeLike) -> float:
    """Return the largest number of `dtype`."""
    return float(ml_dtypes.finfo(dtype).max)


def constants(dtype: npt.DTypeLike) -> list[float]:
    """Return values of all sizes that `dtype` has."""
    values = (0.0, -0.0, 0.1, -3.0, 6e4, 1e6 + 0.3, 1e30, -1e37, 1e-30, 1e-40, 1e-7)
    return [value for value in values if abs(value) <= largest(dtype)]


def parameter_dtype(dtype: npt.DTypeLike) -> type[np.floating[Any]]:
    """Return the dtype of dweight and dbias of an `x` of `dtype`."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def stack_channels(channels: list[Array], shape: tuple[int, ...], axis: int) -> Array:
    """Arrange 1-D samples as the channels of an array; shape[axis] is ignored."""
    others = [n for i, n in enumerate(shape) if i != axis]
    return np.stack([c[: int(np.prod(others))].reshape(others) for c in channels], axis=axis)


# (shape with a 0 for the channels, axis): planar with large and small planes, and interleaved.
HARD_ARRANGEMENTS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((2, 0, 777), 1),
    ((1, 0, 1554), 1),
    ((42, 0, 37), 1),
    ((1554, 0), 1),
    ((42, 37, 0), 2),
)


# One hash per result: equal digests are equal bits.


def _hash(*arrays: Array | None) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        if array is not None:
            assert not np.isnan(array).any(), "NaN payloads are not promised"
            sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def _digest_one(p: Problem) -> dict[str, str]:
    """Hash everything that can be computed from one problem."""
    axis = p.axis
    mean, var = p.running_mean.copy(), p.running_var.copy()
    y, ctx = rustbn.batch_norm_forward(p.x, mean, var, p.weight, p.bias, axis=axis)
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    running = _hash(mean, var)
    y_eval, ctx_eval = rustbn.batch_norm_forward(
        p.x, p.running_mean, p.running_var, p.weight, p.bias, training=False, axis=axis
    )
    grads_eval = rustbn.batch_norm_backward(p.dy, ctx_eval)
    m = rustbn.moments(p.x, axis=axis)
    sums = rustbn.backward_reduce(p.dy, p.x, m, axis=axis)
    # dy is a residual as good as any other.
    fused: dict[str, Any] = {"residual": p.dy, "axis": axis}
    y_relu, ctx_relu = rustbn.batch_norm_forward(
        p.x, None, None, p.weight, p.bias, activation="relu", **fused
    )
    grads_relu = rustbn.batch_norm_backward(p.dy, ctx_relu)
    y_relu6, ctx_relu6 = rustbn.batch_norm_forward(
        p.x, p.running_mean, p.running_var, p.weight, None, False, activation="relu6", **fused
    )
    grads_relu6 = rustbn.batch_norm_backward(p.dy, ctx_relu6)
    affine = rustbn.Affine.from_running(p.running_mean, p.running_var, p.weight, p.bias)
    smooth = ("leaky_relu", "silu", "hardswish", "sigmoid", "tanh")
    counted: dict[str, Any] = {"axis": axis, "mask": mask(p.x.shape, axis)}
    y_masked, ctx_masked = rustbn.batch_norm_forward(
        p.x, mean, var, p.weight, p.bias, activation="relu", residual=p.dy, **counted
    )
    m_masked = rustbn.moments(p.x, **counted)
    sums_masked = rustbn.backward_reduce(p.dy, p.x, m_masked, **counted)
    dx_masked = rustbn.backward_apply(p.dy, p.x, m_masked, sums_masked, p.weight, **counted)
    return {
        "y": _hash(y),
        "running": running,
        "gradients": _hash(grads.dx, grads.dweight, grads.dbias),
        "y in evaluation": _hash(y_eval),
        "gradients in evaluation": _hash(grads_eval.dx, grads_eval.dweight, grads_eval.dbias),
        "moments": _hash(m.mean, m.m2),
        "grad sums": _hash(sums.sum_dy, sums.sum_dy_xmu),
        "dx": _hash(rustbn.backward_apply(p.dy, p.x, m, sums, p.weight, axis=axis)),
        "affine": _hash(rustbn.Affine(p.running_mean, p.weight, p.bias)(p.x, axis=axis)),
        "masked": _hash(y_masked, mean, var, m_masked.mean, m_masked.m2),
        "masked gradients": _hash(*rustbn.batch_norm_backward(p.dy, ctx_masked)),
        "masked halves": _hash(sums_masked.sum_dy, sums_masked.sum_dy_xmu, dx_masked),
        "residual and relu": _hash(y_relu, *grads_relu),
        "residual and relu6 in evaluation": _hash(y_relu6, *grads_relu6),
        "activations": _hash(*(affine(p.x, activation=name, **fused) for name in smooth)),
    }


def digests(large: bool = False) -> dict[str, str]:
    """Return a hash of every result over shapes, dtypes, memory layouts and hard data."""
    found: dict[str, str] = {}

    def add(name: str, p: Problem) -> None:
        found.update({f"{name}: {what}": value for what, value in _digest_one(p).items()})

    for dtype in DTYPES:
        kind = np.dtype(dtype).name
        for shape, axis in ARRANGEMENTS + (LARGE if large else ()):
            add(f"{kind} {shape} axis {axis}", problem(shape, axis, dtype))
        for length in range(1, 71):
            add(f"{kind} planes of {length}", problem((3, 2, length), 1, dtype))
            add(f"{kind} {length} channels", problem((3, length), 1, dtype))
        p = problem(SHAPE_OF_RANK[4], 1, dtype)
        x, dy = p.x, p.dy
        for (name, p.x), (_, p.dy) in zip(all_layouts(x), all_layouts(dy), strict=True):
            add(f"{kind} {name}", p)
        for shape, axis in HARD_ARRANGEMENTS:
            x = stack_channels(list(hard_channels(1554, dtype).values()), shape, axis)
            p = problem(x.shape, axis, dtype)
            p.x = x
            add(f"{kind} hard data {shape} axis {axis}", p)
    return found
