"""What it costs to leave positions out of the statistics, beside the call that counts them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import rustbn
from rustbn.bench.contestant import TOLERANCE
from rustbn.bench.fused import Comparison
from rustbn.bench.problem import EPS, MOMENTUM, SEED, Answers, Array, Problem, WrongResultError
from rustbn.bench.shapes import Case

# The group names the order of the axes in memory; shapes are N, C and the others all the same.
CASES = (
    Case("NCL", (32, 256, 1024), 1, "nchw"),
    Case("NLC", (32, 256, 1024), 1, "nhwc"),
    Case("NCHW", (32, 64, 56, 56), 1, "nchw"),
    Case("NHWC", (32, 64, 56, 56), 1, "nhwc"),
)

UNMASKED, HALF, PADDING = "unmasked", "a random half, mask=", "padding, lengths="
NAMES = (UNMASKED, HALF, PADDING)


@dataclass(frozen=True)
class Counted:
    """Calls on one problem in which some positions count, given by `arguments`.

    `counts` tells which, in x's shape without the channel axis; `dy` is 0 elsewhere, as it is where
    a loss leaves padding out.
    """

    problem: Problem
    counts: Array
    dy: Array
    arguments: dict[str, Any]

    @staticmethod
    def make(problem: Problem, counts: Array, arguments: dict[str, Any]) -> Counted:
        """Return the calls after setting dy to 0 where nothing counts."""
        dy = problem.dy.copy(order="K")
        np.copyto(dy, 0, where=~np.expand_dims(counts, 1))
        return Counted(problem, counts, dy, arguments)

    def forward(self) -> tuple[Array, rustbn.Context]:
        """Normalise into the output that exists."""
        p = self.problem
        running = p.running_mean.copy(), p.running_var.copy()
        return rustbn.batch_norm_forward(
            p.x,
            *running,
            p.weight,
            p.bias,
            momentum=MOMENTUM,
            eps=EPS,
            out=p.out,
            **self.arguments,
        )

    def backward(self, context: rustbn.Context) -> rustbn.Gradients:
        """Differentiate into the same output."""
        return rustbn.batch_norm_backward(self.dy, context, out=self.problem.out)

    def check(self) -> None:
        """Raise unless results are those of the positions that count, alone.

        All others are NaN for as long as this takes: none may reach what counts, nor any gradient.

        Raises
        ------
        WrongResultError
            If a result is not the float64 answer, or dx is not 0 where dy is.
        """
        p, gathered = self.problem, self._gathered
        x, dy = gathered(p.x), gathered(self.dy)
        answers = Answers.of(replace(p, case=replace(p.case, shape=x.shape), x=x, dy=dy))
        elsewhere = ~np.expand_dims(self.counts, 1)
        kept = p.x.copy(order="K")
        np.copyto(p.x, np.float32(np.nan), where=elsewhere)
        try:
            y, context = self.forward()
            answers.check("forward", {"y": gathered(y)}, TOLERANCE)
            gradients = self.backward(context)._asdict()
        finally:
            np.copyto(p.x, kept)
        dx = gradients["dx"]
        answers.check("backward", gradients | {"dx": gathered(dx)}, TOLERANCE)
        if np.any(dx, where=elsewhere):
            raise WrongResultError("dx is not 0 where nothing counts")

    def _gathered(self, array: Array) -> Array:
        """Return the positions that count as rows of shape (n, C)."""
        rows: Array = np.moveaxis(array, 1, -1)[self.counts]
        return rows


def comparisons(case: Case) -> list[Comparison]:
    """Return the comparisons of a shape, forward and backward, after checking every result.

    Raises
    ------
    WrongResultError
        If a result is not the float64 answer.
    """
    problem, what = Problem.make(case), f"{case.group} {case.name}"
    rng = np.random.default_rng(SEED)
    samples, _, *spatial = case.shape
    half = rng.random((samples, *spatial)) < 0.5
    lengths = rng.integers(1, spatial[-1], samples, endpoint=True)
    within = np.arange(spatial[-1]) < lengths.reshape(-1, *[1] * len(spatial))
    within = np.broadcast_to(within, half.shape)
    kinds = {
        UNMASKED: Counted.make(problem, np.ones_like(half), {}),
        HALF: Counted.make(problem, half, {"mask": half}),
        PADDING: Counted.make(problem, within, {"lengths": lengths}),
    }
    forward: dict[str, Callable[[], Any]] = {}
    backward: dict[str, Callable[[], Any]] = {}
    for name, kind in kinds.items():
        try:
            kind.check()
        except WrongResultError as error:
            raise WrongResultError(f"{name}, {what}: {error}") from None
        forward[name] = kind.forward
        backward[name] = _backward(kind)
    return [
        Comparison(f"forward {what}", UNMASKED, forward),
        Comparison(f"backward {what}", UNMASKED, backward),
    ]


def _backward(kind: Counted) -> Callable[[], Any]:
    _, context = kind.forward()
    return lambda: kind.backward(context)
