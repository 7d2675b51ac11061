"""Batch renormalization against its definition, in NumPy and in PyTorch's autograd."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
import torch
from judge import assert_backward, assert_forward, assert_same_bits, present
from oracle import Array
from rustbn import BatchNorm
from test_gradcheck import central_differences

every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)

# Bounds that bind nothing, something, and everything; those of batch normalization.
BOUNDS = [(np.inf, np.inf), (1e6, 1e6), (1.5, 1.0), (3.0, 5.0), (1.0, 1.0), (2.0, 0.0)]
every_bounds = pytest.mark.parametrize("bounds", BOUNDS, ids=str)


def corrections(
    p: cases.Problem, bounds: tuple[float, float], eps: float = 1e-5, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return r and d (Ioffe 2017, algorithm 1), in the precision of the oracle."""
    count, mean, m2 = oracle.moments(p.x, p.axis, mask=mask)
    work = mean.dtype.type
    running_mean, running_var = p.running_mean.astype(work), p.running_var.astype(work)
    sigma = np.sqrt(running_var + work(eps))
    r_max, d_max = bounds
    r = np.clip(np.sqrt(m2 / count + work(eps)) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - running_mean) / sigma, -d_max, d_max)


def forward(
    p: cases.Problem, bounds: tuple[float, float] | None, **options: Any
) -> tuple[Array, rustbn.Context]:
    return rustbn.batch_norm_forward(
        p.x, *p.copied_vectors(), axis=p.axis, renorm=bounds, **options
    )


@every_dtype
@every_bounds
def test_every_result_agrees_with_the_oracle(
    bounds: tuple[float, float], dtype: npt.DTypeLike
) -> None:
    """With r and d as constants it is batch norm of other parameters, forward and backward."""
    bound = [0, 0]
    for shape, axis in cases.ARRANGEMENTS[1::2]:
        p = cases.problem(shape, axis, dtype)
        for mask in (None, cases.mask(shape, axis)):
            r, d = corrections(p, bounds, mask=mask)
            bound[0] += np.isin(r, (bounds[0], 1 / bounds[0])).sum()
            bound[1] += np.isin(d, (bounds[1], -bounds[1])).sum()
            weight, bias = r * p.weight.astype(r.dtype), d * p.weight.astype(r.dtype)
            bias += p.bias.astype(r.dtype)
            exact = oracle.train(p.x, weight, bias, axis=axis, mask=mask)
            y, ctx = forward(p, bounds, mask=mask)
            assert_forward(y, exact, f"y {shape}")
            called = rustbn.batch_norm(
                p.x, *p.copied_vectors(), True, axis=axis, renorm=bounds, mask=mask
            )
            assert_same_bits(called, y)
            np.testing.assert_allclose(
                present(ctx.affine).bias, bias.astype(float), rtol=1e-12, atol=1e-12
            )

            gradients = rustbn.batch_norm_backward(p.dy, ctx)
            exact_gradients = oracle.train_backward(p.dy, p.x, weight, axis=axis, mask=mask)
            assert_backward(gradients.dx, None, gradients.dbias, exact_gradients, f"{shape}")
            dweight = r * exact_gradients.dweight + d * exact_gradients.dbias
            terms = r * exact_gradients.dweight_terms + abs(d) * exact_gradients.dbias_terms
            wide = cases.parameter_dtype(dtype)
            error = abs(present(gradients.dweight) - dweight)
            assert (error <= np.finfo(wide).eps * abs(dweight) + 1e-13 * terms).all()
    if bounds == (1.5, 1.0):
        assert min(bound) > 10
    if bounds == (1e6, 1e6):
        assert max(bound) == 0


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
@every_bounds
def test_every_result_agrees_with_autograd(
    bounds: tuple[float, float], with_residual: bool, activation: oracle.Activation
) -> None:
    p = cases.problem((5, 6, 4, 3), 1, np.float64)
    mask = cases.mask(p.x.shape)
    residual = cases.problem(p.x.shape, 1, np.float64, seed=1).x if with_residual else None
    given = (p.x, p.weight, p.bias) if residual is None else (p.x, p.weight, p.bias, residual)
    inputs = [torch.from_numpy(v.copy()).requires_grad_() for v in given]
    x, counts = inputs[0], torch.from_numpy(np.broadcast_to(mask, p.x.shape).astype(float))
    others, n = (0, 2, 3), mask.sum()
    mean = (x * counts).sum(others) / n
    var = ((x - mean[:, None, None]) ** 2 * counts).sum(others) / n
    std = torch.sqrt(var + 1e-5)
    running_mean, running_var = (torch.from_numpy(v) for v in (p.running_mean, p.running_var))
    sigma = torch.sqrt(running_var + 1e-5)
    r = (std.detach() / sigma).clamp(1 / bounds[0], bounds[0])
    d = ((mean.detach() - running_mean) / sigma).clamp(-bounds[1], bounds[1])
    mean, std, r, d, weight, bias = (
        v[:, None, None] for v in (mean, std, r, d, inputs[1], inputs[2])
    )
    y = ((x - mean) / std * r + d) * weight + bias
    if residual is not None:
        y = y + inputs[3]
    if activation is not None:
        slope = activation[1] if isinstance(activation, tuple) else 0.0
        y = torch.where(y > 0, y, y * slope)
    expected = torch.autograd.grad(y, inputs, torch.from_numpy(p.dy))

    options: dict[str, Any] = {"activation": activation, "residual": residual, "mask": mask}
    y_, ctx = forward(p, bounds, **options)
    np.testing.assert_allclose(y_, y.detach(), rtol=0, atol=1e-12)
    for ours, theirs in zip(rustbn.batch_norm_backward(p.dy, ctx), expected, strict=False):
        scale = theirs.abs().max().item()
        np.testing.assert_allclose(present(ours), theirs, rtol=0, atol=1e-13 * scale)


def test_gradients_are_slopes_where_both_bounds_bind() -> None:
    """There r and d are constants indeed, so nothing has to be detached."""
    p = cases.problem((6, 3, 2), 1, np.float64)
    p.running_mean += 400
    p.running_var *= 1e4
    bounds = (1.25, 0.5)
    r, d = corrections(p, bounds)
    assert (r == 1 / 1.25).all()
    assert (d == -0.5).all()

    def loss(x: Array, weight: Array, bias: Array) -> float:
        stats = p.running_mean.copy(), p.running_var.copy()
        y = rustbn.batch_norm(x, *stats, weight, bias, True, renorm=bounds)
        return float((y * p.dy).sum())

    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, forward(p, bounds)[1])
    for name, gradient, slope in (
        ("dx", dx, central_differences(lambda x: loss(x, p.weight, p.bias), p.x)),
        ("dweight", dweight, central_differences(lambda w: loss(p.x, w, p.bias), p.weight)),
        ("dbias", dbias, central_differences(lambda b: loss(p.x, p.weight, b), p.bias)),
    ):
        np.testing.assert_allclose(present(gradient), slope, rtol=1e-7, atol=1e-7, err_msg=name)


@every_dtype
def test_without_bounds_it_is_inference(dtype: npt.DTypeLike) -> None:
    """The corrections then undo the batch's statistics (Ioffe 2017, section 3)."""
    for shape, axis in cases.ARRANGEMENTS[1::2]:
        p = cases.problem(shape, axis, dtype)
        y, _ = forward(p, (np.inf, np.inf))
        exact = oracle.normalise(p.x, *p.vectors, axis=axis)
        assert_forward(y, exact)


@every_dtype
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("more", [{}, {"mask": True}, {"group_size": 2}], ids=str)
def test_narrowest_bounds_give_the_bits_of_batch_norm(
    more: dict[str, Any], activation: oracle.Activation, dtype: npt.DTypeLike
) -> None:
    for shape, axis in cases.ARRANGEMENTS:
        if "group_size" in more and len(shape) == 2:
            continue  # a group of one value, maybe
        p = cases.problem(shape, axis, dtype)
        options = more | ({"mask": cases.mask(shape, axis)} if "mask" in more else {})
        if "group_size" in more and shape[0] % 2 and np.prod(shape[1:]) == shape[axis]:
            continue
        found = []
        for renorm in ((1.0, 0.0), None):
            mean, var, weight, bias = p.copied_vectors()
            y, ctx = rustbn.batch_norm_forward(
                p.x, mean, var, weight, bias, axis=axis, activation=activation, residual=p.dy,
                renorm=renorm, **options,
            )  # fmt: skip
            found.append([y, mean, var, *rustbn.batch_norm_backward(p.dy, ctx)])
        for a, b in zip(*found, strict=True):
            assert_same_bits(a, b, f"{shape}")


@every_dtype
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_absent_weight_is_one_and_absent_bias_is_zero(
    with_bias: bool, with_weight: bool, dtype: npt.DTypeLike
) -> None:
    p = cases.problem((6, 4, 5), 1, dtype)
    p.weight = p.weight if with_weight else np.ones_like(p.weight)
    p.bias = p.bias if with_bias else np.zeros_like(p.bias)
    y, ctx = forward(p, (1.5, 1.0))
    whole = rustbn.batch_norm_backward(p.dy, ctx)
    mean, var, _, _ = p.copied_vectors()
    weight, bias = p.weight if with_weight else None, p.bias if with_bias else None
    y_, ctx_ = rustbn.batch_norm_forward(p.x, mean, var, weight, bias, renorm=(1.5, 1.0))
    assert_same_bits(y_, y)
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(p.dy, ctx_)
    assert_same_bits(dx, whole.dx)
    assert_same_bits(dweight, whole.dweight if with_weight else None)
    assert_same_bits(dbias, whole.dbias if with_bias else None)


@every_dtype
def test_running_statistics_are_those_without(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 4, 5), 1, dtype)
    found = []
    for renorm in ((1.5, 1.0), None):
        mean, var = p.running_mean.copy(), p.running_var.copy()
        rustbn.batch_norm(p.x, mean, var, training=True, renorm=renorm)
        found.append((mean, var))
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)
    # In evaluation there is nothing to renormalise.
    y = rustbn.batch_norm(p.x, *p.vectors)
    assert_same_bits(rustbn.batch_norm(p.x, *p.vectors, renorm=(1.5, 1.0)), y)


def test_backward_has_the_corrections_of_forward() -> None:
    """Running statistics move in the forward itself, and may move again before backward."""
    p = cases.problem((6, 4, 5))
    mean, var, weight, bias = p.copied_vectors()
    _, ctx = rustbn.batch_norm_forward(p.x, mean, var, weight, bias, renorm=(1.5, 1.0))
    expected = rustbn.batch_norm_backward(p.dy, ctx)
    mean[:], var[:], weight[:] = 100, 1e4, 0
    for a, b in zip(rustbn.batch_norm_backward(p.dy, ctx), expected, strict=True):
        assert_same_bits(a, b)


def test_out_and_needs_change_no_bit() -> None:
    p = cases.problem((6, 4, 5))
    y, ctx = forward(p, (1.5, 1.0), activation="relu")
    x = p.x.copy()
    options: dict[str, Any] = {"renorm": (1.5, 1.0), "activation": "relu", "out": x}
    assert rustbn.batch_norm(x, *p.copied_vectors(), True, **options) is x
    assert_same_bits(x, y)
    whole = rustbn.batch_norm_backward(p.dy, ctx)
    for needs in ("x", "weight", "bias"):
        some = rustbn.batch_norm_backward(p.dy, ctx, needs=(needs,))
        assert_same_bits(getattr(some, f"d{needs}"), getattr(whole, f"d{needs}"))


def test_groups_are_renormalised_toward_the_same_statistics() -> None:
    p = cases.problem((7, 4, 5))
    bounds = (1.25, 0.5)
    y, ctx = forward(p, bounds, group_size=3)
    dx = present(rustbn.batch_norm_backward(p.dy, ctx).dx)
    for start, stop in pairwise((0, 3, 6, 7)):
        part = copy.copy(p)
        part.x = p.x[start:stop]
        y_, ctx_ = forward(part, bounds)
        assert_same_bits(y[start:stop], y_)
        gradients = rustbn.batch_norm_backward(p.dy[start:stop], ctx_)
        assert_same_bits(dx[start:stop], gradients.dx)


def test_an_empty_batch() -> None:
    p = cases.problem((6, 4, 5))
    x = np.empty((0, 4, 5), np.float32)
    mean, var, weight, bias = p.copied_vectors()
    y, ctx = rustbn.batch_norm_forward(x, mean, var, weight, bias, renorm=(1.5, 1.0))
    assert y.shape == x.shape
    dx, dweight, dbias, _ = rustbn.batch_norm_backward(x, ctx)
    assert present(dx).shape == x.shape
    assert present(dweight).tolist() == present(dbias).tolist() == [0.0] * 4
    assert_same_bits(mean, p.running_mean)
    assert_same_bits(var, p.running_var)


@every_dtype
def test_a_nan_spoils_its_channel_alone(dtype: npt.DTypeLike) -> None:
    p = cases.problem((6, 4, 5), 1, dtype)
    p.x[2, 1, 3] = np.nan
    y, ctx = forward(p, (1.5, 1.0))
    spoilt = np.broadcast_to((np.arange(4) == 1)[:, None], p.x.shape)
    assert (np.isnan(y) == spoilt).all()
    assert (np.isnan(present(rustbn.batch_norm_backward(p.dy, ctx).dx)) == spoilt).all()


# Modules.


def loaded(p: cases.Problem, **options: Any) -> BatchNorm:
    bn = BatchNorm(p.x.shape[1], dtype=p.x.dtype, **options)
    names = ("running_mean", "running_var", "weight", "bias")
    bn.load_state_dict(dict(zip(names, p.vectors, strict=True)))
    return bn


@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_a_module_renormalises_in_training_alone(convention: str) -> None:
    p = cases.problem((6, 4, 5))
    options: dict[str, Any] = {"eps": 1e-5, "momentum": 0.25, "convention": convention}
    bn, plain = (BatchNorm(4, renorm=renorm, **options) for renorm in ((1.5, 1.0), None))
    for module in (bn, plain):
        module.weight, module.bias = p.weight.copy(), p.bias.copy()
        module.running_mean, module.running_var = p.running_mean.copy(), p.running_var.copy()
    y, ctx = forward(p, (1.5, 1.0))
    assert_same_bits(bn(p.x), y)
    gradients = rustbn.batch_norm_backward(p.dy, ctx)
    assert_same_bits(bn.backward(p.dy), gradients.dx)
    assert_same_bits(bn.weight_grad, gradients.dweight)
    plain(p.x)
    for name, value in plain.state_dict().items():
        assert_same_bits(bn.state_dict()[name], value, name)
    for mode in ("freeze", "eval"):
        for module in (bn, plain):
            getattr(module, mode)()
        assert_same_bits(bn(p.x), plain(p.x), mode)


@pytest.mark.parametrize("on_nonfinite", ["propagate", "raise"])
def test_without_update_it_renormalises_and_nothing_moves(on_nonfinite: str) -> None:
    p = cases.problem((6, 4, 5))
    bn = loaded(p, renorm=(1.5, 1.0), on_nonfinite=on_nonfinite)
    before = bn.state_dict()
    y = bn(p.x, update=False)
    dx = bn.backward(p.dy)
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)
    twin = loaded(p, renorm=(1.5, 1.0))
    assert_same_bits(twin(p.x), y)
    assert_same_bits(twin.backward(p.dy), dx)


def test_bounds_may_change_as_training_goes_on() -> None:
    p = cases.problem((6, 4, 5))
    bn = loaded(p, renorm=(1.0, 0.0))
    assert_same_bits(bn(p.x, update=False), loaded(p)(p.x))
    bn.renorm = (3.0, 5.0)
    assert_same_bits(bn(p.x, update=False), forward(p, (3.0, 5.0))[0])
    bn.renorm = None
    assert_same_bits(bn(p.x, update=False), loaded(p)(p.x))
    bn.renorm = (0.5, 0.0)
    before = bn.state_dict()
    with pytest.raises(ValueError, match=r"^renorm must be an r_max of 1 or more"):
        bn(p.x)
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)


def test_population_statistics_do_not_feel_it() -> None:
    p = cases.problem((23, 4, 5))
    bn, plain = loaded(p, renorm=(1.5, 1.0)), loaded(p)
    for module in (bn, plain):
        rustbn.recompute_statistics([module], [p.x[:10], p.x[10:]], module)
    for name, value in plain.state_dict().items():
        assert_same_bits(bn.state_dict()[name], value, name)


def test_the_bounds_are_part_of_the_module() -> None:
    p = cases.problem((6, 4, 5))
    bn = loaded(p, renorm=(1.5, 1.0))
    assert "renorm=(1.5, 1.0)" in repr(bn)
    assert "renorm" not in repr(BatchNorm(4))
    for twin in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert twin.renorm == (1.5, 1.0)
        assert_same_bits(twin(p.x), bn(p.x, update=False))


@pytest.mark.parametrize("renorm", [(0.5, 1.0), (2.0, -1.0), (np.nan, 0.0)])
def test_bounds_out_of_range(renorm: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="renorm must be an r_max of 1 or more and a d_max of 0"):
        BatchNorm(4, renorm=renorm)


@pytest.mark.parametrize("renorm", [2.0, (2.0,), "3, 5", (1.0, "0")])
def test_bounds_that_are_none(renorm: Any) -> None:
    with pytest.raises(TypeError, match="renorm must be None or two real numbers"):
        BatchNorm(4, renorm=renorm)


def test_running_statistics_are_needed() -> None:
    with pytest.raises(ValueError, match="renorm must be None without track_running_stats"):
        BatchNorm(4, renorm=(1.5, 1.0), track_running_stats=False)
    bn = BatchNorm(4, renorm=(1.5, 1.0))
    x = cases.problem((6, 4, 5)).x
    bn.running_mean = bn.running_var = None
    for update in (True, False):
        with pytest.raises((ValueError, TypeError), match="running_mean"):
            bn(x, update=update)
