"""Convolution and pooling of images, arrays of shape (N, C, H, W), in NumPy."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from rustbn.demo.layers import Array, Layer, he_normal


class Conv2d(Layer):
    """y[n, o, h, w] = Σ_c,i,j W[o, c, i, j] · x[n, c, h+i, w+j] + b[o], x padded to keep H and W.

    The sum is one matrix product over the k x k windows of x. It leaves y with the channels last in
    memory, and y is the view that has them on axis 1. Batch norm takes such a view without a copy.
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
        self.windows = windows(x, self.weight.shape[-1])
        y = np.tensordot(self.windows, self.weight, axes=((4, 5, 1), (2, 3, 1)))
        return np.moveaxis(y + self.bias, -1, 1)

    def backward(self, dy: Array, /) -> Array:
        self.weight_grad += np.tensordot(dy, self.windows, axes=((0, 2, 3), (0, 2, 3)))
        self.bias_grad += dy.sum(axis=(0, 2, 3))
        # x[h] meets W[i] in y[h - i]: the same sum over the windows of dy, with W turned around.
        turned = self.weight[:, :, ::-1, ::-1]
        dx = np.tensordot(windows(dy, turned.shape[-1]), turned, axes=((4, 5, 1), (2, 3, 0)))
        return np.moveaxis(dx, -1, 1)


def windows(x: Array, size: int) -> Array:
    """Return the size x size windows around every pixel of x, of shape (N, C, H, W, size, size)."""
    margin = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    return sliding_window_view(padded, (size, size), axis=(2, 3))


class MaxPool2d(Layer):
    """y[n, c, h, w] = the largest x of a 2 x 2 block; equal largest ones share the gradient."""

    def __call__(self, x: Array, /) -> Array:
        self.x = x
        corners = np.stack([x[..., i::2, j::2] for i, j in CORNERS])
        y: Array = corners.max(axis=0)
        self.largest = corners == y
        return y

    def backward(self, dy: Array, /) -> Array:
        share = dy / self.largest.sum(axis=0, dtype=dy.dtype)
        dx = np.empty_like(self.x)
        for (i, j), largest in zip(CORNERS, self.largest, strict=True):
            dx[..., i::2, j::2] = share * largest
        return dx


CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
