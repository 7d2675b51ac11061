"""The network of the demonstration, with and without batch norm."""

import numpy as np
from numpy.typing import DTypeLike

import rustbn
from rustbn.demo.convolution import Conv2d, MaxPool2d
from rustbn.demo.layers import Dense, Flatten, Module, ReLU, Sequential


def small_convnet(
    batch_norm: bool, rng: np.random.Generator, dtype: DTypeLike = np.float32
) -> Sequential:
    """Return a network from (N, 1, 8, 8) images to (N, 10) logits: two convolutions, two dense.

    Batch norm, where there is one, stands between each hidden layer and its ReLU. Nothing else
    differs: both networks draw the same weights from `rng`, and both keep the biases, although
    batch norm takes a bias before it out again.
    """

    def norm2d(channels: int) -> list[Module]:
        return [rustbn.BatchNorm2d(channels, dtype=dtype)] if batch_norm else []

    def norm1d(channels: int) -> list[Module]:
        return [rustbn.BatchNorm1d(channels, dtype=dtype)] if batch_norm else []

    return Sequential(
        Conv2d(1, 16, rng, dtype=dtype), *norm2d(16), ReLU(), MaxPool2d(),
        Conv2d(16, 32, rng, dtype=dtype), *norm2d(32), ReLU(), MaxPool2d(),
        Flatten(),
        Dense(32 * 2 * 2, 64, rng, dtype=dtype), *norm1d(64), ReLU(),
        Dense(64, 10, rng, dtype=dtype),
    )  # fmt: skip
