"""A residual and a ReLU in the same pass, on a layer that no cache holds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import rustbn
from rustbn.bench import with_torch
from rustbn.bench.contestant import TOLERANCE
from rustbn.bench.problem import EPS, MOMENTUM, Answers, Problem, WrongResultError
from rustbn.bench.shapes import Case

CASE = Case("layer2 of ResNet-50", (32, 128, 56, 56), 1, "nchw")

ADD_OUT, ADD, RESIDUAL_ALONE = "np.add(x, r, out=y)", "x + r", "eval + residual, out="


@dataclass(frozen=True)
class Comparison:
    """Calls that move about the same bytes, and the one whose time is the measure.

    `calls` maps names, as they are reported, to functions. `reference` is one of the names.
    """

    title: str
    reference: str
    calls: dict[str, Callable[[], Any]]


def comparisons(peers: Sequence[str]) -> list[Comparison]:
    """Return the comparisons, after checking every result.

    Raises
    ------
    WrongResultError
        If a result is not the float64 answer.
    """
    problem = Problem.make(CASE)
    x, residual, out = problem.x, problem.dy, problem.out
    running = problem.running_mean.copy(), problem.running_var.copy()
    vectors = (problem.running_mean, problem.running_var, problem.weight, problem.bias)

    def forward(out: Any = None) -> Any:
        y, _ = rustbn.batch_norm_forward(
            x,
            *running,
            problem.weight,
            problem.bias,
            momentum=MOMENTUM,
            eps=EPS,
            activation="relu",
            residual=residual,
            out=out,
        )
        return y

    def evaluate(**more: Any) -> Any:
        return rustbn.batch_norm(x, *vectors, eps=EPS, residual=residual, out=out, **more)

    answers = Answers.of(problem)
    trained = np.maximum(answers.y + residual, 0)
    evaluated = answers.y_eval + residual
    size = answers.sizes["y"] + float(abs(residual).max())

    def checked(name: str, call: Callable[[], Any], answer: Any, tolerance: float) -> None:
        error = float(abs(np.asarray(call()) - answer).max())
        if not error <= tolerance * size:  # not ">", so that NaN is wrong
            raise WrongResultError(f"{name} is off by {error:.2g}; {tolerance * size:.2g} allowed")

    checked("training forward", forward, trained, TOLERANCE)
    checked("training forward, out=", lambda: forward(out=out), trained, TOLERANCE)
    checked(RESIDUAL_ALONE, evaluate, evaluated, TOLERANCE)
    relu = np.maximum(evaluated, 0)
    checked("eval", lambda: evaluate(activation="relu"), relu, TOLERANCE)
    fresh: dict[str, Callable[[], Any]] = {ADD: lambda: x + residual, "rustbn": forward}
    if "torch" in peers:
        three = _three_operations(problem)
        checked("torch", lambda: three().detach(), trained, with_torch.TOLERANCE)
        fresh["torch: batch_norm, add, relu"] = three
    existing: dict[str, Callable[[], Any]] = {
        ADD_OUT: lambda: np.add(x, residual, out=out),
        "rustbn out=": lambda: forward(out=out),
    }
    inference: dict[str, Callable[[], Any]] = {
        RESIDUAL_ALONE: evaluate,
        "eval + residual + ReLU, out=": lambda: evaluate(activation="relu"),
    }
    return [
        Comparison("training forward", ADD_OUT, existing),
        Comparison("training forward, fresh output", ADD, fresh),
        Comparison("inference", RESIDUAL_ALONE, inference),
    ]


def _three_operations(problem: Problem) -> Callable[[], Any]:
    torch: Any = importlib.import_module("torch")
    x, residual = (torch.from_numpy(a).detach() for a in (problem.x, problem.dy))
    x.requires_grad_()
    mean, var = torch.tensor(problem.running_mean), torch.tensor(problem.running_var)
    weight, bias = (torch.tensor(v, requires_grad=True) for v in (problem.weight, problem.bias))
    functional = torch.nn.functional

    def call() -> Any:
        y = functional.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)
        return functional.relu(y + residual)

    return call
