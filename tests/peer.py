"""PyTorch's batch normalization on NumPy arrays, along any axis."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from oracle import Array


@dataclass(frozen=True)
class Result:
    """What PyTorch makes of one problem; None where it makes nothing."""

    y: Array
    dx: Array
    dweight: Array | None
    dbias: Array | None
    running_mean: Array | None
    running_var: Array | None


def tensor(values: Array) -> torch.Tensor:
    """Return the memory of an array as a tensor; PyTorch knows no bfloat16 of NumPy."""
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def numpy(values: torch.Tensor) -> Array:
    """Return the memory of a tensor as an array, likewise."""
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy()


def batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    dy: Array,
    axis: int = 1,
    channels_last: bool = False,
) -> Result:
    """Run `torch.nn.functional.batch_norm` and its backward; the arguments stay unchanged."""

    def batch(values: Array) -> torch.Tensor:
        moved = tensor(np.array(np.moveaxis(values, axis, 1), order="C", copy=True))
        return moved.to(memory_format=torch.channels_last) if channels_last else moved

    def vector(values: Array | None, grad: bool = False) -> torch.Tensor | None:
        return None if values is None else tensor(values.copy()).requires_grad_(grad)

    def array(values: torch.Tensor | None) -> Array | None:
        return None if values is None else numpy(values.detach())

    x_, w_, b_ = batch(x).requires_grad_(), vector(weight, True), vector(bias, True)
    mean_, var_ = vector(running_mean), vector(running_var)
    y_ = torch.nn.functional.batch_norm(x_, mean_, var_, w_, b_, training, momentum, eps)
    y_.backward(batch(dy))  # type: ignore[no-untyped-call]
    assert x_.grad is not None
    return Result(
        y=np.moveaxis(numpy(y_.detach()), 1, axis),
        dx=np.moveaxis(numpy(x_.grad), 1, axis),
        dweight=array(w_ if w_ is None else w_.grad),
        dbias=array(b_ if b_ is None else b_.grad),
        running_mean=array(mean_),
        running_var=array(var_),
    )
