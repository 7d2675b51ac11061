"""Gradients against finite differences, and inside PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import numpy as np
import pytest
import rustbn
import torch
from judge import present
from oracle import Array

both_modes = pytest.mark.parametrize("training", [True, False])


def central_differences(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Return the gradient of `loss`, one element at a time, with an error of order step**2."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
    return gradient


@both_modes
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((6, 3), 1), ((3, 2, 4), 1), ((4, 5), 0), ((2, 3, 2, 3), 3), ((2, 2, 2, 2, 2), 2)],
)
def test_gradients_are_slopes(
    shape: tuple[int, ...], axis: int, eps: float, training: bool
) -> None:
    p = cases.problem(shape, axis, np.float64)

    def loss(x: Array, weight: Array, bias: Array) -> float:
        stats = p.running_mean.copy(), p.running_var.copy()
        y = rustbn.batch_norm(x, *stats, weight, bias, training, eps=eps, axis=axis)
        return float((y * p.dy).sum())

    _, ctx = rustbn.batch_norm_forward(
        p.x, p.running_mean, p.running_var, p.weight, p.bias, training, eps=eps, axis=axis
    )
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx)
    for name, gradient, slope in (
        ("dx", dx, central_differences(lambda x: loss(x, p.weight, p.bias), p.x)),
        ("dweight", dweight, central_differences(lambda w: loss(p.x, w, p.bias), p.weight)),
        ("dbias", dbias, central_differences(lambda b: loss(p.x, p.weight, b), p.bias)),
    ):
        np.testing.assert_allclose(present(gradient), slope, rtol=1e-7, atol=1e-7, err_msg=name)


class BatchNorm(torch.autograd.Function):
    """rustbn as an operation of PyTorch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running: tuple[Array, Array] | None,
        training: bool,
        axis: int,
    ) -> torch.Tensor:
        weight, bias = (None if v is None else v.detach() for v in (weight, bias))
        mean, var = running or (None, None)
        y, ctx.rustbn = rustbn.batch_norm_forward(
            x.detach(), mean, var, weight, bias, training, axis=axis
        )
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        needs = [
            n for n, f in zip(("x", "weight", "bias"), ctx.needs_input_grad, strict=False) if f
        ]
        grads = rustbn.batch_norm_backward(dy.detach(), ctx.rustbn, needs=needs)
        tensors = (None if g is None else torch.from_numpy(g) for g in grads[:3])
        return *tensors, None, None, None


def tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values).requires_grad_()


@both_modes
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((2, 3, 4), 1), ((3, 2, 2, 3), -1)])
def test_autograd_agrees(shape: tuple[int, ...], axis: int, training: bool) -> None:
    p = cases.problem(shape, axis, np.float64)
    running = None if training else (p.running_mean, p.running_var)
    x, weight, bias = tensor(p.x), tensor(p.weight), tensor(p.bias)

    def apply(*inputs: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = BatchNorm.apply(*inputs, running, training, axis)
        return y

    assert torch.autograd.gradcheck(apply, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x: apply(x, None, None), (x,))
    assert torch.autograd.gradcheck(lambda w, b: apply(x.detach(), w, b), (weight, bias))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_learns_the_same_with_either_batch_norm(
    memory_format: torch.memory_format,
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 6, 6, generator=generator, dtype=torch.float64)
    images = images.to(memory_format=memory_format)
    labels = (images[:, 0].mean(dim=(1, 2)) > 0).long()

    def losses(normalise: Callable[..., torch.Tensor]) -> list[float]:
        generator.manual_seed(1)
        kernel = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
        parameters = [kernel.requires_grad_(), tensor(np.ones(4)), tensor(np.zeros(4))]
        optimizer = torch.optim.SGD(parameters, lr=2.0)
        seen = []
        for _ in range(40):
            hidden = normalise(torch.nn.functional.conv2d(images, parameters[0]), *parameters[1:])
            loss = torch.nn.functional.cross_entropy(hidden.relu().mean(dim=(2, 3)), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            seen.append(loss.item())
        return seen

    def ours(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = BatchNorm.apply(x, w, b, None, True, 1)
        return y

    def theirs(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.batch_norm(x, None, None, w, b, True)

    learned = losses(ours)
    assert learned[-1] < learned[0] / 2
    np.testing.assert_allclose(learned, losses(theirs), rtol=1e-9)
