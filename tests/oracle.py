"""Batch normalization in NumPy, straight from the formulas: what the library is judged by.

Forward: Ioffe & Szegedy 2015, "Batch Normalization", Algorithm 1. Backward: the chain rule at the
end of their section 3. Nothing here is fast or clever on purpose.

Everything is computed one precision above the input, or more: float64 for float32 and narrower,
``np.longdouble`` for float64 (80 bits on x86-64, 128 bits on AArch64 Linux). Arrays keep the
input's shape; statistics have shape (C,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def work_dtype(dtype: npt.DTypeLike) -> type[np.floating[Any]]:
    """Return the precision in which results of `dtype` are judged."""
    return np.longdouble if np.dtype(dtype).itemsize > 4 else np.float64


def per_channel(values: Array, ndim: int, axis: int) -> Array:
    """Reshape (C,) so that it broadcasts along `axis` of an array of `ndim` dimensions."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


def rows(x: Array, axis: int, work: npt.DTypeLike | None = None) -> Array:
    """Return `x` as (C, count): one contiguous row per channel, in the working precision."""
    moved = np.moveaxis(x, axis, 0).astype(work or work_dtype(x.dtype), order="C")
    return moved.reshape(x.shape[axis], -1)


def counted(mask: Array | None, x: Array, axis: int = 1) -> Array:
    """Return which columns of `rows` count. `mask` has 1 on the channel axis; None counts all."""
    shape = [1 if i == axis % x.ndim else n for i, n in enumerate(x.shape)]
    counts: Array = rows(np.broadcast_to(True if mask is None else mask, shape), axis, np.bool_)[0]
    return counts


def moments(
    x: Array, axis: int = 1, work: npt.DTypeLike | None = None, mask: Array | None = None
) -> tuple[int, Array, Array]:
    """Return (count, mean, m2), m2 being the sum of squared distances from the mean."""
    values = rows(x, axis, work)[:, counted(mask, x, axis)]
    mean = values.mean(axis=1)
    deviations = values - mean[:, None]
    rest = deviations.mean(axis=1)  # what rounding left of the mean
    return values.shape[1], mean + rest, np.square(deviations - rest[:, None]).sum(axis=1)


@dataclass(frozen=True)
class Forward:
    """y = (x - mean) * invstd * weight + bias, and what it was made of."""

    y: Array
    mean: Array
    var: Array
    invstd: Array
    weight: Array
    bias: Array
    axis: int


def normalise(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
) -> Forward:
    """Normalise with given statistics (evaluation)."""
    work = work_dtype(x.dtype)
    channels = x.shape[axis]
    mean, var = mean.astype(work), var.astype(work)
    invstd = 1 / np.sqrt(var + work(eps))
    gain = np.ones(channels, work) if weight is None else weight.astype(work)
    shift = np.zeros(channels, work) if bias is None else bias.astype(work)
    m, s, g, b = (per_channel(v, x.ndim, axis) for v in (mean, invstd, gain, shift))
    y = (x.astype(work) - m) * s * g + b
    return Forward(y, mean, var, invstd, gain, shift, axis)


def train(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
    mask: Array | None = None,
) -> Forward:
    """Normalise with the mean and the biased variance of what counts (Algorithm 1)."""
    count, mean, m2 = moments(x, axis, mask=mask)
    return normalise(x, mean, m2 / count, weight, bias, eps, axis)


def running(old: Array, batch: Array, momentum: float) -> Array:
    """Return (1 - momentum) * old + momentum * batch in the precision of `batch`."""
    work = batch.dtype.type
    moved: Array = (1 - work(momentum)) * old.astype(work) + work(momentum) * batch
    return moved


def unbiased(x: Array, axis: int = 1, mask: Array | None = None) -> Array:
    """Return the variance that running statistics are fed with."""
    count, _, m2 = moments(x, axis, mask=mask)
    return m2 / (count - 1)


@dataclass(frozen=True)
class Backward:
    """Gradients, and the largest magnitude each of them is a sum or difference of."""

    dx: Array
    dweight: Array
    dbias: Array
    dx_terms: Array  # (C,) largest sum of magnitudes that one element of dx is made of
    dweight_terms: Array  # (C,) sum of magnitudes
    dbias_terms: Array  # (C,) sum of magnitudes
    count: int
    forward: Forward


def train_backward(
    dy: Array,
    x: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
    mask: Array | None = None,
) -> Backward:
    """Differentiate `train`: the equations at the end of section 3, variable by variable.

    All positions of y feel the statistics, and only those that count make them. Nothing is asked of
    x where it neither counts nor has a gradient to hand on.
    """
    forward = train(x, weight, None, eps, axis, mask)
    counts = counted(mask, x, axis)
    grad = rows(dy, axis)
    xmu = np.where(counts | (grad != 0), rows(x, axis) - forward.mean[:, None], 0)
    invstd, gain = forward.invstd[:, None], forward.weight[:, None]
    count = counts.sum()

    dxhat = grad * gain
    dvar = (dxhat * xmu).sum(axis=1, keepdims=True) * -(invstd**3) / 2
    dmean = -(dxhat * invstd).sum(axis=1, keepdims=True)
    dmean += dvar * (-2 * xmu).sum(axis=1, keepdims=True, where=counts) / count
    terms = (dxhat * invstd, counts * (dvar * 2 * xmu / count), counts * (dmean / count))
    dx = terms[0] + terms[1] + terms[2]
    size = abs(terms[0]) + abs(terms[1]) + abs(terms[2])
    return _backward(dx, size, grad, xmu * invstd, x, forward)


def eval_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
) -> Backward:
    """Differentiate `normalise`, whose statistics are constants."""
    forward = normalise(x, mean, var, weight, None, eps, axis)
    xmu = rows(x, axis) - forward.mean[:, None]
    grad = rows(dy, axis)
    dx = grad * forward.weight[:, None] * forward.invstd[:, None]
    return _backward(dx, abs(dx), grad, xmu * forward.invstd[:, None], x, forward)


def _backward(
    dx: Array, size: Array, grad: Array, xhat: Array, x: Array, forward: Forward
) -> Backward:
    moved = [x.shape[forward.axis], *np.delete(x.shape, forward.axis)]
    products = grad * xhat
    return Backward(
        dx=np.moveaxis(dx.reshape(moved), 0, forward.axis),
        dweight=products.sum(axis=1),
        dbias=grad.sum(axis=1),
        dx_terms=size.max(axis=1),
        dweight_terms=abs(products).sum(axis=1),
        dbias_terms=abs(grad).sum(axis=1),
        count=grad.shape[1],
        forward=forward,
    )


# What comes after the normalisation: y = activation(z), z = normalised + residual.

Activation = str | tuple[str, float] | None

GATES: tuple[Activation, ...] = (None, "relu", "relu6", "leaky_relu", ("leaky_relu", 0.3))
SMOOTH: tuple[Activation, ...] = ("silu", "hardswish", "sigmoid", "tanh")


def corners(activation: Activation) -> tuple[float, ...]:
    """Return where the derivative of a gate jumps."""
    return () if activation is None else (0.0, 6.0) if activation == "relu6" else (0.0,)


def _slope(activation: Activation, dtype: npt.DTypeLike) -> Any:
    """Return the slope below zero of what is not flat there."""
    slope = activation[1] if isinstance(activation, tuple) else 0.01 if activation else 1.0
    return np.asarray(slope, dtype)[()]


def activate(z: Array, activation: Activation) -> Array:
    """Return the activation of `z`, in the precision of `z`, from its definition."""
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-z)))
    if activation == "silu":
        return np.asarray(z / (1 + np.exp(-z)))
    if activation == "tanh":
        return np.tanh(z)
    if activation == "hardswish":
        return np.asarray(z * (np.clip(z + 3, 0, 6) / 6))
    if activation in ("relu", "relu6"):
        high = 6.0 if activation == "relu6" else np.inf
        return np.asarray(np.clip(z, 0.0, high), z.dtype)
    return np.where(z > 0, z, z * _slope(activation, z.dtype))


def gate_backward(dy: Array, z: Array, activation: Activation) -> Array:
    """Return the gradient by `z`, with PyTorch's choices at a corner and at NaN.

    One product at most, in the precision of `dy`: an array of this dtype has no other value.
    """
    if activation in ("relu", "relu6"):
        flat = (z <= 0) | (z >= 6) if activation == "relu6" else z <= 0
        return np.where(flat, dy.dtype.type(0), dy)
    return np.where(z > 0, dy, dy * _slope(activation, dy.dtype))
