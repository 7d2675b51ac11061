"""What a layer is: arrays in, arrays out, parameters with their gradients beside them."""

# ruff: noqa: D102 (what the methods of `Module` do is said in `Layer`)

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, Self, TypeAlias

from numpy.typing import NDArray

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
