"""Layers of a network, in NumPy.

A layer maps x to y, keeps what its gradient needs, and maps ``dy``, the gradient of the loss in y,
to ``dx``. It adds the gradients of its own parameters into ``weight_grad`` and ``bias_grad``. That
is also how `rustbn.BatchNorm1d` and `rustbn.BatchNorm2d` work, so a network holds them beside the
layers below.
"""

# ruff: noqa: D102 (what `__call__` and `backward` of a layer do is said once, in `Layer`)

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]


class Module(Protocol):
    """What a network asks of its parts; rustbn's modules offer it too."""

    def __call__(self, x: Array, /) -> Array: ...
    def backward(self, dy: Array, /) -> Any: ...
    def named_parameters(self) -> Iterable[tuple[str, Array]]: ...
    def named_grads(self) -> Iterable[tuple[str, Array]]: ...
    def zero_grad(self) -> None: ...
    def train(self, mode: bool = True, /) -> Any: ...


class Layer:
    """A layer without parameters, the base of the others.

    One with parameters lists their names in ``parameters``; each has its gradient beside it, under
    the same name followed by ``_grad``.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    training = True

    def __call__(self, x: Array, /) -> Array:
        """Return y for x."""
        raise NotImplementedError

    def backward(self, dy: Array, /) -> Array:
        """Return dx for dy, and add to the gradients of the parameters."""
        raise NotImplementedError

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Yield the name and the array of each parameter."""
        for name in self.parameters:
            yield name, getattr(self, name)

    def named_grads(self) -> Iterator[tuple[str, Array]]:
        """Yield the gradients under the names of their parameters, in the same order."""
        for name in self.parameters:
            yield name, getattr(self, f"{name}_grad")

    def zero_grad(self) -> None:
        """Set the gradients of the parameters to 0."""
        for _, grad in self.named_grads():
            grad[...] = 0

    def train(self, mode: bool = True, /) -> Self:
        """Switch to training, or with False to evaluation."""
        self.training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation."""
        return self.train(False)


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
