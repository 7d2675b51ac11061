"""Pooling of images, arrays of shape (N, C, H, W)."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import numpy as np

from rustbn.demo.layers.base import Array, Layer

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


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
