"""The dense layer, and what makes vectors of images for it."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np
from numpy.typing import DTypeLike

from rustbn.demo.layers.base import Array, Layer


class Dense(Layer):
    """y = x Wᵀ + b, for x of shape (N, inputs) and W of shape (outputs, inputs)."""

    parameters = ("weight", "bias")

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.weight = he_normal((outputs, inputs), rng, dtype)
        self.bias = np.zeros(outputs, dtype)
        self.weight_grad = np.zeros_like(self.weight)
        self.bias_grad = np.zeros_like(self.bias)

    def __call__(self, x: Array, /) -> Array:
        self.x = x
        return x @ self.weight.T + self.bias

    def backward(self, dy: Array, /) -> Array:
        self.weight_grad += dy.T @ self.x
        self.bias_grad += dy.sum(axis=0)
        return dy @ self.weight


class Flatten(Layer):
    """(N, C, H, W) to (N, C·H·W)."""

    def __call__(self, x: Array, /) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array, /) -> Array:
        return dy.reshape(self.shape)


def he_normal(shape: tuple[int, ...], rng: np.random.Generator, dtype: DTypeLike) -> Array:
    """Weights of variance 2 / fan-in, which keep the scale of x through ReLU (He et al. 2015)."""
    fan_in = np.prod(shape[1:])
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(dtype)
