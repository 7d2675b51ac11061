"""Layers that treat each number by itself."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np

from rustbn.demo.layers.base import Array, Layer


class ReLU(Layer):
    """y = max(x, 0)."""

    def __call__(self, x: Array, /) -> Array:
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, dy: Array, /) -> Array:
        return dy * self.positive


class Dropout(Layer):
    """y = x · m / (1 - p) in training, each m 0 with probability p, else 1; in evaluation y = x.

    Srivastava et al. 2014, with the factor where Caffe and PyTorch have it.
    """

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        self.p = p
        self.rng = rng

    def __call__(self, x: Array, /) -> Array:
        if not self.training:
            return x
        kept = self.rng.random(x.shape, np.float32) >= self.p
        self.factor = kept / x.dtype.type(1 - self.p)
        y: Array = x * self.factor
        return y

    def backward(self, dy: Array, /) -> Array:
        dx: Array = dy * self.factor
        return dx
