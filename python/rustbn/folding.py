"""Batch normalization folded into the linear map before it, after it, or another one.

At inference batch normalization is an affine map of each channel (:class:`rustbn.Affine`), and a
linear or convolutional layer next to it absorbs it. With ``y = (v - mean) * scale + shift`` per
channel ([1]_, algorithm 2)::

    after a layer     v = W x + b         W'[o, i] = scale[o] W[o, i]
                                          b'[o] = (b[o] - mean[o]) scale[o] + shift[o]
    before a layer    u = W y + b         W'[o, i] = W[o, i] scale[i]
                                          b'[o] = b[o] + sum(W[o, i] (shift[i] - mean[i] scale[i]))
    after another     mean1, scale1 scale2, (shift1 - mean2) scale2 + shift2

======================  =============================================  ========================
batch norm              after the layer                                before the layer
======================  =============================================  ========================
linear                  `fold_into_linear`                             `fold_before_linear`
convolution             `fold_into_conv`                               `fold_before_conv`, where
(1d, 2d, 3d, grouped,                                                  no zeros are padded
depthwise)
transposed convolution  `fold_into_conv` with ``transposed=True``      only without a shift
another batch norm      `compose`                                      `compose`
======================  =============================================  ========================

Everything is computed in float64 and cast once, to the dtype of the weight.

References
----------
.. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
   Reducing Internal Covariate Shift", ICML 2015, https://arxiv.org/abs/1502.03167
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import NDArray

from rustbn._arguments import as_floats, as_integer
from rustbn._rustbn import Affine

__all__ = [
    "compose",
    "fold_before_conv",
    "fold_before_linear",
    "fold_into_conv",
    "fold_into_linear",
]

_Array: TypeAlias = Any  # a floating NumPy array or an object with `__array__`, as a CPU tensor
_Folded: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
_Float64: TypeAlias = NDArray[np.float64]


class _Layout(NamedTuple):
    """Where the axes of a weight are."""

    outputs: int
    inputs: int
    outputs_within: bool  # whether it is the outputs, not the inputs, that count within a group
    ordinary: bool  # what kinds of convolution have it
    transposed: bool


# H and W stand for any number of spatial axes.
_LAYOUTS = {
    "OIHW": _Layout(0, 1, outputs_within=False, ordinary=True, transposed=False),
    "IOHW": _Layout(1, 0, outputs_within=True, ordinary=False, transposed=True),
    "HWIO": _Layout(-1, -2, outputs_within=False, ordinary=True, transposed=True),
    "HWOI": _Layout(-2, -1, outputs_within=True, ordinary=False, transposed=True),
    "HWCM": _Layout(-1, -2, outputs_within=True, ordinary=True, transposed=False),
}


def fold_into_linear(
    affine: Affine, weight: _Array, bias: _Array | None = None, *, axis: int = 0
) -> _Folded:
    """Fold a batch norm into the linear layer before it.

    Parameters
    ----------
    affine : Affine
        The batch norm, of as many channels as the layer has outputs.
    weight : array, shape (outputs, inputs)
        float64, float32, float16 or bfloat16 (a tensor of which counts as float32); (inputs,
        outputs) with ``axis=1``.
    bias : array, shape (outputs,), optional
        Zero where absent.
    axis : int, default 0
        Axis of `weight` along which its outputs lie: 0 in PyTorch, 1 in Keras and Flax.

    Returns
    -------
    weight, bias : numpy.ndarray
        Of the layer that does both; new arrays of the weight's dtype.

    Raises
    ------
    ValueError
        If `weight` is not 2-dimensional or has another number of outputs than `affine` channels,
        `bias` has another shape, or a folded value is too large for the weight's dtype.
    TypeError
        If `weight` or `bias` is not floating, or `affine` no Affine.
    numpy.exceptions.AxisError
        If `weight` has no such `axis`.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import Affine, folding
    >>> affine = Affine(np.array([1.0]), np.array([2.0]), np.array([5.0]))
    >>> folding.fold_into_linear(affine, np.array([[3.0, 4.0]]))
    (array([[6., 8.]]), array([3.]))
    """
    _check_affine(affine)
    return _after(affine, _linear(weight, axis), bias)


def fold_before_linear(
    affine: Affine, weight: _Array, bias: _Array | None = None, *, axis: int = 0
) -> _Folded:
    """Fold a batch norm into the linear layer after it.

    Parameters
    ----------
    affine : Affine
        The batch norm, of as many channels as the layer has inputs.
    weight, bias, axis
        As in `fold_into_linear`; `axis` is that of the outputs here too.

    Returns
    -------
    weight, bias : numpy.ndarray
        Of the layer that does both; new arrays of the weight's dtype.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `fold_into_linear`.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import Affine, folding
    >>> affine = Affine(np.array([1.0]), np.array([2.0]), np.array([5.0]))
    >>> folding.fold_before_linear(affine, np.array([[3.0], [4.0]]))
    (array([[6.],
           [8.]]), array([ 9., 12.]))
    """
    _check_affine(affine)
    return _before(affine, _linear(weight, axis), bias)


def fold_into_conv(
    affine: Affine,
    weight: _Array,
    bias: _Array | None = None,
    *,
    transposed: bool = False,
    groups: int = 1,
    layout: str | None = None,
) -> _Folded:
    """Fold a batch norm into the convolution before it.

    Parameters
    ----------
    affine : Affine
        The batch norm, of as many channels as the convolution has outputs.
    weight : array
        float64, float32, float16 or bfloat16 (a tensor of which counts as float32), any number of
        spatial axes; see `layout`.
    bias : array, shape (outputs,), optional
        Zero where absent.
    transposed : bool, default False
        Whether `weight` is that of a transposed convolution; it chooses the default layout.
    groups : int, default 1
        As given to the convolution.
    layout : str, optional
        Order of the axes of `weight`, where H and W stand for all spatial axes:

        - "OIHW": (outputs, inputs / groups, ...). PyTorch; the default.
        - "IOHW": (inputs, outputs / groups, ...). PyTorch, transposed; the default if `transposed`.
        - "HWIO": (..., inputs / groups, outputs). Keras and Flax; Flax also transposed.
        - "HWOI": (..., outputs, inputs). Keras, transposed.
        - "HWCM": (..., inputs, depth multiplier). Keras' depthwise layers, whose `groups` is the
          number of inputs.

    Returns
    -------
    weight, bias : numpy.ndarray
        Of the convolution that does both; new arrays of the weight's dtype.

    Raises
    ------
    ValueError
        If `weight` has fewer than 3 dimensions, does not divide into `groups`, or has another
        number of outputs than `affine` channels; if `bias` has another shape, `layout` is unknown
        or no layout of such a convolution, or a folded value is too large for the weight's dtype.
    TypeError
        If `weight` or `bias` is not floating, `groups` is no int, or `affine` no Affine.

    Notes
    -----
    In a grouped transposed convolution the outputs of all groups share the second axis of PyTorch's
    weight, so a scale that is not the same in every group does not broadcast: output ``g * n + j``
    is ``weight[i, j]`` for the inputs i of group g.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import Affine, folding
    >>> affine = Affine(*np.array([[0.0, 1.0], [2.0, 3.0], [0.5, 0.5]]))
    >>> weight, bias = folding.fold_into_conv(affine, np.ones((2, 3, 5, 5), np.float32))
    >>> weight[:, 0, 0, 0], bias
    (array([2., 3.], dtype=float32), array([ 0.5, -2.5], dtype=float32))
    """
    _check_affine(affine)
    return _after(affine, _convolution(weight, transposed, groups, layout), bias)


def fold_before_conv(
    affine: Affine,
    weight: _Array,
    bias: _Array | None = None,
    *,
    padding: int | str | Sequence[int],
    padding_mode: str = "zeros",
    transposed: bool = False,
    groups: int = 1,
    layout: str | None = None,
) -> _Folded:
    """Fold a batch norm into the convolution after it, where that is exact.

    Parameters
    ----------
    affine : Affine
        The batch norm, of as many channels as the convolution has inputs.
    weight, bias, transposed, groups, layout
        As in `fold_into_conv`.
    padding : int, sequence of int, "valid" or "same"
        As given to the convolution.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}, default "zeros"
        What it pads with.

    Returns
    -------
    weight, bias : numpy.ndarray
        Of the convolution that does both; new arrays of the weight's dtype.

    Raises
    ------
    ValueError
        If folding would be inexact, as below, `padding` or `padding_mode` is unknown, or as
        `fold_into_conv`.
    TypeError
        As `fold_into_conv`.

    Notes
    -----
    The batch norm adds ``bias - mean * scale`` to each of its channels, and the convolution turns
    that into a constant only where all its taps meet it. Zeros padded behind the batch norm do not
    have it, and in a transposed convolution the outputs meet different taps. Where it is zero in
    every channel, everything folds; where not, the fold is refused. A padding of copies ("reflect",
    "replicate", "circular") has passed through the batch norm and is exact.
    """
    _check_affine(affine)
    parts = _convolution(weight, transposed, groups, layout)
    pads = _pads(padding, padding_mode, parts)
    if np.any(_shift(affine) != 0.0):
        why = None
        if transposed:
            why = "each output of a transposed convolution meets other taps"
        elif pads and padding_mode == "zeros":
            why = (
                "the padded zeros lie behind the batch norm and do not have its shift; pad its "
                "input with mean - bias / scale of each channel instead, and say padding=0"
            )
        if why is not None:
            raise ValueError(
                f"a batch norm before this convolution cannot be folded exactly: {why}"
            )
    return _before(affine, parts, bias)


def compose(first: Affine, second: Affine) -> Affine:
    """Return the one batch norm that does `first` and then `second`.

    Parameters
    ----------
    first, second : Affine
        Of as many channels.

    Returns
    -------
    Affine
        Centred at the mean of `first`.

    Raises
    ------
    ValueError
        If they differ in channels.
    TypeError
        If one is no Affine.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import Affine, folding
    >>> first = Affine(np.array([1.0]), np.array([2.0]), np.array([3.0]))
    >>> second = Affine(np.array([4.0]), np.array([5.0]), np.array([6.0]))
    >>> folding.compose(first, second)
    Affine(mean=array([1.]), scale=array([10.]), bias=array([1.]))
    """
    _check_affine(first, "first")
    _check_affine(second, "second")
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"second must have {first.mean.size} channels, as first has, got {second.mean.size}"
        )
    bias = (first.bias - second.mean) * second.scale + second.bias
    return Affine(first.mean, first.scale * second.scale, bias)


class _Parts(NamedTuple):
    """A weight, and how to see it as (groups, outputs of a group, inputs of a group, taps...)."""

    given: NDArray[Any]
    order: tuple[int, ...]  # its axes: the channels that are whole, those within a group, the taps
    outputs_within: bool
    groups: int

    def moved(self) -> NDArray[Any]:
        """Return a view with the axes in that order."""
        return self.given.transpose(self.order)

    def grouped(self) -> _Float64:
        """Return a float64 copy of shape (groups, outputs, inputs, taps...)."""
        moved = self.moved().astype(np.float64)
        whole, within, *taps = moved.shape
        split = moved.reshape(self.groups, whole // self.groups, within, *taps)
        return split.swapaxes(1, 2) if self.outputs_within else split

    def ungrouped(self, parts: _Float64) -> _Float64:
        """Undo `grouped`."""
        split = parts.swapaxes(1, 2) if self.outputs_within else parts
        return split.reshape(self.moved().shape).transpose(np.argsort(self.order))

    def channels(self) -> tuple[int, int]:
        """Return the numbers of outputs and inputs of the whole layer."""
        whole, within, *_ = self.moved().shape
        sizes = (whole, within * self.groups)
        return sizes[::-1] if self.outputs_within else sizes


def _after(affine: Affine, parts: _Parts, bias: _Array | None) -> _Folded:
    outputs, _ = parts.channels()
    _check_channels(affine, outputs, "outputs", parts)
    weights = parts.grouped()
    scale = affine.scale.reshape(parts.groups, -1, *(1,) * (weights.ndim - 2))
    before = _bias(bias, outputs)
    return _cast(parts, weights * scale, (before - affine.mean) * affine.scale + affine.bias)


def _before(affine: Affine, parts: _Parts, bias: _Array | None) -> _Folded:
    outputs, inputs = parts.channels()
    _check_channels(affine, inputs, "inputs", parts)
    weights = parts.grouped()
    scale = affine.scale.reshape(parts.groups, 1, -1, *(1,) * (weights.ndim - 3))
    shift = _shift(affine).reshape(parts.groups, -1)
    taps = weights.sum(axis=tuple(range(3, weights.ndim)))
    added = np.einsum("goi,gi->go", taps, shift).reshape(outputs)
    return _cast(parts, weights * scale, _bias(bias, outputs) + added)


def _shift(affine: Affine) -> _Float64:
    """Return what each channel's zero becomes."""
    shift: _Float64 = affine.bias - affine.mean * affine.scale
    return shift


def _linear(weight: _Array, axis: int) -> _Parts:
    given = as_floats("weight", weight)
    if given.ndim != 2:
        raise ValueError(f"weight must have 2 dimensions, got shape {given.shape}")
    axis = as_integer("axis", axis)
    if not -2 <= axis < 2:
        raise AxisError(axis, 2, "weight")
    return _Parts(given, (axis % 2, 1 - axis % 2), outputs_within=False, groups=1)


def _convolution(weight: _Array, transposed: bool, groups: int, layout: str | None) -> _Parts:
    given = as_floats("weight", weight)
    groups, transposed = as_integer("groups", groups), bool(transposed)
    if layout is None:
        layout = "IOHW" if transposed else "OIHW"
    allowed = [
        name for name, found in _LAYOUTS.items() if (found.ordinary, found.transposed)[transposed]
    ]
    if layout not in allowed:
        kind = "a transposed" if transposed else "an ordinary"
        raise ValueError(
            f"layout must be one of {', '.join(allowed)} for {kind} convolution, got {layout!r}"
        )
    if given.ndim < 3:
        raise ValueError(f"weight must have 3 or more dimensions, got shape {given.shape}")

    axes = _LAYOUTS[layout]
    outputs, inputs = axes.outputs % given.ndim, axes.inputs % given.ndim
    whole, within = (inputs, outputs) if axes.outputs_within else (outputs, inputs)
    if groups < 1 or given.shape[whole] % groups:
        raise ValueError(
            f"groups must divide the {given.shape[whole]} channels along axis {whole} of weight, "
            f"got {groups}"
        )
    if groups > 1 and transposed and layout == "HWIO":
        raise ValueError(f"groups must be 1 for a transposed convolution in HWIO, got {groups}")
    spatial = [i for i in range(given.ndim) if i not in (outputs, inputs)]
    return _Parts(given, (whole, within, *spatial), axes.outputs_within, groups)


def _pads(padding: int | str | Sequence[int], padding_mode: str, parts: _Parts) -> bool:
    modes = ("zeros", "reflect", "replicate", "circular")
    if padding_mode not in modes:
        raise ValueError(f"padding_mode must be one of {', '.join(modes)}, got {padding_mode!r}")
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f'padding must be "valid", "same" or of ints, got {padding!r}')
        taps = parts.moved().shape[2:]
        return padding == "same" and any(size > 1 for size in taps)
    try:
        sizes = np.asarray(padding)
    except ValueError:
        sizes = np.asarray(None)
    if sizes.dtype.kind not in "iu" or np.any(sizes < 0):
        raise ValueError(f'padding must be "valid", "same" or of ints >= 0, got {padding!r}')
    return bool(np.any(sizes > 0))


def _check_affine(affine: Affine, name: str = "affine") -> None:
    if not isinstance(affine, Affine):
        raise TypeError(f"{name} must be an Affine, got {type(affine).__name__}")


def _check_channels(affine: Affine, expected: int, what: str, parts: _Parts) -> None:
    if affine.mean.size != expected:
        grouped = f" in {parts.groups} groups" if parts.groups > 1 else ""
        raise ValueError(
            f"weight must have {affine.mean.size} {what}, one per channel of the batch norm, "
            f"got {expected}: its shape is {parts.given.shape}{grouped}"
        )


def _bias(bias: _Array | None, outputs: int) -> _Float64:
    if bias is None:
        return np.zeros(outputs)
    given = as_floats("bias", bias)
    if given.shape != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {given.shape}")
    return given.astype(np.float64)


def _cast(parts: _Parts, grouped: _Float64, bias: _Float64) -> _Folded:
    dtype = parts.given.dtype.newbyteorder("=")
    weight = parts.ungrouped(grouped)
    folded = np.empty_like(parts.given, dtype, subok=False)  # in the memory order that came
    with np.errstate(over="ignore"):  # looked for below
        folded[...] = weight
        folded_bias = bias.astype(dtype)
    for name, exact, cast in (("weight", weight, folded), ("bias", bias, folded_bias)):
        lost = np.isfinite(exact) & ~np.isfinite(cast.astype(np.float64))
        if lost.any():
            raise ValueError(
                f"weight must have a dtype that holds the folded {name}, of magnitude up to "
                f"{np.abs(exact[lost]).max():.4g}, got {dtype}"
            )
    return folded, folded_bias
