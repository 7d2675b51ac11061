"""Convolution of images, arrays of shape (N, C, H, W)."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from rustbn.demo.layers.base import Array, Layer
from rustbn.demo.layers.dense import he_normal


class Conv2d(Layer):
    """y[n, o, h, w] = Σ_c,i,j W[o, c, i, j] · x[n, c, h+i, w+j] + b[o], x padded to keep H and W.

    With the k x k window of every pixel as a column, that is a dense layer: y = W · columns + b.
    """

    parameters = ("weight", "bias")

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rng: np.random.Generator,
        *,
        kernel: int = 3,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd size, got {kernel}")
        self.weight = he_normal((outputs, inputs, kernel, kernel), rng, dtype)
        self.bias = np.zeros(outputs, dtype)
        self.weight_grad = np.zeros_like(self.weight)
        self.bias_grad = np.zeros_like(self.bias)

    def __call__(self, x: Array, /) -> Array:
        self.shape = x.shape
        self.columns = to_columns(x, self.weight.shape[-1])
        y: Array = self._matrix() @ self.columns + self.bias[:, None]
        return y.reshape(len(x), -1, *x.shape[2:])

    def backward(self, dy: Array, /) -> Array:
        dy = dy.reshape(*dy.shape[:2], -1)
        dweight = (dy @ self.columns.swapaxes(1, 2)).sum(axis=0)
        self.weight_grad += dweight.reshape(self.weight.shape)
        self.bias_grad += dy.sum(axis=(0, 2))
        return from_columns(self._matrix().T @ dy, self.shape, self.weight.shape[-1])

    def _matrix(self) -> Array:
        return self.weight.reshape(len(self.weight), -1)


def to_columns(x: Array, k: int) -> Array:
    """Return the k x k windows around the pixels of x as columns: (N, C · k · k, H · W)."""
    n, c, h, w = x.shape
    windows = sliding_window_view(_pad(x, k // 2), (h, w), axis=(2, 3))  # (N, C, k, k, H, W)
    return windows.reshape(n, c * k * k, h * w)


def from_columns(columns: Array, shape: tuple[int, ...], k: int) -> Array:
    """Return the sum, for every pixel, of its places in the columns: the transpose of the above."""
    n, c, h, w = shape
    x = _pad(np.zeros(shape, columns.dtype), k // 2)
    windows = columns.reshape(n, c, k, k, h, w)
    for i, j in np.ndindex(k, k):
        x[:, :, i : i + h, j : j + w] += windows[:, :, i, j]
    return x[:, :, k // 2 : k // 2 + h, k // 2 : k // 2 + w]


def _pad(x: Array, margin: int) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
