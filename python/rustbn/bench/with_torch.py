"""PyTorch as a contestant: as a user calls it, and its raw operations with existing outputs.

Arrays of 16 bits go with float32 vectors, as in a network under autocast; those of float64
with float64 vectors.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rustbn.bench.contestant import TORCH, TORCH_OUT, Contestant
from rustbn.bench.problem import EPS, MOMENTUM, Array, Problem, bfloat16

# Its sums are float32, one after the other in places.
TOLERANCE = 1e-3


def contestants(problem: Problem, pass_: str) -> list[Contestant]:
    """Return the ways to compute a pass with PyTorch, on the memory of the problem's arrays."""
    passes = {"forward": _forward, "backward": _backward, "eval": _eval, "step": _step}
    raw = _has_raw_operations(problem)
    return [entry for entry in passes[pass_](problem) if raw or entry.name != TORCH_OUT]


def set_threads(threads: int) -> int:
    """Set PyTorch's number of threads and return what it was."""
    torch = _torch()
    before: int = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before


def _has_raw_operations(problem: Problem) -> bool:
    """Tell whether outputs that exist come out right.

    PyTorch has a memory format for channels last of 4 and 5 dimensions only. With others, the raw
    operations take an output whose channels are last for one whose channels are not.
    """
    return problem.x.flags.c_contiguous or problem.x.ndim > 3


def _forward(problem: Problem) -> list[Contestant]:
    torch = _torch()
    x, out = _tensor(problem.x), _tensor(problem.out)
    mean, var = _running(problem)
    weight, bias = _vectors(problem)
    batch_norm = torch.nn.functional.batch_norm
    graph = [tensor.clone().requires_grad_() for tensor in (weight, bias)]
    leaf = x.detach().requires_grad_()
    saved = torch.empty_like(weight), torch.empty_like(weight)
    outputs = (out, *saved)

    def result(y: Any) -> Mapping[str, Any]:
        return {"y": _array(y)}

    return [
        Contestant(
            TORCH,
            lambda: batch_norm(leaf, mean, var, *graph, True, MOMENTUM, EPS),
            result,
            TOLERANCE,
        ),
        Contestant(
            TORCH_OUT,
            lambda: torch.native_batch_norm(
                x, weight, bias, mean, var, True, MOMENTUM, EPS, out=outputs
            ),
            lambda returned: result(returned[0]),
            TOLERANCE,
        ),
    ]


def _backward(problem: Problem) -> list[Contestant]:
    torch = _torch()
    x, dy, out = map(_tensor, (problem.x, problem.dy, problem.out))
    mean, var = _running(problem)
    weight, bias = _vectors(problem)
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = torch.nn.functional.batch_norm(inputs[0], mean, var, *inputs[1:], True, MOMENTUM, EPS)
    _, *saved = torch.native_batch_norm(x, weight, bias, None, None, True, MOMENTUM, EPS)
    raw = torch.ops.aten.native_batch_norm_backward.out
    outputs = {"out0": out, "out1": torch.empty_like(weight), "out2": torch.empty_like(bias)}

    def result(returned: tuple[Any, ...]) -> Mapping[str, Any]:
        gradients = map(_array, returned)
        return dict(zip(("dx", "dweight", "dbias"), gradients, strict=True))

    return [
        Contestant(
            TORCH,
            lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True),
            result,
            TOLERANCE,
        ),
        Contestant(
            TORCH_OUT,
            lambda: raw(dy, x, weight, mean, var, *saved, True, EPS, [True] * 3, **outputs),
            result,
            TOLERANCE,
        ),
    ]


def _eval(problem: Problem) -> list[Contestant]:
    torch = _torch()
    x, out = _tensor(problem.x), _tensor(problem.out)
    mean, var = _running(problem)
    weight, bias = _vectors(problem)
    batch_norm = torch.nn.functional.batch_norm
    outputs = (out, *(weight.new_empty(0) for _ in range(2)))

    def result(y: Any) -> Mapping[str, Any]:
        return {"y": _array(y)}

    return [
        Contestant(
            TORCH,
            lambda: batch_norm(x, mean, var, weight, bias, False, MOMENTUM, EPS),
            result,
            TOLERANCE,
        ),
        Contestant(
            TORCH_OUT,
            lambda: torch.native_batch_norm(
                x, weight, bias, mean, var, False, MOMENTUM, EPS, out=outputs
            ),
            lambda returned: result(returned[0]),
            TOLERANCE,
        ),
    ]


def _step(problem: Problem) -> list[Contestant]:
    layer = Layer(problem)
    return [Contestant(TORCH, lambda: layer.step(), layer.results, TOLERANCE)]


class Layer:
    """A module in training, as `rustbn.bench.network` strings them together."""

    def __init__(self, problem: Problem) -> None:
        torch = _torch()
        module = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        weight = torch.from_numpy(problem.weight)
        self.module = getattr(torch.nn, module[problem.x.ndim])(
            problem.x.shape[1], EPS, MOMENTUM, dtype=weight.dtype
        )
        with torch.no_grad():
            self.module.weight.copy_(weight)
            self.module.bias.copy_(torch.from_numpy(problem.bias))
        self.x = _tensor(problem.x).requires_grad_()
        self.dy = _tensor(problem.dy)

    def forward(self) -> Any:
        """Return y, with its graph."""
        return self.module(self.x)

    def backward(self, y: Any) -> Mapping[str, Any]:
        """Return the gradients; `y` is forward's."""
        self.module.zero_grad()
        y.backward(self.dy)
        # In a network the gradient goes on to the layer before, and nothing keeps it.
        dx, self.x.grad = self.x.grad, None
        return {"dx": dx, "dweight": self.module.weight.grad, "dbias": self.module.bias.grad}

    def step(self) -> Mapping[str, Any]:
        """Return y and the gradients."""
        y = self.forward()
        return {"y": y, **self.backward(y)}

    @staticmethod
    def results(returned: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what `forward`, `backward` or `step` gave as arrays."""
        return {name: _array(tensor) for name, tensor in returned.items()}


def _running(problem: Problem) -> tuple[Any, Any]:
    torch = _torch()
    return torch.tensor(problem.running_mean), torch.tensor(problem.running_var)


def _vectors(problem: Problem) -> tuple[Any, Any]:
    torch = _torch()
    return torch.tensor(problem.weight), torch.tensor(problem.bias)


def _tensor(array: Array) -> Any:
    """Return a tensor of the same memory."""
    torch = _torch()
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _array(tensor: Any) -> Array:
    """Return an array of the same memory."""
    tensor, torch = tensor.detach(), _torch()
    found: Array
    if tensor.dtype != torch.bfloat16:
        found = tensor.numpy()
    else:
        found = tensor.view(torch.int16).numpy().view(bfloat16())
    return found


def _torch() -> Any:
    """Import PyTorch: only where it is asked for, and without its types."""
    return importlib.import_module("torch")
