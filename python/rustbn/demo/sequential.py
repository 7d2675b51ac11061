"""Layers one after another."""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

import copy
from collections.abc import Iterator
from typing import Self

from rustbn.demo.layers import Array, Layer, Module


class Sequential(Layer):
    """A network of layers, each fed by the one before."""

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


def activations(network: Sequential, x: Array) -> list[Array]:
    """Return what each layer makes of x in training, leaving the network as it is."""
    outputs = []
    for layer in copy.deepcopy(network).train().layers:
        x = layer(x)
        outputs.append(x)
    return outputs
