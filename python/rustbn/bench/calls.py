"""What a call costs where there is next to nothing to compute: arrays of (32, 64).

Statements are timed as `timeit` does it, without a function call around them.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import rustbn
from rustbn.bench.contestant import TOLERANCE
from rustbn.bench.problem import Answers, Problem
from rustbn.bench.shapes import Case
from rustbn.bench.timing import Clock

CASE = Case("calls", (32, 64), 1, "nchw")


@dataclass(frozen=True)
class Comparison:
    """Statements that do the same work, and the one whose time is the measure.

    `statements` maps names, as they are reported, to code. `reference` is one of the names.
    """

    title: str
    reference: str
    statements: dict[str, str]


ADD_OUT, ADD = "np.add(x, dy, out=out)", "np.add(x, dy)"
COMPARISONS = (
    Comparison(
        "inference, out= given",
        ADD_OUT,
        {
            ADD_OUT: "add(x, dy, out=out)",
            "rustbn.batch_norm(x, ..., out=out)": "batch_norm(x, mean, var, w, b, out=out)",
            "affine(x, out=out)": "affine(x, out=out)",
        },
    ),
    Comparison(
        "inference, fresh output",
        ADD,
        {
            ADD: "add(x, dy)",
            "rustbn.batch_norm(x, ...)": "batch_norm(x, mean, var, w, b)",
            "affine(x)": "affine(x)",
            "module(x)": "module_eval(x)",
            "torch functional": "torch_batch_norm(tx, tmean, tvar, tw, tb)",
            "torch module": "torch_module_eval(tx)",
        },
    ),
    Comparison(
        "training forward",
        "torch functional",
        {
            "torch functional": "torch_batch_norm(tx, tmean, tvar, tw, tb, True)",
            "rustbn.batch_norm_forward(x, ...)": "batch_norm_forward(x, mean, var, w, b)",
            "rustbn.batch_norm(x, ..., True)": "batch_norm(x, mean, var, w, b, True)",
        },
    ),
    Comparison(
        "training forward of a module",
        "torch module",
        {"torch module": "torch_module(tx)", "module(x)": "module(x)"},
    ),
    Comparison(
        "training step of a module",
        "torch module",
        {
            "torch module": "torch_module(tx).backward(tdy)",
            "module(x)": "module(x); module.backward(dy)",
        },
    ),
)


def timers(
    comparison: Comparison, clock: Clock, names: dict[str, Any]
) -> dict[str, Callable[[int], float]]:
    """Return the timers of the statements whose names are all there."""
    return {
        name: timeit.Timer(statement, globals=names, timer=clock.now).timeit
        for name, statement in comparison.statements.items()
        if "torch" in names or "torch" not in statement
    }


def namespace(peers: Sequence[str]) -> dict[str, Any]:
    """Return what the statements call, after checking what they compute."""
    problem = Problem.make(CASE)
    x, w, b = problem.x, problem.weight, problem.bias
    mean, var = problem.running_mean.copy(), problem.running_var.copy()
    names: dict[str, Any] = {
        "add": np.add,
        "batch_norm": rustbn.batch_norm,
        "batch_norm_forward": rustbn.batch_norm_forward,
        "affine": rustbn.Affine.from_running(problem.running_mean, problem.running_var, w, b),
        "module": rustbn.BatchNorm1d(w.size),
        "module_eval": _loaded(rustbn.BatchNorm1d(w.size), problem).eval(),
        "x": x, "dy": problem.dy, "out": problem.out, "w": w, "b": b, "mean": mean, "var": var,
    }  # fmt: skip
    _check(names, problem)
    if "torch" in peers:
        names |= _torch_names(problem)
    return names


def _check(names: dict[str, Any], problem: Problem) -> None:
    answers = Answers.of(problem)
    for comparison in COMPARISONS[:2]:
        for statement in comparison.statements.values():
            if "add" not in statement and "torch" not in statement:
                answers.check("eval", {"y": eval(statement, names)}, TOLERANCE)
    fresh = names | {"mean": names["mean"].copy(), "var": names["var"].copy()}
    y, _ = eval(COMPARISONS[2].statements["rustbn.batch_norm_forward(x, ...)"], fresh)
    answers.check("forward", {"y": y}, TOLERANCE)


def _loaded(module: rustbn.BatchNorm1d, problem: Problem) -> rustbn.BatchNorm1d:
    module.load_state_dict(
        {name: getattr(problem, name) for name in ("weight", "bias", "running_mean", "running_var")}
    )
    return module


def _torch_names(problem: Problem) -> dict[str, Any]:
    import importlib

    torch: Any = importlib.import_module("torch")
    x = torch.tensor(problem.x)
    return {
        "torch": torch,
        "torch_batch_norm": torch.nn.functional.batch_norm,
        "torch_module": torch.nn.BatchNorm1d(x.shape[1]),
        "torch_module_eval": torch.nn.BatchNorm1d(x.shape[1]).eval().requires_grad_(False),
        "tx": x,
        "tdy": torch.tensor(problem.dy),
        "tw": torch.tensor(problem.weight),
        "tb": torch.tensor(problem.bias),
        "tmean": torch.tensor(problem.running_mean),
        "tvar": torch.tensor(problem.running_var),
    }
