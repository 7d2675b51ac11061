"""Modules: training, evaluation, gradients, state and errors, against torch.nn and the formulas."""

from __future__ import annotations

import copy
import doctest
import gc
import io
import pickle
import re
import weakref
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rustbn
import rustbn.conventions
import rustbn.modules
import torch
from numpy.typing import NDArray
from rustbn import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

Array = NDArray[Any]

SHAPES = [
    pytest.param(BatchNorm1d, torch.nn.BatchNorm1d, (16, 5), id="1d-NC"),
    pytest.param(BatchNorm1d, torch.nn.BatchNorm1d, (4, 5, 7), id="1d-NCL"),
    pytest.param(BatchNorm2d, torch.nn.BatchNorm2d, (4, 5, 3, 6), id="2d"),
    pytest.param(BatchNorm3d, torch.nn.BatchNorm3d, (2, 5, 3, 2, 4), id="3d"),
]
DTYPES = [
    pytest.param(np.float32, id="float32"),
    pytest.param(np.float64, id="float64"),
]
STATE_ARRAYS = ("weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var")


def data(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    """Values whose mean and scale differ from channel to channel (axis 1)."""
    rng = np.random.default_rng(seed)
    channel = (1, -1) + (1,) * (len(shape) - 2)
    mean = rng.normal(0.0, 3.0, shape[1]).reshape(channel)
    scale = rng.uniform(0.5, 4.0, shape[1]).reshape(channel)
    return (rng.normal(size=shape) * scale + mean).astype(dtype)


def noise(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 1) -> Array:
    return np.random.default_rng(1000 + seed).normal(size=shape).astype(dtype)


def assert_close(actual: Any, expected: Any, *, ulps: float = 64) -> None:
    """Equal to within `ulps` units of the dtype's precision at the scale of `expected`."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    scale = float(np.abs(expected).max(initial=0.0))
    tolerance = ulps * np.finfo(actual.dtype).eps * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def snapshot(bn: BatchNorm) -> dict[str, Any]:
    """Everything a caller can see of a module, arrays by identity and by bytes."""
    state: dict[str, Any] = {"flags": (bn.num_batches_tracked, bn.training, bn.frozen)}
    for name in STATE_ARRAYS:
        array = getattr(bn, name)
        state[name] = (id(array), array.tobytes()) if isinstance(array, np.ndarray) else array
    return state


def randomize(bn: Any, seed: int = 1) -> Any:
    """Give a module parameters and running statistics that are not the initial ones."""
    rng = np.random.default_rng(seed)
    for name in ("weight", "bias", "running_mean"):
        if getattr(bn, name) is not None:
            getattr(bn, name)[:] = rng.normal(size=bn.num_features)
    if bn.running_var is not None:
        bn.running_var[:] = rng.uniform(0.5, 2.0, bn.num_features)
        bn.num_batches_tracked = 3
    return bn


def into_torch(bn: BatchNorm, reference: Any) -> None:
    """Copy a module's state into a torch module by hand, without state_dict."""
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(bn, name) is not None:
                getattr(reference, name).copy_(torch.from_numpy(getattr(bn, name)))
        if bn.num_batches_tracked is not None:
            reference.num_batches_tracked.fill_(bn.num_batches_tracked)


def torch_step(reference: Any, x: Array, dy: Array) -> tuple[Array, Array]:
    """Forward and backward in torch, accumulating its gradients; y and dx."""
    tx = torch.from_numpy(x.copy()).requires_grad_()
    y = reference(tx)
    y.backward(torch.from_numpy(dy.copy()))
    assert tx.grad is not None
    return y.detach().numpy(), tx.grad.numpy()


def per_channel(vector: Any, x: Array) -> Array:
    return np.asarray(vector, np.float64).reshape((1, -1) + (1,) * (x.ndim - 2))


# Training and evaluation against torch.nn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("track_running_stats", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("ours", "theirs", "shape"), SHAPES)
def test_training_trajectory(
    ours: type[BatchNorm],
    theirs: Any,
    shape: tuple[int, ...],
    affine: bool,
    track_running_stats: bool,
    momentum: float | None,
    dtype: Any,
) -> None:
    bn: Any = ours(5, 1e-3, momentum, affine, track_running_stats, dtype=dtype)
    reference = theirs(5, 1e-3, momentum, affine, track_running_stats, dtype=torch_dtype(dtype))
    if affine:
        randomize(bn)
        bn.reset_running_stats()
        into_torch(bn, reference)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05) if affine else None

    for step in range(5):
        x, dy = data(shape, dtype, seed=step), noise(shape, dtype, seed=step)
        bn.zero_grad()
        y, dx = bn(x), bn.backward(dy)
        reference.zero_grad()
        expected_y, expected_dx = torch_step(reference, x, dy)
        assert y.dtype == dx.dtype == dtype
        assert_close(y, expected_y)
        assert_close(dx, expected_dx)
        if optimizer is not None:
            assert_close(bn.weight_grad, reference.weight.grad)
            assert_close(bn.bias_grad, reference.bias.grad)
            for (_, parameter), (_, gradient) in zip(
                bn.named_parameters(), bn.named_grads(), strict=True
            ):
                parameter -= 0.05 * gradient
            optimizer.step()
        if track_running_stats:
            assert_close(bn.running_mean, reference.running_mean)
            assert_close(bn.running_var, reference.running_var)
            assert bn.num_batches_tracked == int(reference.num_batches_tracked) == step + 1

    x = data(shape, dtype, seed=50)
    expected = reference.eval()(torch.from_numpy(x)).detach().numpy()
    before = snapshot(bn.eval())
    assert_close(bn(x), expected)
    assert snapshot(bn) == before


def torch_dtype(dtype: Any) -> torch.dtype:
    return torch.float64 if dtype == np.float64 else torch.float32


def test_without_bias_is_bias_zero() -> None:
    bn: Any
    reference: Any
    bn, reference = BatchNorm2d(5, bias=False), torch.nn.BatchNorm2d(5)
    randomize(bn)
    into_torch(bn, reference)
    x, dy = data((4, 5, 3, 6)), noise((4, 5, 3, 6))
    y, dx = bn(x), bn.backward(dy)
    expected_y, expected_dx = torch_step(reference, x, dy)  # its bias is still the initial zero
    assert_close(y, expected_y)
    assert_close(dx, expected_dx)
    assert_close(bn.weight_grad, reference.weight.grad)
    assert bn.bias is None
    assert bn.bias_grad is None
    assert_close(bn.eval()(x), reference.eval()(torch.from_numpy(x)).detach())


def test_no_bias_without_affine() -> None:
    bn: Any = BatchNorm(5, affine=False, bias=True)
    assert bn.weight is bn.bias is bn.weight_grad is bn.bias_grad is None


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (3, 4, 5, 2), (2, 4, 3, 2, 2, 3)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    bn, reference = randomize(BatchNorm(4)), torch.nn.BatchNorm1d(4)
    into_torch(bn, reference)
    x, dy = data(shape), noise(shape)
    y, dx = bn(x), bn.backward(dy)
    flat = (shape[0], 4, -1)
    expected_y, expected_dx = torch_step(reference, x.reshape(flat), dy.reshape(flat))
    assert_close(y, expected_y.reshape(shape))
    assert_close(dx, expected_dx.reshape(shape))
    assert_close(bn.weight_grad, reference.weight.grad)
    assert_close(bn.bias_grad, reference.bias.grad)
    assert_close(bn.running_mean, reference.running_mean)
    assert_close(bn.running_var, reference.running_var)


@pytest.mark.parametrize("axis", [0, 2, -1, -2])
def test_axis(axis: int) -> None:
    bn, reference = randomize(BatchNorm2d(4, axis=axis)), torch.nn.BatchNorm2d(4)
    into_torch(bn, reference)
    nchw, dy = data((3, 4, 5, 6)), noise((3, 4, 5, 6))
    expected_y, expected_dx = torch_step(reference, nchw, dy)

    def moved(array: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(array, 1, axis))

    assert_close(bn(moved(nchw)), moved(expected_y))
    assert_close(bn.backward(moved(dy)), moved(expected_dx))
    assert_close(bn.weight_grad, reference.weight.grad)
    assert_close(bn.running_var, reference.running_var)
    expected = reference.eval()(torch.from_numpy(nchw)).detach().numpy()
    assert_close(bn.eval()(moved(nchw)), moved(expected))


def test_cumulative_average_is_the_mean_of_the_batches() -> None:
    bn: Any = BatchNorm(5, momentum=None, dtype=np.float64)
    batches = [data((n, 5), np.float64, seed=n) for n in (8, 3, 20)]
    for x in batches:
        bn(x)
    assert_close(bn.running_mean, np.mean([x.mean(axis=0) for x in batches], axis=0))
    assert_close(bn.running_var, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0))


def test_cumulative_average_goes_on_from_a_loaded_count() -> None:
    bn, reference = randomize(BatchNorm1d(5, momentum=None)), torch.nn.BatchNorm1d(5, momentum=None)
    into_torch(bn, reference)
    x = data((8, 5))
    bn(x)
    reference(torch.from_numpy(x))
    assert_close(bn.running_mean, reference.running_mean)
    assert_close(bn.running_var, reference.running_var)


def test_tracking_switched_off_later() -> None:
    bn, reference = randomize(BatchNorm1d(5)), torch.nn.BatchNorm1d(5)
    into_torch(bn, reference)
    bn.track_running_stats = reference.track_running_stats = False
    x = data((8, 5))
    before = snapshot(bn)
    assert_close(bn(x), reference(torch.from_numpy(x)).detach())
    bn(np.full_like(x, np.nan))
    assert snapshot(bn) == before
    assert_close(bn.eval()(x), reference.eval()(torch.from_numpy(x)).detach())


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_same_bits_as_the_functions(track_running_stats: bool) -> None:
    bn = randomize(BatchNorm2d(5, track_running_stats=track_running_stats))
    running_mean, running_var = copy.deepcopy((bn.running_mean, bn.running_var))
    x, dy = data((4, 5, 3, 6)), noise((4, 5, 3, 6))
    y, context = rustbn.batch_norm_forward(x, running_mean, running_var, bn.weight, bn.bias)
    gradients = rustbn.batch_norm_backward(dy, context)
    np.testing.assert_array_equal(bn(x), y)
    np.testing.assert_array_equal(bn.backward(dy), gradients.dx)
    np.testing.assert_array_equal(bn.weight_grad, gradients.dweight)
    np.testing.assert_array_equal(bn.bias_grad, gradients.dbias)
    if track_running_stats:
        np.testing.assert_array_equal(bn.running_mean, running_mean)
        np.testing.assert_array_equal(bn.running_var, running_var)


def test_float64_input_in_a_float32_module() -> None:
    bn = randomize(BatchNorm(5))
    x, dy = data((16, 5), np.float64), noise((16, 5), np.float64)
    y = bn(x)
    bn.backward(dy)
    bn.backward(dy)
    xhat = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    assert y.dtype == np.float64
    assert_close(y, xhat * bn.weight.astype(np.float64) + bn.bias)
    assert bn.weight_grad.dtype == np.float32
    assert_close(bn.weight_grad, 2 * (dy * xhat).sum(axis=0))


class ArrayLike:
    """Has nothing of an array but ``__array__``."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array


@pytest.mark.parametrize("wrap", [torch.from_numpy, ArrayLike])
def test_things_that_convert_to_arrays(wrap: Callable[[Array], Any]) -> None:
    bn, other = BatchNorm2d(5), BatchNorm2d(5)
    x, dy = data((4, 5, 3, 6)), noise((4, 5, 3, 6))
    y = bn(wrap(x))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, other(x))
    np.testing.assert_array_equal(bn.backward(wrap(dy)), other.backward(dy))
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        bn(wrap(x[0]))


# What happens at the edges of training


@pytest.mark.parametrize("momentum", [0.1, None])
def test_empty_batch(momentum: float | None) -> None:
    bn = randomize(BatchNorm2d(5, momentum=momentum))
    before = snapshot(bn)
    y = bn(np.empty((0, 5, 3, 6), np.float32))
    assert y.shape == (0, 5, 3, 6)
    assert y.dtype == np.float32
    dx = bn.backward(np.empty((0, 5, 3, 6), np.float32))
    assert dx.shape == (0, 5, 3, 6)
    after = snapshot(bn)
    assert after.pop("flags") == (4, True, False)
    assert before.pop("flags") == (3, True, False)
    assert after == before  # the gradients are still zeros, the running statistics as they were


def test_gradients_accumulate_until_zeroed() -> None:
    bn, reference = randomize(BatchNorm1d(5)), torch.nn.BatchNorm1d(5)
    into_torch(bn, reference)
    np.testing.assert_array_equal(bn.weight_grad, np.zeros(5))
    np.testing.assert_array_equal(bn.bias_grad, np.zeros(5))
    held = (bn.weight_grad, bn.bias_grad)
    for seed in range(3):
        x, dy = data((8, 5), seed=seed), noise((8, 5), seed=10 + seed)
        bn(x)
        bn.backward(dy)
        torch_step(reference, x, dy)
        assert_close(bn.weight_grad, reference.weight.grad)
        assert_close(bn.bias_grad, reference.bias.grad)
    bn.zero_grad()
    assert bn.weight_grad is held[0]
    assert bn.bias_grad is held[1]
    np.testing.assert_array_equal(held, np.zeros((2, 5)))


def test_several_backwards_of_one_forward() -> None:
    bn, reference = randomize(BatchNorm1d(5)), torch.nn.BatchNorm1d(5)
    into_torch(bn, reference)
    x, first, second = (data((8, 5), seed=seed) for seed in range(3))
    tx = torch.from_numpy(x.copy()).requires_grad_()
    y = reference(tx)
    bn(x)
    for dy in (first, second, first):
        tx.grad = None
        y.backward(torch.from_numpy(dy), retain_graph=True)
        assert_close(bn.backward(dy), tx.grad)
        assert_close(bn.weight_grad, reference.weight.grad)
        assert_close(bn.bias_grad, reference.bias.grad)


def test_gradients_set_to_none_start_anew() -> None:
    bn: Any = BatchNorm(2)
    bn(np.array([[1, 2], [3, 5]], np.float32))
    bn.weight_grad = bn.bias_grad = None
    assert list(bn.named_grads()) == []
    bn.zero_grad()
    for total in (3.0, 6.0):
        bn.backward(np.array([[1, 1], [2, 2]], np.float32))
        np.testing.assert_array_equal(bn.bias_grad, [total, total])
        assert [name for name, _ in bn.named_grads()] == ["weight", "bias"]


@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_parameters_belong_to_the_user(change: str) -> None:
    bn: Any
    reference: Any
    bn, reference = BatchNorm1d(5), torch.nn.BatchNorm1d(5)
    weight, bias = data((2, 5), seed=3)
    if change == "replaced":
        bn.weight, bn.bias = weight.copy(), bias.astype(np.float64)
    else:
        bn.weight[:], bn.bias[:] = weight, bias
    with torch.no_grad():
        reference.weight.copy_(torch.from_numpy(weight))
        reference.bias.copy_(torch.from_numpy(bias))
    x, dy = data((8, 5)), noise((8, 5))
    expected_y, expected_dx = torch_step(reference, x, dy)
    assert_close(bn(x), expected_y)
    bn.weight[:] = np.nan  # backward uses the weight of its forward
    assert_close(bn.backward(dy), expected_dx)
    assert_close(bn.weight_grad, reference.weight.grad)


@pytest.mark.parametrize(("name", "other"), [("weight", "bias"), ("bias", "weight")])
def test_parameter_replaced_by_none(name: str, other: str) -> None:
    bn = randomize(BatchNorm(5))
    setattr(bn, name, None)
    x, dy = data((8, 5)), noise((8, 5))
    xhat = (x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(x.astype(np.float64).var(axis=0) + 1e-5)
    assert_close(bn(x), xhat + bn.bias if name == "weight" else xhat * bn.weight)
    bn.backward(dy)
    np.testing.assert_array_equal(getattr(bn, f"{name}_grad"), np.zeros(5))
    assert [n for n, _ in bn.named_parameters()] == [other]
    assert [n for n, _ in bn.named_grads()] == [other]


def test_named_parameters_and_gradients_are_the_arrays_themselves() -> None:
    bn: Any = BatchNorm(5)
    parameters, gradients = dict(bn.named_parameters()), dict(bn.named_grads())
    assert list(parameters) == list(gradients) == ["weight", "bias"]
    assert parameters["weight"] is bn.weight
    assert parameters["bias"] is bn.bias
    assert gradients["weight"] is bn.weight_grad
    assert gradients["bias"] is bn.bias_grad
    assert [name for name, _ in BatchNorm(5, bias=False).named_grads()] == ["weight"]
    assert list(BatchNorm(5, affine=False).named_parameters()) == []
    assert list(BatchNorm(5, affine=False).named_grads()) == []


# Which forward backward belongs to


def test_backward_needs_a_forward_that_keeps() -> None:
    x = data((8, 5))
    bn: Any = BatchNorm(5)
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(x)
    bn.eval()(x)
    with pytest.raises(RuntimeError, match=r"forward .*\(freeze\(\) is eval with gradients\)"):
        bn.backward(x)
    bn.train()(x)
    bn.eval()
    bn.backward(x)  # switching is no forward: the latest one was in training
    before = snapshot(bn)
    bn(x)
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(x)
    assert snapshot(bn) == before


def test_backward_belongs_to_the_latest_forward() -> None:
    bn, fresh = BatchNorm(5), BatchNorm(5)
    dy = data((8, 5), seed=2)
    bn(data((8, 5), seed=0))
    bn(data((8, 5), seed=1))
    fresh(data((8, 5), seed=1))
    np.testing.assert_array_equal(bn.backward(dy), fresh.backward(dy))


@pytest.mark.parametrize("track_running_stats", [True, False])
def test_activations_are_kept_no_longer_than_needed(track_running_stats: bool) -> None:
    bn: Any = BatchNorm(5, track_running_stats=track_running_stats)

    def forward(seed: int) -> weakref.ref[Array]:
        x = data((8, 5), seed=seed)
        bn(x)
        return weakref.ref(x)

    def alive(ref: weakref.ref[Array]) -> bool:
        gc.collect()
        return ref() is not None

    first = forward(0)
    bn.backward(data((8, 5), seed=1))
    assert alive(first)
    second = forward(1)
    assert not alive(first)
    assert alive(second)
    bn.eval()
    third = forward(2)
    assert not alive(second)
    assert not alive(third)


# Freezing


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_uses_running_statistics_and_lets_gradients_flow(dtype: Any, training: bool) -> None:
    bn = randomize(BatchNorm2d(5, dtype=dtype))
    reference: Any = torch.nn.BatchNorm2d(5, dtype=torch_dtype(dtype)).eval()
    into_torch(bn, reference)
    x, dy = data((4, 5, 3, 6), dtype), noise((4, 5, 3, 6), dtype)
    assert bn.freeze() is bn
    assert bn.train(training) is bn
    before = snapshot(bn)
    y = bn(x)
    assert snapshot(bn) == before
    dx = bn.backward(dy)
    expected_y, expected_dx = torch_step(reference, x, dy)
    assert_close(y, expected_y)
    assert_close(dx, expected_dx)
    assert_close(bn.weight_grad, reference.weight.grad)
    assert_close(bn.bias_grad, reference.bias.grad)
    after = snapshot(bn)
    for name in ("running_mean", "running_var", "flags"):
        assert after[name] == before[name]


def test_unfreeze_goes_back_to_the_mode() -> None:
    bn, other = BatchNorm(5), BatchNorm(5)
    x = data((8, 5))
    assert not bn.frozen
    assert bn.freeze().frozen
    assert bn.unfreeze() is bn
    assert not bn.frozen
    assert bn.training
    np.testing.assert_array_equal(bn(x), other(x))
    assert bn.num_batches_tracked == 1
    bn.freeze().eval().unfreeze()(x)
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(x)


def test_frozen_takes_a_single_value_and_an_empty_batch() -> None:
    bn = randomize(BatchNorm(5)).freeze()
    x = data((1, 5))
    bn(x)
    scale = bn.weight.astype(np.float64) / np.sqrt(bn.running_var.astype(np.float64) + 1e-5)
    assert_close(bn.backward(x), scale * x)
    bn(x[:0])
    assert bn.backward(x[:0]).shape == (0, 5)


def test_freeze_without_running_statistics() -> None:
    bn: Any = BatchNorm(5, track_running_stats=False)
    with pytest.raises(RuntimeError, match=r"running statistics.*track_running_stats is False"):
        bn.freeze()
    assert not bn.frozen


# Modes and inference


def test_modes() -> None:
    bn: Any = BatchNorm(5)
    modes = [bn.training]
    for change in (bn.eval, bn.train, lambda: bn.train(np.False_)):
        assert change() is bn
        modes.append(bn.training)
    assert modes == [True, False, True, False]
    assert all(type(mode) is bool for mode in modes)
    with pytest.raises(TypeError, match="mode must be a bool, got str"):
        bn.train("train")
    assert not bn.training


@pytest.mark.parametrize("config", [{}, {"bias": False}, {"affine": False}])
def test_affine_transform(config: dict[str, Any]) -> None:
    bn = randomize(BatchNorm2d(5, eps=1e-2, **config)).eval()
    x = data((4, 5, 3, 6))
    weight = np.ones(5) if bn.weight is None else bn.weight.astype(np.float64)
    bias = np.zeros(5) if bn.bias is None else bn.bias.astype(np.float64)
    scale = weight / np.sqrt(bn.running_var.astype(np.float64) + 1e-2)
    expected = (x - per_channel(bn.running_mean, x)) * per_channel(scale, x) + per_channel(bias, x)

    transform = bn.affine_transform()
    assert_close(transform.mean, bn.running_mean.astype(np.float64), ulps=0)
    assert_close(transform.scale, scale, ulps=4)
    assert_close(transform.bias, bias, ulps=0)
    assert_close(transform(x), expected, ulps=4)
    assert_close(bn(x), expected, ulps=4)
    bn.reset_parameters()
    assert_close(transform(x), expected, ulps=4)  # a copy, not a view of the module


def test_evaluation_without_running_statistics_is_as_training() -> None:
    x = data((8, 5))
    bn: Any = BatchNorm(5, track_running_stats=False).eval()
    np.testing.assert_array_equal(bn(x), BatchNorm(5)(x))
    with pytest.raises(RuntimeError, match="backward needs"):
        bn.backward(x)
    with pytest.raises(ValueError, match=r"x must hold at least 2 values per channel"):
        bn(x[:1])
    bn.eps = 0.0
    with pytest.raises(ValueError, match="eps must be positive"):
        bn(x)
    smooth = BatchNorm(5, track_running_stats=False, activation="silu").eval()
    with pytest.raises(ValueError, match=r"activation must be .* in training, got silu"):
        smooth(x)


def test_affine_transform_without_running_statistics() -> None:
    with pytest.raises(RuntimeError, match="affine_transform needs running statistics"):
        BatchNorm(5, track_running_stats=False).affine_transform()


# out=


def test_out() -> None:
    bn, other = randomize(BatchNorm2d(5)), randomize(BatchNorm2d(5))
    x, dy = data((4, 5, 3, 6)), noise((4, 5, 3, 6))
    for mode in (BatchNorm.train, BatchNorm.freeze, BatchNorm.eval):
        mode(bn)
        mode(other)
        out = np.full_like(x, np.nan)
        assert bn(x, out=out) is out
        np.testing.assert_array_equal(out, other(x))
        if mode is not BatchNorm.eval:
            out = np.full_like(x, np.nan)
            assert bn.backward(dy, out=out) is out
            np.testing.assert_array_equal(out, other.backward(dy))
            assert bn.forward(x, out=out) is out
            np.testing.assert_array_equal(out, other.forward(x))
        bn.unfreeze()
        other.unfreeze()


def test_in_place() -> None:
    bn, other = randomize(BatchNorm(5)), randomize(BatchNorm(5))
    x, dy = data((8, 5)), noise((8, 5))
    bn(x)
    other(x)
    gradient = dy.copy()
    assert bn.backward(gradient, out=gradient) is gradient
    np.testing.assert_array_equal(gradient, other.backward(dy))
    y = x.copy()
    assert bn.eval()(y, out=y) is y
    np.testing.assert_array_equal(y, other.eval()(x))


# State


def test_state_dict_entries() -> None:
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(BatchNorm(5).state_dict()) == names
    assert list(BatchNorm(5).state_dict()) == list(torch.nn.BatchNorm1d(5).state_dict())
    assert list(BatchNorm(5, bias=False).state_dict()) == [n for n in names if n != "bias"]
    assert list(BatchNorm(5, affine=False).state_dict()) == names[2:]
    assert list(BatchNorm(5, track_running_stats=False).state_dict()) == names[:2]
    assert BatchNorm(5, affine=False, track_running_stats=False).state_dict() == {}


def test_state_dict_is_a_copy() -> None:
    bn = randomize(BatchNorm(5))
    before = snapshot(bn)
    for value in bn.state_dict().values():
        assert isinstance(value, np.ndarray)
        value[...] = 77
    assert snapshot(bn) == before


@pytest.mark.parametrize("config", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dict_into_torch(dtype: Any, config: dict[str, Any]) -> None:
    bn: Any = BatchNorm2d(5, dtype=dtype, **config)
    if bn.weight is not None:
        bn.weight[:] = data((1, 5))[0]
    for seed in range(3):
        bn(data((4, 5, 3, 6), dtype, seed))
    reference: Any = torch.nn.BatchNorm2d(5, dtype=torch_dtype(dtype), **config)
    state = {name: torch.from_numpy(value) for name, value in bn.state_dict().items()}
    reference.load_state_dict(state, strict=True)
    if bn.num_batches_tracked is not None:
        assert int(reference.num_batches_tracked) == 3
    x = data((4, 5, 3, 6), dtype, seed=9)
    assert_close(bn.eval()(x), reference.eval()(torch.from_numpy(x)).detach())
    assert_close(bn.train()(x), reference.train()(torch.from_numpy(x)).detach())


@pytest.mark.parametrize("config", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_checkpoint_loads_as_it_is(dtype: Any, config: dict[str, Any]) -> None:
    reference: Any = torch.nn.BatchNorm2d(5, dtype=torch_dtype(dtype), **config)
    if config.get("affine", True):
        with torch.no_grad():
            reference.weight.copy_(torch.arange(5))
    for seed in range(3):
        reference(torch.from_numpy(data((4, 5, 3, 6), dtype, seed)))
    file = io.BytesIO()
    torch.save(reference.state_dict(), file)
    file.seek(0)

    bn: Any = BatchNorm2d(5, dtype=dtype, **config)
    result = bn.load_state_dict(torch.load(file))
    assert result == ([], [])
    if config.get("track_running_stats", True):
        assert bn.num_batches_tracked == 3
        assert type(bn.num_batches_tracked) is int
    x = data((4, 5, 3, 6), dtype, seed=9)
    assert_close(bn.eval()(x), reference.eval()(torch.from_numpy(x)).detach())
    assert_close(bn.train()(x), reference.train()(torch.from_numpy(x)).detach())


def test_load_one_layer_of_a_network() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.BatchNorm2d(5)
    )
    network(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    bn: Any = BatchNorm2d(5)
    bn.load_state_dict(network.state_dict(), prefix="2.")
    reference = network[2]
    np.testing.assert_array_equal(bn.running_mean, reference.running_mean)
    np.testing.assert_array_equal(bn.running_var, reference.running_var)
    assert bn.num_batches_tracked == 1


def test_load_keeps_the_modules_arrays_and_copies() -> None:
    bn: Any = BatchNorm(5)
    held = {name: getattr(bn, name) for name in STATE_ARRAYS}
    state = randomize(BatchNorm(5)).state_dict()
    bn.load_state_dict(state)
    for name, array in held.items():
        assert getattr(bn, name) is array
    for name in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_array_equal(held[name], state[name])
        assert not np.shares_memory(held[name], state[name])
    assert bn.num_batches_tracked == 3


def test_load_of_the_modules_own_arrays_crosswise() -> None:
    bn = randomize(BatchNorm(5, track_running_stats=False))
    weight, bias = bn.weight.copy(), bn.bias.copy()
    bn.load_state_dict({"weight": bn.bias, "bias": bn.weight})
    np.testing.assert_array_equal(bn.weight, bias)
    np.testing.assert_array_equal(bn.bias, weight)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64, ">f8"])
def test_load_casts_floats(source: Any) -> None:
    bn: Any = BatchNorm(3, track_running_stats=False)
    weight = np.array([1.5, -2.0, 0.25], source)  # exact in all of them
    bn.load_state_dict({"weight": weight, "bias": weight[::-1]})
    assert bn.weight.dtype == np.float32
    np.testing.assert_array_equal(bn.weight, [1.5, -2.0, 0.25])
    np.testing.assert_array_equal(bn.bias, [0.25, -2.0, 1.5])


def test_load_tensors_that_require_grad() -> None:
    reference: Any = torch.nn.BatchNorm1d(5)
    bn = randomize(BatchNorm(5))
    bn.load_state_dict({**dict(reference.named_parameters()), **dict(reference.named_buffers())})
    np.testing.assert_array_equal(bn.weight, np.ones(5))
    np.testing.assert_array_equal(bn.bias, np.zeros(5))
    assert bn.num_batches_tracked == 0


def test_state_through_npz() -> None:
    bn = randomize(BatchNorm(5))
    file = io.BytesIO()
    np.savez(file, **bn.state_dict())
    file.seek(0)
    loaded = BatchNorm(5)
    with np.load(file) as archive:
        loaded.load_state_dict(archive)
    assert loaded.num_batches_tracked == 3
    for name in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(bn, name))


@pytest.mark.parametrize("count", [7, np.int32(7), np.uint8(7), np.array(7), torch.tensor(7)])
def test_load_counts(count: Any) -> None:
    bn: Any = BatchNorm(5)
    bn.load_state_dict({**bn.state_dict(), "num_batches_tracked": count})
    assert bn.num_batches_tracked == 7
    assert type(bn.num_batches_tracked) is int


@pytest.mark.parametrize("strict", [True, False])
def test_load_without_a_count(strict: bool) -> None:
    bn = randomize(BatchNorm(5))
    state = bn.state_dict()
    del state["num_batches_tracked"]
    assert bn.load_state_dict(state, strict=strict) == ([], [])
    assert bn.num_batches_tracked == 0


def test_load_not_strict() -> None:
    bn = randomize(BatchNorm(5))
    before = snapshot(bn)
    weight = data((1, 5), seed=5)[0]
    result = bn.load_state_dict(
        {"a.weight": weight, "a.extra": weight, "b.bias": weight}, strict=False, prefix="a."
    )
    assert result.missing_keys == ["a.bias", "a.running_mean", "a.running_var"]
    assert result.unexpected_keys == ["a.extra"]
    np.testing.assert_array_equal(bn.weight, weight)
    after = snapshot(bn)
    del before["weight"], after["weight"]
    assert after == before  # the count stays with the running statistics it belongs to


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        del state[name]

    return change


def with_entry(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[name] = value

    return change


BAD_STATES = [
    ("missing weight", without("weight"), KeyError, "weight"),
    ("missing running_var", without("running_var"), KeyError, "running_var"),
    ("unexpected", with_entry("gamma", np.ones(5)), KeyError, "gamma"),
    ("bias too long", with_entry("bias", np.ones(6)), ValueError, r"bias .*\(5,\), got \(6,\)"),
    ("0-d weight", with_entry("weight", np.array(1.0)), ValueError, r"weight .*got \(\)"),
    ("2-d mean", with_entry("running_mean", np.ones((1, 5))), ValueError, "running_mean"),
    ("1-d count", with_entry("num_batches_tracked", np.array([3])), ValueError, "num_batches"),
    ("negative count", with_entry("num_batches_tracked", -1), ValueError, "num_batches"),
    ("integer var", with_entry("running_var", np.ones(5, int)), TypeError, "running_var"),
    ("complex bias", with_entry("bias", np.ones(5, complex)), TypeError, "bias"),
    ("text", with_entry("running_var", "ones"), TypeError, "running_var"),
    ("ragged", with_entry("running_var", [[1.0], 2.0]), TypeError, "running_var"),
    ("float count", with_entry("num_batches_tracked", 3.0), TypeError, "num_batches"),
    ("bool count", with_entry("num_batches_tracked", True), TypeError, "num_batches"),
    (
        "tensor elsewhere",
        with_entry("running_var", torch.ones(5, device="meta")),
        TypeError,
        "running_var.*CPU tensor",
    ),
    (
        "bfloat16 tensor elsewhere",
        with_entry("running_var", torch.ones(5, dtype=torch.bfloat16, device="meta")),
        TypeError,
        "running_var.*CPU tensor",
    ),
    ("voids", with_entry("bias", np.zeros(5, "V2")), TypeError, r"bias .*dtype, got \|V2"),
]


@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1."])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [pytest.param(*row, id=name) for name, *row in BAD_STATES],
)
def test_bad_state_loads_nothing(
    change: Callable[[dict[str, Any]], None], error: type[Exception], message: str, prefix: str
) -> None:
    bn = randomize(BatchNorm(5))
    state: dict[str, Any] = dict(randomize(BatchNorm(5), seed=2).state_dict())
    change(state)
    x, dy = data((8, 5)), noise((8, 5))
    bn(x)
    dx = bn.backward(dy)
    before = snapshot(bn)
    with pytest.raises(error, match=message) as caught:
        bn.load_state_dict({prefix + name: value for name, value in state.items()}, prefix=prefix)
    assert prefix in str(caught.value)
    assert type(caught.value) is error
    assert snapshot(bn) == before
    np.testing.assert_array_equal(bn.backward(dy), dx)
    if error is not KeyError:
        before = snapshot(bn)
        with pytest.raises(error, match=message):
            bn.load_state_dict(state, strict=False)
        assert snapshot(bn) == before


def test_entries_of_what_is_off_are_unexpected() -> None:
    bn: Any = BatchNorm(5, affine=False)
    before = snapshot(bn)
    with pytest.raises(KeyError, match="weight"):
        bn.load_state_dict(BatchNorm(5).state_dict())
    assert snapshot(bn) == before
    bn.load_state_dict(randomize(BatchNorm(5)).state_dict(), strict=False)
    assert bn.weight is None
    assert bn.num_batches_tracked == 3


def test_load_from_what_is_no_mapping() -> None:
    with pytest.raises(TypeError, match=r"d must be a mapping.*list"):
        BatchNorm(5).load_state_dict([("weight", np.ones(5))])  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", [None, 1, ("bn.",)])
def test_load_with_a_prefix_that_is_no_str(prefix: Any) -> None:
    text = f"^prefix must be a str, got {type(prefix).__name__}$"
    with pytest.raises(TypeError, match=text):
        BatchNorm(5).load_state_dict(BatchNorm(5).state_dict(), prefix=prefix)


def test_arrays_that_cannot_be_written() -> None:
    bn = randomize(BatchNorm(5))
    state = randomize(BatchNorm(5), seed=2).state_dict()
    bn.running_var.flags.writeable = False
    before = snapshot(bn)
    for call in (
        lambda: bn.load_state_dict(state),
        bn.reset_running_stats,
        bn.reset_parameters,
    ):
        with pytest.raises(ValueError, match="running_var must be writeable"):
            call()
        assert snapshot(bn) == before
    bn.running_var = [1.0] * 5
    with pytest.raises(TypeError, match="running_var must be an array, got list"):
        bn.load_state_dict(state)


def test_reset() -> None:
    bn = randomize(BatchNorm(5))
    held = {name: getattr(bn, name) for name in STATE_ARRAYS}
    weight = bn.weight.copy()
    bn.reset_running_stats()
    np.testing.assert_array_equal(bn.running_mean, np.zeros(5))
    np.testing.assert_array_equal(bn.running_var, np.ones(5))
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal(bn.weight, weight)

    randomize(bn)
    bn.reset_parameters()
    np.testing.assert_array_equal(bn.weight, np.ones(5))
    np.testing.assert_array_equal(bn.bias, np.zeros(5))
    np.testing.assert_array_equal(bn.running_mean, np.zeros(5))
    np.testing.assert_array_equal(bn.running_var, np.ones(5))
    assert bn.num_batches_tracked == 0
    for name, array in held.items():
        assert getattr(bn, name) is array


def test_reset_of_what_is_off() -> None:
    bn: Any = BatchNorm(5, affine=False, track_running_stats=False)
    before = snapshot(bn)
    bn.reset_running_stats()
    bn.reset_parameters()
    bn.zero_grad()
    assert snapshot(bn) == before


# Copies


def through_pickle(bn: BatchNorm) -> BatchNorm:
    loaded = pickle.loads(pickle.dumps(bn))
    assert isinstance(loaded, BatchNorm)
    return loaded


@pytest.mark.parametrize("duplicate", [through_pickle, copy.deepcopy])
@pytest.mark.parametrize("cls", [BatchNorm, BatchNorm2d])
def test_copies(cls: type[BatchNorm], duplicate: Callable[[BatchNorm], BatchNorm]) -> None:
    bn: Any = cls(5, 1e-3, None, axis=-1, dtype=np.float64)
    randomize(bn)
    x, dy = (data((4, 5, 3, 6), np.float64, seed).swapaxes(1, 3).copy() for seed in (0, 1))
    bn(x)
    bn.backward(dy)
    before = snapshot(bn)

    twin = duplicate(bn)
    assert type(twin) is cls
    assert repr(twin) == repr(bn)
    assert twin.training
    for name in STATE_ARRAYS:
        np.testing.assert_array_equal(getattr(twin, name), getattr(bn, name))
        assert not np.shares_memory(getattr(twin, name), getattr(bn, name))
    with pytest.raises(RuntimeError, match="forward"):
        twin.backward(dy)
    y, dx = twin(x), twin.backward(dy)
    assert snapshot(bn) == before
    np.testing.assert_array_equal(y, bn(x))
    np.testing.assert_array_equal(dx, bn.backward(dy))
    for name in STATE_ARRAYS:
        np.testing.assert_array_equal(getattr(twin, name), getattr(bn, name))
    assert twin.num_batches_tracked == bn.num_batches_tracked == 5

    frozen = duplicate(bn.freeze().eval())
    assert frozen.frozen
    assert not frozen.training


def test_pickles_hold_no_activations() -> None:
    bn: Any = BatchNorm(5)
    small = len(pickle.dumps(bn))
    x = data((1000, 5))
    bn(x)
    bn.backward(x)
    assert abs(len(pickle.dumps(bn)) - small) < 100
    assert bn.backward(x).shape == x.shape  # copying takes nothing from the original


# Construction


def test_defaults_are_those_of_torch() -> None:
    bn: Any
    reference: Any
    bn, reference = BatchNorm2d(5), torch.nn.BatchNorm2d(5)
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
        assert getattr(bn, name) == getattr(reference, name)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(bn, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(bn, name), getattr(reference, name).detach())
    assert bn.num_batches_tracked == int(reference.num_batches_tracked)


def test_repr() -> None:
    assert repr(BatchNorm2d(64)) == (
        "BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    )
    assert repr(BatchNorm(3, 0.001, None, bias=False, axis=-1, dtype=np.float64)) == (
        "BatchNorm(3, eps=0.001, momentum=None, affine=True, track_running_stats=True, "
        "bias=False, axis=-1, dtype=float64)"
    )
    assert repr(BatchNorm1d(3, affine=False, track_running_stats=False)) == (
        "BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False)"
    )


@pytest.mark.parametrize("count", [3, np.int64(3), np.uint8(3)])
def test_num_features(count: Any) -> None:
    bn: Any = BatchNorm(count)
    assert type(bn.num_features) is int
    assert bn.running_mean.shape == (3,)


@pytest.mark.parametrize("count", [0, -1])
def test_num_features_must_be_positive(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_features must be positive, got {count}"):
        BatchNorm(count)


@pytest.mark.parametrize("count", [3.0, "3", None, True, np.True_, [3]])
def test_num_features_must_be_an_int(count: Any) -> None:
    with pytest.raises(TypeError, match=f"num_features must be an int, got {type(count).__name__}"):
        BatchNorm(count)


@pytest.mark.parametrize("axis", [1.0, "1", None, False])
def test_axis_must_be_an_int(axis: Any) -> None:
    with pytest.raises(TypeError, match=f"axis must be an int, got {type(axis).__name__}"):
        BatchNorm(3, axis=axis)


@pytest.mark.parametrize("name", ["eps", "momentum"])
@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("cls", [BatchNorm2d, rustbn.SyncBatchNorm])
def test_eps_and_momentum_must_be_real_and_finite(cls: Any, convention: str, name: str) -> None:
    def refused(value: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"^{name} must be {message}$"):
            cls(3, convention=convention, **{name: value})

    for value in (True, np.False_, "0.1", b"1", [0.1], np.ones(2), 1j, object()):
        refused(value, TypeError, f"a real number, got {type(value).__name__}")
    for infinite in (np.inf, -np.inf, np.nan, np.float32(np.inf), 10**400):
        refused(infinite, ValueError, f".*finite, got {re.escape(str(infinite))}")
    if name == "eps":
        refused(None, TypeError, "a real number, got NoneType")
        refused(-1e-5, ValueError, "0 or more and finite, got -1e-05")


REALS = [
    0, 1, 0.25, np.float16(0.25), np.float64(0.25), np.int8(1), np.array(0.25), torch.tensor(0.25),
    ml_dtypes.bfloat16(0.25), Decimal("0.25"), Fraction(1, 4), -0.25,
]  # fmt: skip


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("number", REALS, ids=lambda number: f"{type(number).__name__} {number}")
def test_eps_and_momentum_may_be_any_real_number(number: Any, convention: str) -> None:
    x = data((8, 5))
    bn: Any
    other: Any
    bn, other = (BatchNorm(5, 1e-3, m, convention=convention) for m in (number, float(number)))
    assert bn.momentum is number
    np.testing.assert_array_equal(bn(x), other(x))
    np.testing.assert_array_equal(bn.running_mean, other.running_mean)
    if number >= 0:
        bn, other = (BatchNorm(5, eps, convention=convention) for eps in (number, float(number)))
        assert bn.eps is number
        np.testing.assert_array_equal(bn.eval()(x), other.eval()(x))


@pytest.mark.parametrize("dtype", [np.float64, "float64", "d", np.dtype(np.float64), float])
def test_dtype(dtype: Any) -> None:
    bn: Any = BatchNorm(3, dtype=dtype)
    assert bn.dtype == np.float64
    for name in STATE_ARRAYS:
        assert getattr(bn, name).dtype == np.float64


@pytest.mark.parametrize(
    "dtype", [np.int32, np.longdouble, np.complex64, bool, None, "nonsense", torch.float32]
)
def test_dtype_must_be_one_that_arrays_may_have(dtype: Any) -> None:
    expected = "dtype must be float16, bfloat16, float32 or float64, got"
    with pytest.raises(TypeError, match=expected):
        BatchNorm(3, dtype=dtype)


def test_call_is_forward_of_a_subclass_too() -> None:
    class Doubled(BatchNorm):
        def forward(self, x: Any, **arguments: Any) -> Array:
            return 2 * super().forward(x, **arguments)

    x = data((8, 5))
    np.testing.assert_array_equal(Doubled(5)(x), 2 * BatchNorm(5)(x))


# Bad input: the error names the argument, and nothing has changed


@pytest.mark.parametrize(
    ("cls", "axis", "shape", "message"),
    [
        (BatchNorm1d, 1, (5,), "x must have 2 or 3 dimensions (N, C) or (N, C, L), got 1"),
        (BatchNorm1d, 1, (2, 5, 2, 2), "x must have 2 or 3 dimensions (N, C) or (N, C, L), got 4"),
        (BatchNorm2d, 1, (2, 5, 2), "x must have 4 dimensions (N, C, H, W), got 3"),
        (BatchNorm2d, 1, (2, 5, 2, 2, 2), "x must have 4 dimensions (N, C, H, W), got 5"),
        (BatchNorm2d, -1, (2, 2, 5), "x must have 4 dimensions (N, H, W, C), got 3"),
        (BatchNorm2d, 3, (2, 2, 5), "x must have 4 dimensions (N, H, W, C), got 3"),
        (BatchNorm3d, 1, (2, 5, 2, 2), "x must have 5 dimensions (N, C, D, H, W), got 4"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "eval", "freeze"])
def test_rank(
    cls: type[BatchNorm], axis: int, shape: tuple[int, ...], message: str, mode: str
) -> None:
    bn = randomize(cls(5, axis=axis))
    getattr(bn, mode)()
    before = snapshot(bn)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bn(np.ones(shape, np.float32))
    assert snapshot(bn) == before


@pytest.mark.parametrize("x", [None, "x", 1.0, [[1.0]], [[1.0], 2.0]])
def test_rank_of_what_is_no_array(x: Any) -> None:
    bn = BatchNorm2d(1)
    before = snapshot(bn)
    with pytest.raises(TypeError, match="x must be"):
        bn(x)
    assert snapshot(bn) == before


READ_ONLY = np.zeros((8, 5), np.float32)
READ_ONLY.flags.writeable = False
ANY_MODE = ("train", "freeze", "eval")
KEEPING = ("train", "freeze")

# name, modes in which it is an error, attributes to set first, x, out, exception, message
BAD_FORWARDS: list[tuple[str, tuple[str, ...], dict[str, Any], Any, Any, type[Exception], str]] = [
    (
        "one value per channel",
        ("train",),
        {},
        data((1, 5)),
        None,
        ValueError,
        "x .*values per channel",
    ),
    (
        "one value, spatial",
        ("train",),
        {},
        data((1, 5, 1, 1)),
        None,
        ValueError,
        "x .*values per channel",
    ),
    ("eps zero", ("train",), {"eps": 0.0}, data((8, 5)), None, ValueError, "eps"),
    ("eps negative", ANY_MODE, {"eps": -1e-5}, data((8, 5)), None, ValueError, "eps"),
    ("eps infinite", ANY_MODE, {"eps": np.inf}, data((8, 5)), None, ValueError, "eps"),
    ("eps NaN", ANY_MODE, {"eps": np.nan}, data((8, 5)), None, ValueError, "eps"),
    ("eps text", ANY_MODE, {"eps": "small"}, data((8, 5)), None, TypeError, "eps"),
    ("momentum text", ("train",), {"momentum": "0.1"}, data((8, 5)), None, TypeError, "momentum"),
    ("rank 1", ANY_MODE, {}, np.ones(5, np.float32), None, ValueError, "x"),
    ("rank 0", ANY_MODE, {}, np.ones((), np.float32), None, ValueError, "x"),
    ("channels", ANY_MODE, {}, data((8, 4)), None, ValueError, "x must have 5 channels"),
    ("axis", ANY_MODE, {"axis": 2}, data((8, 5)), None, np.exceptions.AxisError, "axis"),
    ("integers", ANY_MODE, {}, np.ones((8, 5), int), None, TypeError, "x"),
    ("bools", ANY_MODE, {}, np.ones((8, 5), bool), None, TypeError, "x"),
    ("complex", ANY_MODE, {}, np.ones((8, 5), complex), None, TypeError, "x"),
    ("objects", ANY_MODE, {}, np.ones((8, 5), object), None, TypeError, "x"),
    ("None", ANY_MODE, {}, None, None, TypeError, "x"),
    ("lists", ANY_MODE, {}, [[1.0] * 5] * 8, None, TypeError, "x"),
    ("long weight", ANY_MODE, {"weight": np.ones(6)}, data((8, 5)), None, ValueError, "weight"),
    ("2-d bias", ANY_MODE, {"bias": np.ones((1, 5))}, data((8, 5)), None, ValueError, "bias"),
    ("int weight", ANY_MODE, {"weight": np.ones(5, int)}, data((8, 5)), None, TypeError, "weight"),
    (
        "one of the pair",
        ANY_MODE,
        {"running_var": None},
        data((8, 5)),
        None,
        ValueError,
        "running_var",
    ),
    (
        "copied",
        ("train",),
        {"running_mean": [0.0] * 5},
        data((8, 5)),
        None,
        TypeError,
        "running_mean",
    ),
    ("out shape", ANY_MODE, {}, data((8, 5)), data((7, 5)), ValueError, "out"),
    ("out dtype", ANY_MODE, {}, data((8, 5)), data((8, 5), np.float64), TypeError, "out"),
    ("out read-only", ANY_MODE, {}, data((8, 5)), READ_ONLY, ValueError, "out"),
    ("out no array", ANY_MODE, {}, data((8, 5)), [0.0], TypeError, "out"),
    ("out is x", KEEPING, {}, data((8, 5)), "x", ValueError, "out"),
]


@pytest.mark.parametrize(
    ("mode", "attributes", "x", "out", "error", "message"),
    [
        pytest.param(mode, *row, id=f"{name}-{mode}")
        for name, modes, *row in BAD_FORWARDS
        for mode in modes
    ],
)
def test_bad_forward_changes_nothing(
    mode: str,
    attributes: dict[str, Any],
    x: Any,
    out: Any,
    error: type[Exception],
    message: str,
) -> None:
    bn = randomize(BatchNorm(5))
    kept, dy = data((6, 5), seed=3), noise((6, 5))
    bn(kept)
    dx = bn.backward(dy)
    getattr(bn, mode)()
    for name, value in attributes.items():
        setattr(bn, name, value)
    if isinstance(out, str):
        out = x = x.copy()
    contents = out.copy() if isinstance(out, np.ndarray) else None

    before = snapshot(bn)
    with pytest.raises(error, match=rf"\b{message}\b"):
        bn(x, out=out)
    assert snapshot(bn) == before
    if contents is not None:
        np.testing.assert_array_equal(out, contents)
    # The forward that failed is not the latest forward, so backward still serves the one before.
    np.testing.assert_array_equal(bn.backward(dy), dx)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("axis", [1, -1])
def test_channels_of_a_module_without_arrays(axis: int, mode: str) -> None:
    bn = BatchNorm(5, affine=False, track_running_stats=False, axis=axis)
    getattr(bn, mode)()
    with pytest.raises(ValueError, match=rf"5 channels along axis {axis}, got \(8, 4\)"):
        bn(data((8, 4)))
    with pytest.raises(TypeError, match="x must be"):
        bn([[1.0] * 4] * 8)
    with pytest.raises(ValueError, match="x must have 2 or more dimensions"):
        bn(np.float32(1.0))
    assert bn(data((8, 5))).shape == (8, 5)


@pytest.mark.parametrize("mode", ANY_MODE)
@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, ArrayLike])
@pytest.mark.parametrize(
    "config",
    [{}, {"affine": False}, {"bias": False, "convention": "keras"}, {"on_nonfinite": "skip"}],
    ids=str,
)
def test_channels(config: dict[str, Any], wrap: Callable[[Array], Any], mode: str) -> None:
    bn: Any = BatchNorm1d(4, **config)
    getattr(bn, mode)()
    before = snapshot(bn)
    for update in (True, False):
        text = re.escape("x must have 4 channels along axis 1, got (4, 3, 5)")
        with pytest.raises(ValueError, match=f"^{text}$"):
            bn(wrap(data((4, 3, 5))), update=update)
    assert snapshot(bn) == before
    bn.running_var = np.ones(3)  # what else does not fit is named
    if mode != "train":
        with pytest.raises(ValueError, match=r"^running_var must have shape \(4,\)"):
            bn(wrap(data((4, 4, 5))))


@pytest.mark.parametrize("mode", ["eval", "freeze"])
def test_eps_zero_without_batch_statistics(mode: str) -> None:
    bn: Any = BatchNorm(2, eps=0.0)
    bn.running_var[:] = [4.0, 16.0]
    getattr(bn, mode)()
    x = np.array([[2.0, 4.0], [6.0, 8.0]], np.float32)
    np.testing.assert_array_equal(bn(x), [[1.0, 1.0], [3.0, 2.0]])


@pytest.mark.parametrize(
    ("dy", "out", "error", "message"),
    [
        pytest.param(data((7, 5)), None, ValueError, "dy", id="shape"),
        pytest.param(data((8, 5, 1)), None, ValueError, "dy", id="rank"),
        pytest.param(data((8, 5), np.float64), None, TypeError, "dy", id="dtype"),
        pytest.param(np.ones((8, 5), int), None, TypeError, "dy", id="integers"),
        pytest.param(None, None, TypeError, "dy", id="None"),
        pytest.param(data((8, 5)), data((7, 5)), ValueError, "out", id="out shape"),
        pytest.param(data((8, 5)), data((8, 5), np.float64), TypeError, "out", id="out dtype"),
        pytest.param(data((8, 5)), READ_ONLY, ValueError, "out", id="out read-only"),
    ],
)
@pytest.mark.parametrize("mode", KEEPING)
def test_bad_backward_changes_nothing(
    mode: str, dy: Any, out: Any, error: type[Exception], message: str
) -> None:
    bn = randomize(BatchNorm(5))
    getattr(bn, mode)()
    x, good = data((8, 5)), noise((8, 5))
    bn(x)
    dx = bn.backward(good)
    contents = out.copy() if isinstance(out, np.ndarray) else None
    before = snapshot(bn)
    with pytest.raises(error, match=rf"\b{message}\b"):
        bn.backward(dy, out=out)
    assert snapshot(bn) == before
    if contents is not None:
        np.testing.assert_array_equal(out, contents)
    np.testing.assert_array_equal(bn.backward(good), dx)


def test_docstring_examples() -> None:
    result = doctest.testmod(rustbn.modules)
    assert result.attempted > 20
    assert result.failed == 0


@pytest.mark.parametrize("name", ["weight_grad", "bias_grad"])
def test_a_gradient_that_cannot_be_added_to_changes_nothing(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    read_only = np.zeros(4, np.float32)
    read_only.flags.writeable = False
    for broken in (np.zeros(3, np.float32), read_only, np.zeros(4, np.int64)):
        bn = rustbn.BatchNorm1d(4)
        bn(x)
        out = np.full_like(x, 7)
        setattr(bn, name, broken)
        with pytest.raises((ValueError, TypeError), match=name):
            bn.backward(x, out=out)
        other = bn.bias_grad if name == "weight_grad" else bn.weight_grad
        assert other is not None
        assert not other.any()
        assert np.all(out == 7)


# Conventions of other frameworks


def reference_update(running: Array, batch: Array, momentum: float) -> Array:
    """Return the moving average of Keras 3, Flax and ONNX: momentum weighs the old one."""
    return np.asarray(running * momentum + batch * (1.0 - momentum))


CONVENTIONS = [
    # eps and momentum unless one says otherwise, and the names of entries
    ("keras", 1e-3, 0.99, ("gamma", "beta", "moving_mean", "moving_variance")),
    ("flax", 1e-5, 0.99, ("scale", "bias", "mean", "var")),
    ("onnx", 1e-5, 0.9, ("scale", "B", "input_mean", "input_var")),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [None, 0.9, 0.25])
@pytest.mark.parametrize(("convention", "eps", "default", "names"), CONVENTIONS)
def test_training_continues_as_in_the_framework(
    convention: str,
    eps: float,
    default: float,
    names: tuple[str, ...],
    momentum: float | None,
    dtype: Any,
) -> None:
    given: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    bn: Any = BatchNorm2d(5, convention=convention, dtype=dtype, **given)
    decay = default if momentum is None else momentum
    assert (bn.eps, bn.momentum, bn.convention) == (eps, decay, convention)
    randomize(bn)
    gamma, beta, mean, var = (bn.state_dict()[name].astype(np.float64) for name in names)

    for step in range(4):
        x = data((3, 5, 2, 2), dtype, seed=step)
        exact = x.astype(np.float64)
        batch_mean, batch_var = exact.mean(axis=(0, 2, 3)), exact.var(axis=(0, 2, 3))  # biased
        mean = reference_update(mean, batch_mean, decay)
        var = reference_update(var, batch_var, decay)
        xhat = (exact - per_channel(batch_mean, x)) / np.sqrt(per_channel(batch_var, x) + eps)
        assert_close(bn(x), xhat * per_channel(gamma, x) + per_channel(beta, x))
        assert_close(bn.running_mean, mean, ulps=4)
        assert_close(bn.running_var, var, ulps=4)
        assert bn.num_batches_tracked == 3 + step + 1

    x = data((3, 5, 2, 2), dtype, seed=9)
    xhat = (x - per_channel(mean, x)) / np.sqrt(per_channel(var, x) + eps)
    assert_close(bn.eval()(x), xhat * per_channel(gamma, x) + per_channel(beta, x))


@pytest.mark.parametrize(("convention", "eps", "default", "names"), CONVENTIONS)
def test_state_under_the_frameworks_names(
    convention: str, eps: float, default: float, names: tuple[str, ...]
) -> None:
    bn, other = (BatchNorm(5, convention=convention) for _ in range(2))
    state = randomize(bn).state_dict()
    assert tuple(state) == names
    for name, ours in zip(names, ("weight", "bias", "running_mean", "running_var"), strict=True):
        np.testing.assert_array_equal(state[name], getattr(bn, ours))
    assert other.load_state_dict({f"bn/{k}": v for k, v in state.items()}, prefix="bn/") == ([], [])
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    assert other.num_batches_tracked == 0
    with pytest.raises(KeyError, match=names[3]):
        other.load_state_dict(BatchNorm(5).state_dict())


def test_the_convention_of_pytorch_is_the_default() -> None:
    assert repr(BatchNorm(5, convention="torch")) == repr(BatchNorm(5))
    bn = BatchNorm(5)
    assert (bn.eps, bn.momentum, bn.convention) == (1e-5, 0.1, "torch")
    assert type(bn.eps) is type(bn.momentum) is float
    assert repr(BatchNorm(5, convention="keras")).endswith(", convention='keras')")


def test_what_is_given_is_kept_even_where_it_is_a_default_of_pytorch() -> None:
    bn = BatchNorm(5, 1e-5, 0.1, convention="keras")
    assert (bn.eps, bn.momentum) == (1e-5, 0.1)


def test_a_biased_update_refused_changes_nothing() -> None:
    bn: Any = randomize(BatchNorm(5, convention="keras"))
    for name in ("running_mean", "running_var"):
        getattr(bn, name).flags.writeable = False
        before, out = snapshot(bn), np.full((8, 5), 7, np.float32)
        with pytest.raises(ValueError, match=name):
            bn(data((8, 5)), out=out)
        assert snapshot(bn) == before
        assert np.all(out == 7)
        getattr(bn, name).flags.writeable = True
    bn.momentum = "0.9"
    with pytest.raises(TypeError, match="momentum must be a real number, got str"):
        bn(data((8, 5)))


def test_a_biased_average_over_all_batches_and_over_none() -> None:
    bn: Any = BatchNorm(5, momentum=None, convention="keras", dtype=np.float64)
    batches = [data((6, 5), np.float64, seed) for seed in range(3)]
    for batch in batches:
        bn(batch)
    assert_close(bn.running_var, np.mean([batch.var(axis=0) for batch in batches], axis=0))
    before = bn.running_var.copy()
    bn(batches[0][:0])
    np.testing.assert_array_equal(bn.running_var, before)
    assert bn.num_batches_tracked == 4


def test_unknown_convention() -> None:
    with pytest.raises(ValueError, match=r"convention must be one of 'torch', .*got 'caffe'"):
        BatchNorm(5, convention="caffe")
    with pytest.raises(TypeError, match="convention must be a str, got NoneType"):
        BatchNorm(5, convention=None)  # type: ignore[arg-type]


def test_load_bfloat16() -> None:
    bn: Any = BatchNorm(3, track_running_stats=False)
    weight = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16)
    bn.load_state_dict({"weight": weight, "bias": weight})
    np.testing.assert_array_equal(bn.weight, [1.5, -2.0, 0.25])


def test_bfloat16_state_through_npz() -> None:
    bn, loaded = (BatchNorm(5, dtype=ml_dtypes.bfloat16) for _ in range(2))
    file = io.BytesIO()
    state = randomize(bn).state_dict()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file) as archive:
        assert archive["weight"].dtype == "V2"
        loaded.load_state_dict(archive)
        with pytest.raises(TypeError, match=r"weight must have a floating dtype, got \|V2"):
            BatchNorm(5).load_state_dict(archive)
    structured = state | {"bias": np.zeros(5, [("a", "u1"), ("b", "u1")])}
    with pytest.raises(TypeError, match="bias must have a floating dtype"):
        loaded.load_state_dict(structured)
    assert loaded.num_batches_tracked == 3
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(loaded, name).tobytes() == getattr(bn, name).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_load_tensors_of_bfloat16(dtype: Any) -> None:
    reference: Any = torch.nn.BatchNorm1d(5)
    reference(torch.from_numpy(data((8, 5))))
    with torch.no_grad():
        reference.weight.copy_(torch.from_numpy(data((1, 5))[0]))
    reference = reference.bfloat16()
    parameters = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    for state in (reference.state_dict(), parameters):  # detached, and as they are
        bn: Any = BatchNorm1d(5, dtype=dtype)
        assert bn.load_state_dict(state) == ([], [])
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected = getattr(reference, name).detach().double().numpy()
            np.testing.assert_array_equal(getattr(bn, name).astype(np.float64), expected)
        assert bn.num_batches_tracked == 1


def test_examples_of_the_conventions() -> None:
    result = doctest.testmod(rustbn.conventions)
    assert result.attempted > 0
    assert result.failed == 0
