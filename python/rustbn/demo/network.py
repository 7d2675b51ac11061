"""Networks with something, or nothing, between a layer and its ReLU."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike

import rustbn
from rustbn.demo.layers import Conv2d, Dense, Flatten, MaxPool2d, Module, ReLU
from rustbn.demo.sequential import Sequential

Between: TypeAlias = Callable[[int], list[Module]]
"""Makes what stands between a layer of so many features (or channels) and its ReLU."""


def nothing(features: int) -> list[Module]:
    """Let a hidden layer feed its ReLU directly."""
    return []


def batch_norm(features: int) -> list[Module]:
    """Normalise each feature, or each channel of images, over the batch."""
    return [rustbn.BatchNorm(features)]


def dense_network(
    depth: int,
    between: Between,
    rng: np.random.Generator,
    *,
    pixels: int = 64,
    width: int = 64,
    scale: float = 1.0,
    dtype: DTypeLike = np.float32,
) -> Sequential:
    """Return a network of dense layers, from (N, 1, H, W) images to (N, 10) logits.

    Parameters
    ----------
    depth : int
        The number of hidden layers: dense, what `between` makes, ReLU.
    between : callable
        `nothing`, `batch_norm`, or another. It draws nothing from `rng`, so networks that differ
        in it alone start from the same weights.
    rng : numpy.random.Generator
        Draws the weights, of the variance 2 / inputs that suits ReLU (He et al. 2015).
    pixels, width : int
        H · W, and the features of each hidden layer.
    scale : float
        Multiplies the weights of the hidden layers.
    """
    layers: list[Module] = [Flatten()]
    for inputs in [pixels] + [width] * (depth - 1):
        dense = Dense(inputs, width, rng, dtype)
        dense.weight *= scale
        layers += [dense, *between(width), ReLU()]
    return Sequential(*layers, Dense(width, 10, rng, dtype))


def conv_network(between: Between, rng: np.random.Generator, *, size: int = 28) -> Sequential:
    """Return a network from (N, 1, size, size) images to (N, 10) logits: 2 convolutions, 2 dense.

    `between` and `rng` are those of `dense_network`; `size` is a multiple of 4.
    """
    return Sequential(
        Conv2d(1, 8, rng), *between(8), ReLU(), MaxPool2d(),
        Conv2d(8, 16, rng), *between(16), ReLU(), MaxPool2d(),
        Flatten(),
        Dense(16 * (size // 4) ** 2, 64, rng), *between(64), ReLU(),
        Dense(64, 10, rng),
    )  # fmt: skip
