"""Batch normalization in plain NumPy as a contestant: what one writes without a library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rustbn.bench.contestant import NUMPY, Contestant
from rustbn.bench.problem import EPS, MOMENTUM, Array, Problem, along_channels

# Its sums are float32, one after the other in places.
TOLERANCE = 1e-3


def contestants(problem: Problem, pass_: str) -> list[Contestant]:
    """Return the way to compute a pass with NumPy."""
    x, dy, weight, bias = problem.x, problem.dy, problem.weight, problem.bias
    running_mean, running_var = problem.running_mean.copy(), problem.running_var.copy()

    def training() -> tuple[Array, Array, Array]:
        return forward(x, weight, bias, running_mean, running_var)

    def step() -> dict[str, Array]:
        y, xhat, invstd = training()
        return {"y": y, **backward(dy, xhat, invstd, weight)}

    def y_first(returned: tuple[Array, Array, Array]) -> Mapping[str, Any]:
        return {"y": returned[0]}

    if pass_ == "forward":
        return [Contestant(NUMPY, training, y_first, TOLERANCE)]
    if pass_ == "backward":
        _, xhat, invstd = training()
        return [Contestant(NUMPY, lambda: backward(dy, xhat, invstd, weight), dict, TOLERANCE)]
    if pass_ == "eval":
        vectors = (problem.running_mean, problem.running_var, weight, bias)
        return [Contestant(NUMPY, lambda: evaluate(x, *vectors), lambda y: {"y": y}, TOLERANCE)]
    return [Contestant(NUMPY, step, dict, TOLERANCE)]


def forward(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array
) -> tuple[Array, Array, Array]:
    """Return (y, xhat, invstd) and update the running statistics."""
    axes = _others(x)
    count = x.size // x.shape[1]
    mean = x.mean(axes, keepdims=True)
    var = x.var(axes, keepdims=True)
    invstd = 1 / np.sqrt(var + np.float32(EPS))
    xhat = (x - mean) * invstd
    for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        running *= 1 - MOMENTUM
        running += MOMENTUM * batch.ravel()
    y = xhat * along_channels(weight, x.ndim) + along_channels(bias, x.ndim)
    return y, xhat, invstd


def backward(dy: Array, xhat: Array, invstd: Array, weight: Array) -> dict[str, Array]:
    """Return the gradients."""
    axes = _others(dy)
    dbias = dy.sum(axes, keepdims=True)
    dweight = (dy * xhat).sum(axes, keepdims=True)
    count = np.float32(dy.size // dy.shape[1])
    dx = (dy - dbias / count - xhat * (dweight / count)) * (
        along_channels(weight, dy.ndim) * invstd
    )
    return {"dx": dx, "dweight": dweight.ravel(), "dbias": dbias.ravel()}


def evaluate(
    x: Array, running_mean: Array, running_var: Array, weight: Array, bias: Array
) -> Array:
    """Return y of the running statistics."""
    scale = weight / np.sqrt(running_var + np.float32(EPS))
    mean, scale, bias = (along_channels(v, x.ndim) for v in (running_mean, scale, bias))
    y: Array = (x - mean) * scale + bias
    return y


def _others(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))
