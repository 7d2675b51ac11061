"""Networks: layers one after another, with or without something between a layer and its ReLU."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import copy
from collections.abc import Callable, Iterator
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

import rustbn
from rustbn.demo.convolution import Conv2d, MaxPool2d
from rustbn.demo.layers import Array, Dense, Flatten, Layer, Module, ReLU

Between: TypeAlias = Callable[[int], list[Module]]
"""Makes what stands between a layer of so many features (or channels) and its ReLU."""


class Sequential(Layer):
    """Layers one after another."""

    def __init__(self, *layers: Module) -> None:
        self.layers = layers

    def __call__(self, x: Array, /) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy: Array, /) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        for index, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                yield f"{index}.{name}", parameter

    def named_grads(self) -> Iterator[tuple[str, Array]]:
        for index, layer in enumerate(self.layers):
            for name, grad in layer.named_grads():
                yield f"{index}.{name}", grad

    def zero_grad(self) -> None:
        for layer in self.layers:
            layer.zero_grad()

    def train(self, mode: bool = True, /) -> Self:
        for layer in self.layers:
            layer.train(mode)
        return super().train(mode)


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


def activations(network: Sequential, x: Array) -> list[Array]:
    """Return what each layer makes of x in training, leaving the network as it is."""
    outputs = []
    for layer in copy.deepcopy(network).train().layers:
        x = layer(x)
        outputs.append(x)
    return outputs
