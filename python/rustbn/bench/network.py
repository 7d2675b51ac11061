"""All batch-norm layers of a network in a training step, as a trainer runs them.

The outputs of all layers live until backward has passed them: memory is reused as it is in a
network, not from one call of the same layer to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from rustbn.bench import ours, with_torch
from rustbn.bench.contestant import FLOAT32, LIMIT, LIMIT_FRESH, RUSTBN, TOLERANCE, TORCH
from rustbn.bench.limits import Team, moved
from rustbn.bench.problem import Answers, Problem, WrongResultError


class Layer(Protocol):
    """A layer that owns its input and the gradient of its output."""

    def forward(self) -> Any:
        """Return y."""

    def backward(self, y: Any) -> Any:
        """Return the gradients; `y` is forward's."""


class FreshLimit:
    """A layer that copies into a fresh array, and adds into another."""

    def __init__(self, problem: Problem, team: Team) -> None:
        (self.x, self.dy, _), self.team = moved(problem), team

    def forward(self) -> Any:
        """Return a copy of x."""
        return self.team.fresh_copy(self.x)

    def backward(self, y: Any) -> Any:
        """Return x + dy."""
        return self.team.fresh_sum(self.x, self.dy)


class Limit:
    """A layer that does the same into memory that exists."""

    def __init__(self, problem: Problem, team: Team) -> None:
        x, dy, out = moved(problem)
        self.copy, self.add = team.copy(x, out), team.add(x, dy, out)

    def forward(self) -> Any:
        """Copy x."""
        self.copy()

    def backward(self, y: Any) -> Any:
        """Add x and dy."""
        self.add()


def networks(
    problems: Sequence[Problem], peers: Sequence[str], team: Team
) -> dict[str, list[Layer]]:
    """Return the layers of each contestant, `count` of each problem."""
    repeated = [problem for problem in problems for _ in range(problem.case.count)]
    found: dict[str, list[Layer]] = {
        LIMIT: [Limit(problem, team) for problem in repeated],
        LIMIT_FRESH: [FreshLimit(problem, team) for problem in repeated],
        RUSTBN: [ours.Layer(problem) for problem in repeated],
    }
    if any(problem.case.itemsize == 2 for problem in problems):
        found[FLOAT32] = [ours.Layer(problem.widened) for problem in repeated]
    if "torch" in peers:
        found[TORCH] = [with_torch.Layer(problem) for problem in repeated]
    return found


def step(layers: Sequence[Layer]) -> None:
    """Run forward through all layers, then backward."""
    outputs = [layer.forward() for layer in layers]
    for layer in reversed(layers):
        layer.backward(outputs.pop())


def steps(networks: Mapping[str, Sequence[Layer]]) -> dict[str, Callable[[], None]]:
    """Return what is timed, by contestant."""
    return {name: partial(step, layers) for name, layers in networks.items()}


def check_layers(problems: Sequence[Problem], peers: Sequence[str]) -> Iterator[None]:
    """Check a layer of each shape against float64, yielding after each shape."""
    for problem in problems:
        answers = Answers.of(problem)
        try:
            answers.check("step", ours.Layer(problem).step(), TOLERANCE)
            if "torch" in peers:
                layer = with_torch.Layer(problem)
                answers.check("step", layer.results(layer.step()), with_torch.TOLERANCE)
        except WrongResultError as error:
            raise WrongResultError(f"a layer of {problem.case.name}: {error}") from None
        yield
