"""rustbn as a contestant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import rustbn
from rustbn.bench.contestant import (
    FLOAT32,
    FLOAT32_OUT,
    RUSTBN,
    RUSTBN_IN_PLACE,
    RUSTBN_OUT,
    Contestant,
)
from rustbn.bench.problem import EPS, MOMENTUM, Problem


def ours(problem: Problem, pass_: str) -> list[Contestant]:
    """Return the ways to compute a pass with rustbn, those in float32 beside those in 16 bits."""
    passes = {"forward": _forward, "backward": _backward, "eval": _eval, "step": _step}
    found = passes[pass_](problem)
    if problem.case.itemsize == 2:
        names = {RUSTBN: FLOAT32, RUSTBN_OUT: FLOAT32_OUT}
        wide = passes[pass_](problem.widened)
        found += [replace(entry, name=names[entry.name]) for entry in wide if entry.name in names]
    return found


def _forward(problem: Problem) -> list[Contestant]:
    x, out, arguments = problem.x, problem.out, _arguments(problem)

    def result(returned: tuple[Any, rustbn.Context]) -> Mapping[str, Any]:
        return {"y": returned[0]}

    return [
        Contestant(RUSTBN, lambda: rustbn.batch_norm_forward(x, *arguments), result),
        Contestant(RUSTBN_OUT, lambda: rustbn.batch_norm_forward(x, *arguments, out=out), result),
    ]


def _backward(problem: Problem) -> list[Contestant]:
    dy, out = problem.dy, problem.out
    _, context = rustbn.batch_norm_forward(problem.x, *_arguments(problem))

    def result(gradients: rustbn.Gradients) -> Mapping[str, Any]:
        return gradients._asdict()

    return [
        Contestant(RUSTBN, lambda: rustbn.batch_norm_backward(dy, context), result),
        Contestant(RUSTBN_OUT, lambda: rustbn.batch_norm_backward(dy, context, out=out), result),
    ]


def _eval(problem: Problem) -> list[Contestant]:
    x, out = problem.x, problem.out
    vectors = (problem.running_mean, problem.running_var, problem.weight, problem.bias)

    def result(y: Any) -> Mapping[str, Any]:
        return {"y": y}

    # In place again and again: scales are below 1, so values settle, neither huge nor subnormal.
    return [
        Contestant(RUSTBN, lambda: rustbn.batch_norm(x, *vectors, eps=EPS), result),
        Contestant(RUSTBN_OUT, lambda: rustbn.batch_norm(x, *vectors, eps=EPS, out=out), result),
        Contestant(
            RUSTBN_IN_PLACE,
            lambda: rustbn.batch_norm(out, *vectors, eps=EPS, out=out),
            result,
            prepare=lambda: np.copyto(out, x),
        ),
    ]


def _step(problem: Problem) -> list[Contestant]:
    layer = Layer(problem)
    return [Contestant(RUSTBN, lambda: layer.step(), lambda returned: returned)]


class Layer:
    """A module in training, as `rustbn.bench.network` strings them together."""

    def __init__(self, problem: Problem) -> None:
        self.x, self.dy = problem.x, problem.dy
        self.module = rustbn.BatchNorm(problem.x.shape[1], EPS, MOMENTUM)
        self.module.weight = problem.weight.copy()
        self.module.bias = problem.bias.copy()

    def forward(self) -> Any:
        """Return y."""
        return self.module(self.x)

    def backward(self, y: Any) -> Mapping[str, Any]:
        """Return the gradients; `y` is forward's."""
        self.module.zero_grad()
        dx = self.module.backward(self.dy)
        return {"dx": dx, "dweight": self.module.weight_grad, "dbias": self.module.bias_grad}

    def step(self) -> Mapping[str, Any]:
        """Return y and the gradients."""
        y = self.forward()
        return {"y": y, **self.backward(y)}


def _arguments(problem: Problem) -> tuple[Any, ...]:
    """Return what follows x in a training forward; the running statistics are of its own."""
    running = (problem.running_mean.copy(), problem.running_var.copy())
    return (*running, problem.weight, problem.bias, True, MOMENTUM, EPS)
