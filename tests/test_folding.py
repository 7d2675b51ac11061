"""Folding: the folded layer gives what the layer and its batch norm give, against PyTorch."""

from __future__ import annotations

import doctest
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rustbn
import torch
from numpy.exceptions import AxisError
from numpy.typing import NDArray
from rustbn import Affine, folding

Array = NDArray[Any]
untyped: Any = folding  # for calls with wrong types

CONVOLUTIONS = [
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
]
TRANSPOSED = [
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
]
GROUPS = [
    pytest.param(6, 8, 1, id="dense"),
    pytest.param(6, 8, 2, id="grouped"),
    pytest.param(6, 6, 6, id="depthwise"),
    pytest.param(4, 12, 4, id="depthwise-multiplied"),
]


def some_affine(channels: int, seed: int = 0) -> Affine:
    rng = np.random.default_rng(seed)
    mean, scale, bias = rng.normal(size=(3, channels)) * [[3.0], [2.0], [1.0]]
    return Affine(mean, scale, bias)


def without_shift(channels: int) -> Affine:
    """Return an affine that sends zero to zero, exactly."""
    scale = np.arange(1.0, channels + 1)
    return Affine(np.full(channels, 2.0), scale, 2.0 * scale)


def formula(affine: Affine, x: Array) -> Array:
    """(x - mean) * scale + bias along axis 1, in float64, without rustbn."""
    mean, scale, bias = (
        v.reshape((-1,) + (1,) * (x.ndim - 2)) for v in (affine.mean, affine.scale, affine.bias)
    )
    return np.asarray((x.astype(np.float64) - mean) * scale + bias)


def torch_call(function: Any, x: Array, weight: Array, bias: Array | None, **options: Any) -> Array:
    tensors = [None if a is None else torch.from_numpy(np.array(a)) for a in (x, weight, bias)]
    return np.asarray(function(*tensors, **options))


def assert_equal_in_float64(actual: Array, expected: Array) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * scale)


# After a layer


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_into_linear(axis: int, with_bias: bool) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    bias = rng.normal(size=3) if with_bias else None
    affine = some_affine(3)
    expected = formula(affine, torch_call(torch.nn.functional.linear, x, weight, bias))

    given = weight if axis in (0, -2) else weight.T.copy()
    folded, folded_bias = affine.fold_into_linear(given, bias, axis=axis)
    assert folded.shape == given.shape
    folded = folded if axis in (0, -2) else folded.T
    actual = torch_call(torch.nn.functional.linear, x, folded, folded_bias)
    assert_equal_in_float64(actual, expected)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), GROUPS)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_into_conv(
    transposed: bool, dims: int, inputs: int, outputs: int, groups: int, with_bias: bool
) -> None:
    rng = np.random.default_rng(2)
    whole, other = (inputs, outputs) if transposed else (outputs, inputs)
    weight = rng.normal(size=(whole, other // groups, *(3, 2, 3)[:dims]))
    bias = rng.normal(size=outputs) if with_bias else None
    x = rng.normal(size=(2, inputs, *(6, 5, 4)[:dims]))
    convolve = (TRANSPOSED if transposed else CONVOLUTIONS)[dims - 1]
    options: dict[str, Any] = {"padding": 1, "stride": 2, "groups": groups}
    affine = some_affine(outputs)

    expected = formula(affine, torch_call(convolve, x, weight, bias, **options))
    folded = affine.fold_into_conv(weight, bias, transposed=transposed, groups=groups)
    assert_equal_in_float64(torch_call(convolve, x, *folded, **options), expected)

    # The same with the channels last, where the outputs stay within a group or whole.
    layout = "HWOI" if transposed else "HWIO"
    moved = np.moveaxis(weight, [0, 1], [-1, -2])
    in_layout = folding.fold_into_conv(
        affine, moved, bias, transposed=transposed, groups=groups, layout=layout
    )
    np.testing.assert_array_equal(np.moveaxis(in_layout[0], [-1, -2], [0, 1]), folded[0])
    np.testing.assert_array_equal(in_layout[1], folded[1])


def test_keras_depthwise_layout() -> None:
    rng = np.random.default_rng(3)
    kernel, affine = rng.normal(size=(3, 3, 4, 2)), some_affine(8)  # inputs, multiplier
    folded, bias = folding.fold_into_conv(affine, kernel, layout="HWCM", groups=4)
    x = rng.normal(size=(2, 4, 6, 5))

    def convolve(kernel: Array, bias: Array | None = None) -> Array:
        # Output c * multiplier + m is channel c with multiplier m.
        weight = kernel.transpose(2, 3, 0, 1).reshape(8, 1, 3, 3)
        return torch_call(torch.nn.functional.conv2d, x, weight, bias, groups=4)

    assert_equal_in_float64(convolve(folded, bias), formula(affine, convolve(kernel)))


def test_flax_transposed_layout() -> None:
    weight, affine = np.random.default_rng(3).normal(size=(4, 6, 3, 3)), some_affine(6)
    expected, bias = affine.fold_into_conv(weight, transposed=True)  # inputs, outputs, ...
    kernel = weight.transpose(2, 3, 0, 1)
    folded = folding.fold_into_conv(affine, kernel, transposed=True, layout="HWIO")
    np.testing.assert_array_equal(folded[0], expected.transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(folded[1], bias)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), GROUPS[1:])
def test_pytorch_itself_does_not_fold_grouped_transposed(
    inputs: int, outputs: int, groups: int
) -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    rng = np.random.default_rng(4)
    weight, x = (
        rng.normal(size=(inputs, outputs // groups, 3, 3)),
        rng.normal(size=(1, inputs, 5, 5)),
    )
    affine = some_affine(outputs)
    conv = torch.nn.functional.conv_transpose2d
    expected = formula(affine, torch_call(conv, x, weight, None, groups=groups))
    folded = affine.fold_into_conv(weight, transposed=True, groups=groups)
    assert_equal_in_float64(torch_call(conv, x, *folded, groups=groups), expected)

    mean, scale, bias = map(
        torch.from_numpy, map(np.array, (affine.mean, affine.scale, affine.bias))
    )
    try:  # variance 1, eps 0: weight is scale
        theirs = fuse_conv_bn_weights(
            torch.from_numpy(weight), None, mean, torch.ones(outputs), 0.0, scale, bias, True
        )
    except RuntimeError:
        return  # the shapes do not broadcast
    assert theirs[0].shape != weight.shape


@pytest.mark.parametrize("affine", [True, False])
def test_of_a_batch_norm_of_pytorch(affine: bool) -> None:
    conv, norm = torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.BatchNorm2d(5, affine=affine)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(5, 3, 3, 3, generator=generator))
        for vector in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if vector is not None:
                vector.copy_(torch.rand(5, generator=generator) + 0.5)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    expected = norm.eval()(conv(x)).detach().numpy()

    bn = rustbn.BatchNorm2d(5, affine=affine)
    bn.load_state_dict(norm.state_dict())
    folded = bn.affine_transform().fold_into_conv(conv.weight)  # a tensor that requires grad
    assert folded[0].dtype == folded[1].dtype == np.float32
    actual = torch_call(torch.nn.functional.conv2d, x.numpy(), *folded)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Before a layer


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_before_linear(axis: int, with_bias: bool) -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    bias = rng.normal(size=3) if with_bias else None
    affine = some_affine(5)
    expected = torch_call(torch.nn.functional.linear, formula(affine, x), weight, bias)
    folded, folded_bias = folding.fold_before_linear(
        affine, weight.T if axis else weight, bias, axis=axis
    )
    folded = folded.T if axis else folded
    assert_equal_in_float64(
        torch_call(torch.nn.functional.linear, x, folded, folded_bias), expected
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("padding", [0, (0, 0), "valid"])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), GROUPS)
def test_before_conv_without_padding(
    inputs: int, outputs: int, groups: int, padding: Any, with_bias: bool
) -> None:
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(outputs, inputs // groups, 3, 2))
    bias = rng.normal(size=outputs) if with_bias else None
    x, affine = rng.normal(size=(2, inputs, 6, 5)), some_affine(inputs)
    conv = torch.nn.functional.conv2d
    options: dict[str, Any] = {"groups": groups, "stride": 2, "padding": padding}
    expected = torch_call(conv, formula(affine, x), weight, bias, **options)
    folded = folding.fold_before_conv(affine, weight, bias, padding=padding, groups=groups)
    assert_equal_in_float64(torch_call(conv, x, *folded, **options), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_before_conv_padded_with_copies(mode: str) -> None:
    rng = np.random.default_rng(7)
    weight, x = rng.normal(size=(3, 4, 3, 3)), rng.normal(size=(2, 4, 6, 5))
    affine = some_affine(4)

    def convolve(x: Array, *parameters: Any) -> Array:
        padded = torch.nn.functional.pad(torch.from_numpy(x), (1, 1, 1, 1), mode=mode).numpy()
        return torch_call(torch.nn.functional.conv2d, padded, *parameters)

    folded = folding.fold_before_conv(affine, weight, padding=1, padding_mode=mode)
    assert_equal_in_float64(convolve(x, *folded), convolve(formula(affine, x), weight, None))


@pytest.mark.parametrize("padding", [1, (0, 1), "same"])
def test_before_conv_padded_with_zeros_is_refused(padding: Any) -> None:
    weight = np.random.default_rng(8).normal(size=(3, 4, 3, 3))
    with pytest.raises(ValueError, match="padded zeros lie behind the batch norm"):
        folding.fold_before_conv(some_affine(4), weight, padding=padding)


def test_before_conv_what_the_refusal_advises_is_exact() -> None:
    rng = np.random.default_rng(9)
    weight, x, affine = rng.normal(size=(3, 4, 3, 3)), rng.normal(size=(2, 4, 6, 5)), some_affine(4)
    conv = torch.nn.functional.conv2d
    expected = torch_call(conv, formula(affine, x), weight, None, padding=1)
    padded = np.empty((2, 4, 8, 7))
    padded[...] = (affine.mean - affine.bias / affine.scale)[:, None, None]
    padded[:, :, 1:-1, 1:-1] = x
    folded = folding.fold_before_conv(affine, weight, padding=0)
    assert_equal_in_float64(torch_call(conv, padded, *folded), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_before_conv_without_a_shift_folds_whatever_the_padding(transposed: bool) -> None:
    rng = np.random.default_rng(10)
    weight, x = rng.normal(size=(4, 4, 3, 3)), rng.normal(size=(2, 4, 6, 5))
    affine = without_shift(4)
    conv = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    expected = torch_call(conv, formula(affine, x), weight, None, padding=1)
    folded = folding.fold_before_conv(affine, weight, padding=1, transposed=transposed)
    assert_equal_in_float64(torch_call(conv, x, *folded, padding=1), expected)


def test_before_conv_transposed_with_a_shift_is_refused() -> None:
    weight = np.ones((4, 3, 3, 3))
    with pytest.raises(
        ValueError, match="each output of a transposed convolution meets other taps"
    ):
        folding.fold_before_conv(some_affine(4), weight, padding=0, transposed=True)


def test_before_pointwise_same_padding_pads_nothing() -> None:
    weight = np.ones((3, 4, 1, 1))
    same = folding.fold_before_conv(some_affine(4), weight, padding="same")
    valid = folding.fold_before_conv(some_affine(4), weight, padding=0)
    np.testing.assert_array_equal(same[1], valid[1])


# Two batch norms


def test_compose() -> None:
    first, second = some_affine(5, seed=1), some_affine(5, seed=2)
    x = np.random.default_rng(11).normal(size=(6, 5))
    both = folding.compose(first, second)
    assert_equal_in_float64(both(x), formula(second, formula(first, x)))
    assert both.mean.tolist() == first.mean.tolist()


# Dtypes and memory


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ">f4"],
    ids=["float64", "float32", "float16", "bfloat16", "big-endian"],
)
def test_folded_in_float64_and_cast_once(dtype: Any) -> None:
    rng = np.random.default_rng(12)
    weight, bias = (rng.normal(size=s).astype(dtype) for s in [(5, 4, 3, 3), (5,)])
    affine = some_affine(5)
    folded, folded_bias = affine.fold_into_conv(weight, bias)
    scale = affine.scale.reshape(5, 1, 1, 1)
    shift = (bias.astype(np.float64) - affine.mean) * affine.scale + affine.bias
    native = np.dtype(dtype).newbyteorder("=")
    assert folded.dtype == folded_bias.dtype == native
    np.testing.assert_array_equal(folded, (weight.astype(np.float64) * scale).astype(native))
    np.testing.assert_array_equal(folded_bias, shift.astype(native))


def test_the_dtype_is_the_weights() -> None:
    folded = some_affine(3).fold_into_linear(np.ones((3, 2), np.float32), np.ones(3, np.float64))
    assert folded[0].dtype == folded[1].dtype == np.float32


def test_memory_order_is_kept_and_inputs_are_not_written() -> None:
    rng = np.random.default_rng(13)
    weight = np.asfortranarray(rng.normal(size=(3, 4, 2, 2)))
    bias = rng.normal(size=3)
    for array in (weight, bias):
        array.flags.writeable = False
    before = weight.tobytes(), bias.tobytes()
    folded, folded_bias = some_affine(3).fold_into_conv(weight, bias)
    assert folded.flags.f_contiguous
    assert not np.shares_memory(folded, weight)
    assert not np.shares_memory(folded_bias, bias)
    assert (weight.tobytes(), bias.tobytes()) == before


def test_identity_changes_no_bit() -> None:
    weight, bias = np.random.default_rng(14).normal(size=(3, 4)), np.arange(3.0)
    identity = Affine(np.zeros(3), np.ones(3), np.zeros(3))
    folded = identity.fold_into_linear(weight, bias)
    assert [a.tobytes() for a in folded] == [weight.tobytes(), bias.tobytes()]


def test_methods_are_the_functions() -> None:
    weight, bias, affine = np.ones((3, 4, 2)), np.arange(3.0), some_affine(3)
    for method, function in [
        (affine.fold_into_conv(weight, bias), folding.fold_into_conv(affine, weight, bias)),
        (
            affine.fold_into_linear(weight[..., 0], bias),
            folding.fold_into_linear(affine, weight[..., 0], bias),
        ),
    ]:
        for ours, theirs in zip(method, function, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_more_than_the_dtype_holds_is_refused() -> None:
    affine = Affine(np.zeros(2), np.array([1.0, 1e5]), np.zeros(2))
    with pytest.raises(ValueError, match=r"holds the folded weight, of magnitude up to 1e\+05"):
        affine.fold_into_linear(np.ones((2, 2), np.float16))
    affine = Affine(np.zeros(2), np.ones(2), np.array([1.0, 1e6]))
    with pytest.raises(ValueError, match="holds the folded bias"):
        affine.fold_into_linear(np.ones((2, 2), np.float16))
    folded, _ = affine.fold_into_linear(np.full((2, 2), np.inf, np.float32))
    assert np.all(np.isinf(folded))  # as it came


# Errors


CONV = np.ones((6, 4, 3, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: a.fold_into_conv(CONV[:5]), ValueError, "weight must have 6 outputs"),
        (lambda a: a.fold_into_conv(CONV, np.ones(5)), ValueError, r"bias must have shape \(6,\)"),
        (lambda a: a.fold_into_conv(CONV, np.ones(6, int)), TypeError, "bias must have dtype"),
        (lambda a: a.fold_into_conv(CONV.astype(complex)), TypeError, "weight must have dtype"),
        (lambda a: a.fold_into_conv(None), TypeError, "weight must have dtype"),
        (lambda a: a.fold_into_conv(CONV[..., 0, 0]), ValueError, "3 or more dimensions"),
        (lambda a: a.fold_into_conv(CONV, groups=4), ValueError, "groups must divide the 6"),
        (lambda a: a.fold_into_conv(CONV, groups=0), ValueError, "groups must divide"),
        (lambda a: a.fold_into_conv(CONV, groups=1.5), TypeError, "groups must be a whole number"),
        (lambda a: a.fold_into_conv(CONV, transposed=1), TypeError, "transposed must be a bool"),
        (
            lambda a: a.fold_into_conv(CONV, transposed=True, groups=2),
            ValueError,
            r"weight must have 6 outputs.*got 8.*in 2 groups",
        ),
        (
            lambda a: untyped.fold_into_conv(a, CONV, groups=1.0),
            TypeError,
            "groups must be an int",
        ),
        (lambda a: folding.fold_into_conv(a, CONV, layout="OHWI"), ValueError, "layout must be"),
        (
            lambda a: folding.fold_into_conv(a, CONV, transposed=True, layout="OIHW"),
            ValueError,
            "layout must be one of IOHW, HWIO, HWOI for a transposed",
        ),
        (
            lambda a: folding.fold_into_conv(
                a, np.ones((3, 3, 4, 6)), transposed=True, groups=2, layout="HWIO"
            ),
            ValueError,
            "groups must be 1 for a transposed",
        ),
        (lambda a: a.fold_into_linear(CONV), ValueError, "weight must have 2 dimensions"),
        (lambda a: a.fold_into_linear(np.ones((6, 2)), axis=2), AxisError, "axis 2"),
        (lambda a: a.fold_into_linear(np.ones((6, 2)), axis=1), ValueError, "6 outputs"),
        (lambda a: a.fold_into_linear(np.ones((6, 2)), axis=None), TypeError, "axis must be"),
        (
            lambda a: untyped.fold_into_linear(a, np.ones((6, 2)), axis=0.0),
            TypeError,
            "axis must be an int, got float",
        ),
        (
            lambda a: folding.fold_before_linear(a, np.ones((6, 2))),
            ValueError,
            "weight must have 6 inputs",
        ),
        (lambda a: untyped.fold_into_linear(1, np.ones((6, 2))), TypeError, "affine must be"),
        *(
            (call, TypeError, "^affine must be an Affine, got ndarray$")  # they changed places
            for call in (
                lambda a: untyped.fold_into_linear(np.ones((6, 2)), a),
                lambda a: untyped.fold_before_linear(np.ones((2, 6)), a),
                lambda a: untyped.fold_into_conv(CONV, a),
                lambda a: untyped.fold_before_conv(CONV, a, padding=0),
            )
        ),
        (lambda a: untyped.compose(a, 1), TypeError, "second must be an Affine, got int"),
        (lambda a: folding.compose(a, some_affine(5)), ValueError, "second must have 6 channels"),
        (
            lambda a: folding.fold_before_conv(a, np.ones((2, 6, 3)), padding="full"),
            ValueError,
            "padding must be",
        ),
        (
            lambda a: folding.fold_before_conv(a, np.ones((2, 6, 3)), padding=-1),
            ValueError,
            "padding must be",
        ),
        (
            lambda a: untyped.fold_before_conv(a, np.ones((2, 6, 3)), padding=[[1], [1, 2]]),
            ValueError,
            "padding must be",
        ),
        (
            lambda a: folding.fold_before_conv(
                a, np.ones((2, 6, 3)), padding=0, padding_mode="constant"
            ),
            ValueError,
            "padding_mode must be",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(some_affine(6))


def test_bfloat16_of_others() -> None:
    """A tensor, which NumPy has no dtype for, and the voids that NumPy's files make of an array."""
    affine, weight = some_affine(6), CONV.astype(ml_dtypes.bfloat16)
    expected, expected_bias = folding.fold_into_conv(affine, weight)
    folded, bias = folding.fold_into_conv(affine, weight.view("V2"))
    assert folded.dtype == bias.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(bias, expected_bias)
    tensor = torch.from_numpy(weight.astype(np.float32)).bfloat16().requires_grad_()
    folded, bias = folding.fold_into_conv(affine, tensor)
    assert folded.dtype == bias.dtype == np.float32
    np.testing.assert_array_equal(folded.astype(ml_dtypes.bfloat16), expected)


def test_docstring_examples() -> None:
    result = doctest.testmod(folding)
    assert result.attempted > 10
    assert result.failed == 0
