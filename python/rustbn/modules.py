"""Batch normalization as modules that own parameters, gradients and running statistics.

A module is state around three functions of :mod:`rustbn.functional`: `batch_norm_forward` where
gradients may follow, `batch_norm` where they cannot, `batch_norm_backward`. (The first two are
called as `module_forward` and `module_inference`, which take arguments by position.) It does no
arithmetic on activations. Every method lets the function raise first and changes the module
afterwards, so an exception leaves the module as it was.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rustbn._arguments import as_array, as_integer, as_real, check_eps, check_str
from rustbn._rustbn import check_activation, check_renorm, module_forward, module_inference
from rustbn.conventions import Convention, named
from rustbn.functional import Affine, Context, Gradients, Moments, batch_norm_backward

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "IncompatibleKeys"]

_Array: TypeAlias = Any  # an array of a float dtype, or an object with `__array__`
_FloatArray: TypeAlias = NDArray[np.floating[Any]]
_Activation: TypeAlias = str | tuple[str, float]

_PARAMETERS = ("weight", "bias")
_ON_NONFINITE = ("propagate", "raise", "skip")
_AXES_BUT_CHANNELS = {2: ("N",), 3: ("N", "L"), 4: ("N", "H", "W"), 5: ("N", "D", "H", "W")}


class _Default(float):
    """A default of PyTorch's that another convention replaces by its own."""


_EPS, _MOMENTUM = _Default(1e-5), _Default(0.1)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` did not find and did not use; both empty when strict."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class BatchNorm:
    """Batch normalization of arrays of any rank from 2.

    Parameters
    ----------
    num_features : int
        C, the number of channels: the length of `x` along `axis`.
    eps : float, default 1e-5
        Added to the variance before the square root. Positive where batch statistics are used.
    momentum : float or None, default 0.1
        Weight of the new batch in the running statistics (the PyTorch direction). None makes them
        the average over all batches seen since the last reset.
    affine : bool, default True
        Whether there are a learnable `weight` and `bias`.
    track_running_stats : bool, default True
        Whether there are running statistics. Without them, eval uses the batch's own statistics.
    bias : bool, default True
        False leaves out `bias` and keeps `weight`. Without `affine` there is neither.
    axis : int, default 1
        Channel axis of `x`, negative from the end: -1 for channels last.
    dtype : float16, bfloat16, float32 or float64, default float32
        Of the parameters, gradients and running statistics. It need not be that of `x`. For an `x`
        of 16 bits float32 is right: running statistics of 16 bits move in large steps.
    activation : None, str or (str, float), default None
        Applied to the output: "relu", "relu6", "leaky_relu" (slope 0.01) or ("leaky_relu", slope);
        for inference only "silu", "hardswish", "sigmoid" or "tanh".
    convention : {"torch", "keras", "flax", "onnx"}, default "torch"
        Whose batch normalization this is, see `rustbn.conventions`. It sets the defaults of
        `eps` and `momentum`, the direction of `momentum`, whether the running variance is made of
        unbiased variances, and the names of entries in `state_dict` and `load_state_dict`, so that
        training continues as it would have there. `axis` is yours to say.
    on_nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        What a training forward does where the running mean or variance of a channel would become
        infinite or NaN, in `dtype`: let it; raise `FloatingPointError` and change nothing; leave
        both statistics of these channels as they are. `y` is the same in all cases.
    group_size : int, optional
        Ghost batches ([2]_): a training forward normalises so many samples at a time, each group
        with its own statistics. The running statistics are moved by those of the whole batch. Every
        group, the last and perhaps smaller one too, needs two values per channel.
    renorm : (float, float), optional
        Batch renormalization ([3]_) with ``(r_max, d_max)``: see `rustbn.batch_norm`. May be
        replaced as training goes on; ``(1.0, 0.0)`` is batch normalization.

    Attributes
    ----------
    weight, bias : numpy.ndarray of shape (C,) or None
        Scale and shift, ones and zeros at first. May be changed in place or replaced.
    weight_grad, bias_grad : numpy.ndarray of shape (C,) or None
        Gradients that `backward` adds into, in place; zeros at first.
    running_mean, running_var : numpy.ndarray of shape (C,) or None
        Running statistics, zeros and ones at first, updated in place by a training forward.
    num_batches_tracked : int or None
        Number of training forwards since the last reset, other than those that were to leave the
        running statistics alone, or found no channel finite where such are skipped.
    training : bool
        Whether forward uses batch statistics and updates the running ones; see `train`.
    frozen : bool
        Whether the module is frozen; see `freeze`. Read-only.
    num_features, eps, momentum, affine, track_running_stats, axis, dtype, convention, \
on_nonfinite, group_size, renorm
        As given.

    Raises
    ------
    TypeError
        If `num_features` or `axis` is not an integer, `eps` or `momentum` not a real number, or
        `dtype` none of these.
    ValueError
        If `num_features` is not positive, `eps` is negative, `eps` or `momentum` not finite, or
        there is no such `convention` or `on_nonfinite`.

    See Also
    --------
    BatchNorm1d, BatchNorm2d, BatchNorm3d : The same, refusing inputs of another rank.
    rustbn.batch_norm : The function, without state.

    Notes
    -----
    With m values per channel, of mean ``mean`` and biased variance ``var`` (over m), a training
    forward computes, per channel ([1]_, algorithm 1)::

        xhat = (x - mean) / sqrt(var + eps)
        y = xhat * weight + bias

    and updates the running statistics, the variance as the unbiased one, as in [1]_, algorithm 2::

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var = (1 - momentum) * running_var + momentum * var * m / (m - 1)

    where ``momentum=None`` stands for ``1 / num_batches_tracked``, this batch counted. The other
    conventions weigh the old average and use the biased variance, ``running_var = momentum *
    running_var + (1 - momentum) * var``. Backward is the gradient through ``mean`` and ``var`` too
    ([1]_, section 3)::

        dbias = sum(dy)
        dweight = sum(dy * xhat)
        dx = weight / sqrt(var + eps) * (dy - dbias / m - xhat * dweight / m)

    In eval and when frozen the running statistics stand for ``mean`` and ``var``. They are
    constants, so a frozen module's ``dx = weight / sqrt(running_var + eps) * dy``.

    A training or frozen forward keeps a reference to `x`, not a copy, until the next forward:
    changing `x` in place before `backward` changes the gradients.

    In the cumulative average a channel that was skipped counts as if its batch had had the average
    so far.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by
       Reducing Internal Covariate Shift", ICML 2015, https://arxiv.org/abs/1502.03167
    .. [2] E. Hoffer, I. Hubara and D. Soudry, "Train longer, generalize better: closing the
       generalization gap in large batch training of neural networks", NeurIPS 2017, algorithm 1,
       https://arxiv.org/abs/1705.08741
    .. [3] S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
       Batch-Normalized Models", NeurIPS 2017, algorithm 1, https://arxiv.org/abs/1702.03275

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import BatchNorm
    >>> bn = BatchNorm(2)
    >>> x = np.array([[1.0, 10.0], [3.0, 50.0]], dtype=np.float32)
    >>> bn(x).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> bn.running_mean, bn.running_var
    (array([0.2, 3. ], dtype=float32), array([ 1.1, 80.9], dtype=float32))
    >>> bn.num_batches_tracked
    1

    Gradients of the parameters add up until they are zeroed:

    >>> dx = bn.backward(np.array([[0.0, 1.0], [2.0, 1.0]], dtype=np.float32))
    >>> bn.bias_grad
    array([2., 2.], dtype=float32)
    >>> for (name, parameter), (_, gradient) in zip(bn.named_parameters(), bn.named_grads()):
    ...     parameter -= 0.1 * gradient
    >>> bn.zero_grad()
    >>> bn.bias
    array([-0.2, -0.2], dtype=float32)
    """

    # The ranks x may have; empty: any that the functions take.
    _ranks: ClassVar[tuple[int, ...]] = ()

    # What normalises with the statistics of the batch, and what goes back through it.
    _normalise: Callable[..., tuple[_FloatArray, Context]] = staticmethod(module_forward)
    _differentiate: Callable[..., Gradients] = staticmethod(batch_norm_backward)

    # What backward needs of the latest forward. The class's value stands in for instances made by
    # copying or unpickling, whose state holds no activations.
    _context: Context | None = None

    # The statistics of all batches so far while `recompute_statistics` collects them.
    _population: Moments | None = None

    weight: _FloatArray | None
    bias: _FloatArray | None
    weight_grad: _FloatArray | None
    bias_grad: _FloatArray | None
    running_mean: _FloatArray | None
    running_var: _FloatArray | None
    num_batches_tracked: int | None

    def __init__(
        self,
        num_features: int,
        eps: float = _EPS,
        momentum: float | None = _MOMENTUM,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        activation: _Activation | None = None,
        convention: str = "torch",
        on_nonfinite: str = "propagate",
        group_size: int | None = None,
        renorm: tuple[float, float] | None = None,
    ) -> None:
        self.num_features = as_integer("num_features", num_features)
        if self.num_features < 1:
            raise ValueError(f"num_features must be positive, got {num_features}")
        found = named(convention)
        self.convention = convention
        self.eps = found.eps if isinstance(eps, _Default) else eps
        check_eps(self.eps)
        self.momentum = found.momentum if isinstance(momentum, _Default) else momentum
        if self.momentum is not None and not math.isfinite(as_real("momentum", self.momentum)):
            raise ValueError(f"momentum must be finite, got {momentum}")
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.axis = as_integer("axis", axis)
        self.dtype = _parameter_dtype(dtype)
        check_activation(activation)
        self.activation = activation
        self.on_nonfinite = on_nonfinite
        self.group_size = None if group_size is None else as_integer("group_size", group_size)
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be positive, got {group_size}")
        check_renorm(renorm)
        if renorm is not None and not self.track_running_stats:
            raise ValueError("renorm must be None without track_running_stats, got a pair")
        self.renorm = renorm
        self.training = True
        self._frozen = False

        def filled(there: bool, value: float) -> _FloatArray | None:
            return np.full(self.num_features, value, self.dtype) if there else None

        self.weight = filled(self.affine, 1.0)
        self.weight_grad = filled(self.affine, 0.0)
        self.bias = filled(self.affine and bias, 0.0)
        self.bias_grad = filled(self.affine and bias, 0.0)
        self.running_mean = filled(self.track_running_stats, 0.0)
        self.running_var = filled(self.track_running_stats, 1.0)
        self.num_batches_tracked = 0 if self.track_running_stats else None

    def __call__(
        self,
        x: _Array,
        *,
        residual: _Array | None = None,
        mask: _Array | None = None,
        lengths: _Array | None = None,
        update: bool = True,
        out: _FloatArray | None = None,
    ) -> _FloatArray:
        """Return `forward` of the same arguments."""
        return self.forward(
            x, residual=residual, mask=mask, lengths=lengths, update=update, out=out
        )

    def forward(
        self,
        x: _Array,
        *,
        residual: _Array | None = None,
        mask: _Array | None = None,
        lengths: _Array | None = None,
        update: bool = True,
        out: _FloatArray | None = None,
    ) -> _FloatArray:
        """Normalise `x`, by the batch's statistics in training, else by the running ones.

        The residual is added and the activation applied in the same pass over memory.

        Parameters
        ----------
        x : array of shape (N, C, ...), channels along `axis`
            float16, bfloat16, float32 or float64, any strides.
        residual : array, optional
            Of x's shape and dtype; added before the activation.
        mask : array of bool, optional
            The positions that count in the batch's statistics; see `rustbn.batch_norm`.
        lengths : sequence of N int, optional
            The same as how many positions count along the last axis that is not the channels'.
        update : bool, default True
            Whether a training forward moves the running statistics and counts.
        out : numpy.ndarray, optional
            Array of x's shape and dtype to write to and return. It may be `x` or `residual` itself
            in eval, and may not overlap them in training or when frozen, where backward needs them.

        Returns
        -------
        numpy.ndarray
            y, of x's shape, dtype and memory order. An empty training batch gives an empty y,
            leaves the running statistics alone and counts in `num_batches_tracked`.

        Raises
        ------
        ValueError
            If `x` has a rank this class does not take, does not have `num_features` channels, or
            has a single value per channel where batch statistics are used; if `eps` is not
            positive there (not negative elsewhere); if the activation is for inference only and
            this is not; if `residual` or `out` does not fit.
        TypeError
            If the dtype of `x`, `residual` or `out` is not supported, or `update` is no bool.
        FloatingPointError
            If `on_nonfinite` is "raise" and there is cause. `out` has been written to then.
        numpy.exceptions.AxisError
            If `x` has no such `axis`.
        """
        ranks = self._ranks
        if ranks and getattr(x, "ndim", None) not in ranks:
            self._check_rank(x)
        if update is not True and not isinstance(update, bool | np.bool_):
            raise TypeError(f"update must be a bool, got {type(update).__name__}")

        alone = self.weight is None and self.bias is None
        if alone and (self.training or self.running_mean is None):
            self._check_channels(x)  # the function may have nothing to compare x with
        try:
            if self.training and not self._frozen:
                return self._train(x, residual, mask, lengths, bool(update), out)
            if self._frozen:
                y, self._context = module_forward(
                    x,
                    self.running_mean,
                    self.running_var,
                    self.weight,
                    self.bias,
                    0.0,  # momentum: nothing moves
                    self.eps,
                    self.axis,
                    self.activation,
                    residual,
                    mask,
                    lengths,
                    None,  # renorm
                    out,
                    False,  # training
                    None,  # group_size
                )
                return y
            y = module_inference(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.eps,
                self.axis,
                self.activation,
                residual,
                mask,
                lengths,
                out,
            )
        except ValueError:
            self._check_channels(x)  # the function would name the vector it compared x with
            raise
        self._context = None
        return y

    def _train(
        self,
        x: _Array,
        residual: _Array | None,
        mask: _Array | None,
        lengths: _Array | None,
        update: bool,
        out: _FloatArray | None,
    ) -> _FloatArray:
        """Do what `forward` does in training."""
        running_mean, running_var = self.running_mean, self.running_var
        batches, momentum, population = self.num_batches_tracked, 0.0, self._population
        copies: tuple[_FloatArray, _FloatArray] | None = None
        moves = update and self.track_running_stats and population is None
        # Statistics that are to be replaced are nothing to renormalise toward.
        renorm = self.renorm if population is None else None
        if moves:
            convention = named(self.convention)
            batches = (batches or 0) + 1
            if self.momentum is None:
                momentum = 1.0 / batches
            else:
                momentum = convention.weight_of_batch(self.momentum)
            careful = convention.biased or self._on_nonfinite != "propagate"
            if careful and running_mean is not None and running_var is not None:
                # What the function makes of them is not yet what they become.
                self._check_movable(running_mean, running_var, x, out)
                copies = np.asarray(running_mean).copy(), np.asarray(running_var).copy()
                running_mean, running_var = copies
        elif renorm is None:
            running_mean = running_var = None
        elif running_mean is not None and running_var is not None:
            # Needed to renormalise, and not to be moved.
            running_mean = np.asarray(running_mean).copy()
            running_var = np.asarray(running_var).copy()

        y, context = self._normalise(
            x,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            self.axis,
            self.activation,
            residual,
            mask,
            lengths,
            renorm,
            out,
            True,  # training
            self.group_size,
        )
        if copies is not None:
            moves = self._settle(*copies, momentum, context)
        if population is not None and context.moments is not None:
            self._population = population.merge(context.moments)
        self._context = context
        if moves:
            self.num_batches_tracked = batches
        return y

    def _check_movable(
        self, mean: _FloatArray, var: _FloatArray, x: _Array, out: _FloatArray | None
    ) -> None:
        """Refuse running statistics that the function would refuse to update in place."""
        nothing = np.zeros(self.num_features)
        Moments(0, nothing, nothing).update_running(mean, var, 0.0)  # checks them, moves nothing
        memory = as_array("x", x) if hasattr(x, "__array__") else None  # of a tensor, too
        for name, vector in (("running_mean", mean), ("running_var", var)):
            for this, other, array in ((name, "x", memory), ("out", name, out)):
                if isinstance(array, np.ndarray) and np.shares_memory(np.asarray(vector), array):
                    raise ValueError(
                        f"{this} must share no memory with {other}, got memory shared with {other}"
                    )

    def _settle(
        self, mean: _FloatArray, var: _FloatArray, momentum: float, context: Context
    ) -> bool:
        """Make of copies that the function has moved the running statistics of this module.

        Return whether any channel has moved.
        """
        running_mean, running_var = np.asarray(self.running_mean), np.asarray(self.running_var)
        moments = context.moments
        assert moments is not None  # it was a training forward
        if moments.count == 0:
            return True
        if self._convention().biased:
            updated = (1.0 - momentum) * running_var.astype(np.float64) + momentum * moments.var()
            with np.errstate(over="ignore"):  # infinity, as the function has it
                var[...] = updated
        moved = ~self._spoilt(mean, var)
        np.copyto(running_mean, mean, where=moved)
        np.copyto(running_var, var, where=moved)
        return bool(moved.any())

    def _spoilt(self, mean: _FloatArray, var: _FloatArray) -> NDArray[np.bool_]:
        """Return the channels whose running statistics are not to become `mean` and `var`."""
        if self._on_nonfinite == "propagate":
            return np.zeros(self.num_features, np.bool_)
        spoilt: NDArray[np.bool_] = ~(np.isfinite(mean) & np.isfinite(var))
        if self._on_nonfinite == "raise" and spoilt.any():
            channels = np.flatnonzero(spoilt).tolist()
            more = f" and {len(channels) - 10} more" if len(channels) > 10 else ""
            raise FloatingPointError(
                "running statistics must stay finite, those of channels "
                f"{channels[:10]}{more} would not"
            )
        return spoilt

    def backward(self, dy: _Array, *, out: _FloatArray | None = None) -> Any:
        """Return the gradient for the latest forward's `x`, and add those of the parameters.

        Parameters
        ----------
        dy : array
            Gradient of the loss by y, of y's shape and dtype.
        out : numpy.ndarray, optional
            Array of x's shape and dtype to write dx to and return. It may be `dy` itself.

        Returns
        -------
        numpy.ndarray, or a tuple of two
            dx, of x's shape and dtype; ``(dx, dresidual)`` if the forward had a residual.

        Raises
        ------
        RuntimeError
            If the latest forward was not a training or frozen one, or there was none. What
            gradients in eval mode are in PyTorch is `freeze` here.
        ValueError
            If `dy` has another shape than y, or `out` does not fit.
        TypeError
            If `dy` or `out` has another dtype than y.

        Notes
        -----
        May be called several times after one forward; each call adds into `weight_grad` and
        `bias_grad`.
        """
        context = self._context
        if context is None:
            raise RuntimeError(
                "backward needs a training or frozen forward before it: the latest forward was in "
                "eval mode (freeze() is eval with gradients), or there was none since the module "
                "was made, copied or unpickled"
            )
        for name in ("weight_grad", "bias_grad"):
            gradient = getattr(self, name)
            if gradient is None:
                continue
            own = self._own(name)
            if own.shape != (self.num_features,):
                raise ValueError(
                    f"the module's {name} must have shape ({self.num_features},), got {own.shape}"
                )
            if own.dtype.kind != "f" and not _is_float(own.dtype):
                raise TypeError(f"the module's {name} must have a floating dtype, got {own.dtype}")
        dx, dweight, dbias, dresidual = self._differentiate(dy, context, out=out)
        self.weight_grad = _accumulate(self.weight_grad, dweight)
        self.bias_grad = _accumulate(self.bias_grad, dbias)
        return dx if dresidual is None else (dx, dresidual)

    def zero_grad(self) -> None:
        """Set `weight_grad` and `bias_grad` to zero, in place."""
        for gradient in (self.weight_grad, self.bias_grad):
            if gradient is not None:
                gradient.fill(0.0)

    def named_parameters(self) -> Iterator[tuple[str, _FloatArray]]:
        """Yield ("weight", weight) and ("bias", bias), leaving out what is None."""
        for name in _PARAMETERS:
            parameter = getattr(self, name)
            if parameter is not None:
                yield name, parameter

    def named_grads(self) -> Iterator[tuple[str, _FloatArray]]:
        """Yield the gradients under the names and in the order of `named_parameters`."""
        for name, _ in self.named_parameters():
            gradient = getattr(self, f"{name}_grad")
            if gradient is not None:
                yield name, gradient

    @property
    def frozen(self) -> bool:
        """Whether forward uses the running statistics whatever `training` says."""
        return self._frozen

    @property
    def on_nonfinite(self) -> str:
        """What a training forward does where running statistics would not be finite."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, policy: str) -> None:
        if policy not in _ON_NONFINITE:
            names = ", ".join(map(repr, _ON_NONFINITE))
            raise ValueError(f"on_nonfinite must be one of {names}, got {policy!r}")
        self._on_nonfinite = policy

    def train(self, mode: bool = True) -> Self:
        """Choose training (batch statistics) or, with False, eval (running ones); return self."""
        if not isinstance(mode, bool | np.bool_):
            raise TypeError(f"mode must be a bool, got {type(mode).__name__}")
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Do what `train(False)` does."""
        return self.train(False)

    def freeze(self) -> Self:
        """Normalise with the running statistics, leave them alone, and let gradients flow.

        Holds whatever `train` and `eval` say, until `unfreeze`: how batch norm is kept fixed while
        the network around it is fine-tuned. `weight` and `bias` still get gradients.

        Returns
        -------
        BatchNorm
            self

        Raises
        ------
        RuntimeError
            If the module has no running statistics.
        """
        self._running_statistics("freeze")
        self._frozen = True
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze`, so that `training` decides again; return self."""
        self._frozen = False
        return self

    def affine_transform(self) -> Affine:
        """Return what this module is at inference, ``(x - mean) * scale + bias`` per channel.

        Returns
        -------
        Affine
            Of the running statistics and parameters as they are now; it does not follow them.

        Raises
        ------
        RuntimeError
            If the module has no running statistics.

        Examples
        --------
        >>> import numpy as np
        >>> from rustbn import BatchNorm
        >>> bn = BatchNorm(2, eps=0.0).eval()
        >>> bn.running_var[:] = [4.0, 16.0]
        >>> bn.affine_transform().scale
        array([0.5 , 0.25])
        """
        running_mean, running_var = self._running_statistics("affine_transform")
        return Affine.from_running(running_mean, running_var, self.weight, self.bias, self.eps)

    def reset_running_stats(self) -> None:
        """Set `running_mean` to 0, `running_var` to 1, `num_batches_tracked` to 0, in place."""
        if self.running_mean is None and self.running_var is None:
            return
        running_mean, running_var = self._own("running_mean"), self._own("running_var")
        running_mean.fill(0.0)
        running_var.fill(1.0)
        self.num_batches_tracked = 0

    def reset_parameters(self) -> None:
        """Set `weight` to 1 and `bias` to 0, in place, and reset the running statistics."""
        parameters = {name: self._own(name) for name, _ in self.named_parameters()}
        self.reset_running_stats()
        for name, parameter in parameters.items():
            parameter.fill(1.0 if name == "weight" else 0.0)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters and running statistics, under the convention's names.

        Returns
        -------
        dict of str to numpy.ndarray
            PyTorch's are "weight", "bias", "running_mean", "running_var" and "num_batches_tracked"
            (a 0-d int64 array), leaving out what is None. Fit for `numpy.savez`, and, through
            `torch.from_numpy`, for a PyTorch module; bfloat16, which that does not take, as float32
            first. The other conventions have no count of batches.
        """
        state = {}
        for name, entry in self._convention().entries.items():
            value = getattr(self, name)
            if value is not None:
                state[entry] = np.array(value, np.int64 if name == "num_batches_tracked" else None)
        return state

    def load_state_dict(
        self, d: Mapping[str, Any], strict: bool = True, prefix: str = ""
    ) -> IncompatibleKeys:
        """Copy parameters and running statistics from `d` into the module's own arrays.

        Parameters
        ----------
        d : mapping of str to array
            NumPy arrays or CPU tensors under the names of `state_dict`. The vectors may be of any
            floating dtype; in a module of bfloat16 also of 2-byte voids, as which `numpy.savez`
            writes bfloat16. Without a `num_batches_tracked` beside its running statistics (as in
            checkpoints of PyTorch before 0.4.1, and in other conventions), the count is 0.
        strict : bool, default True
            Whether missing and unexpected entries are errors; else they are left as they are.
        prefix : str, default ""
            What the names start with in `d`, such as "layer1.0.bn1."; other entries are ignored.

        Returns
        -------
        IncompatibleKeys
            Named tuple of `missing_keys` and `unexpected_keys`, with the prefix.

        Raises
        ------
        KeyError
            If `strict`, and an entry is missing, or starts with `prefix` and is none of ours.
        ValueError
            If an entry has the wrong shape, the count is negative, or an array of the module is
            not writeable.
        TypeError
            If an entry cannot be made an array, or has the wrong dtype; if `d` is no mapping or
            `prefix` no str.

        Notes
        -----
        All or nothing: after an exception the module is as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from rustbn import BatchNorm
        >>> checkpoint = {
        ...     "bn1.running_mean": np.array([1.0, 2.0]),
        ...     "bn1.running_var": np.array([3.0, 4.0]),
        ...     "fc.weight": np.zeros((10, 2)),
        ... }
        >>> bn = BatchNorm(2, affine=False)
        >>> bn.load_state_dict(checkpoint, prefix="bn1.")
        IncompatibleKeys(missing_keys=[], unexpected_keys=[])
        >>> bn.running_var
        array([3., 4.], dtype=float32)
        """
        if not isinstance(d, Mapping):
            raise TypeError(f"d must be a mapping of names to arrays, got {type(d).__name__}")
        check_str("prefix", prefix)
        entries = self._convention().entries.items()
        own = {entry: name for name, entry in entries if getattr(self, name) is not None}
        given = [k.removeprefix(prefix) for k in map(str, d) if k.startswith(prefix)]
        found = {own[entry]: prefix + entry for entry in own if entry in given}
        missing = [
            prefix + entry
            for entry, name in own.items()
            if entry not in given and name != "num_batches_tracked"
        ]
        unexpected = [prefix + entry for entry in given if entry not in own]
        if strict and (missing or unexpected):
            raise KeyError(f"d has missing entries {missing} and unexpected entries {unexpected}")

        # Everything that can fail comes before the first copy.
        batches = self.num_batches_tracked
        if "running_mean" in found or "running_var" in found:
            batches = 0
        vectors = []
        for name, key in found.items():
            value = as_array(key, d[key])
            if name == "num_batches_tracked":
                batches = _batches(key, value)
            else:
                target = self._own(name)
                vectors.append((target, _vector(key, value, target)))

        for target, vector in vectors:
            np.copyto(target, vector)
        self.num_batches_tracked = batches
        return IncompatibleKeys(missing, unexpected)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle: everything but the activations."""
        state = self.__dict__.copy()
        state.pop("_context", None)
        return state

    def __repr__(self) -> str:
        """Return the class and its arguments, those after PyTorch's five where not the default."""
        options = ""
        if self.affine and self.bias is None:
            options += ", bias=False"
        if self.axis != 1:
            options += f", axis={self.axis}"
        if self.dtype != np.float32:
            options += f", dtype={self.dtype}"
        if self.activation is not None:
            options += f", activation={self.activation!r}"
        if self.convention != "torch":
            options += f", convention={self.convention!r}"
        if self.on_nonfinite != "propagate":
            options += f", on_nonfinite={self.on_nonfinite!r}"
        if self.group_size is not None:
            options += f", group_size={self.group_size}"
        if self.renorm is not None:
            options += f", renorm={self.renorm}"
        return (
            f"{type(self).__name__}({self.num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}{options})"
        )

    def _convention(self) -> Convention:
        return named(self.convention)

    def _check_rank(self, x: _Array) -> None:
        if not hasattr(x, "__array__"):
            return  # no array: the function says so
        rank = np.ndim(x)
        if rank in self._ranks:
            return
        ranks = " or ".join(str(r) for r in self._ranks)
        layouts = []
        for r in self._ranks:
            names = list(_AXES_BUT_CHANNELS[r])
            names.insert(self.axis % r, "C")
            layouts.append(f"({', '.join(names)})")
        raise ValueError(f"x must have {ranks} dimensions {' or '.join(layouts)}, got {rank}")

    def _check_channels(self, x: _Array) -> None:
        if not hasattr(x, "__array__"):
            return
        shape = x.shape if isinstance(x, np.ndarray) else tuple(np.shape(x))
        if -len(shape) <= self.axis < len(shape) and shape[self.axis] != self.num_features:
            raise ValueError(
                f"x must have {self.num_features} channels along axis {self.axis}, got {shape}"
            ) from None

    def _running_statistics(self, what: str) -> tuple[_FloatArray, _FloatArray]:
        if self.running_mean is None or self.running_var is None:
            raise RuntimeError(
                f"{what} needs running statistics, which this module does not have: "
                f"track_running_stats is {self.track_running_stats}"
            )
        return self.running_mean, self.running_var

    def _own(self, name: str) -> _FloatArray:
        """Return one of the module's arrays for writing; users may have put anything there."""
        array = getattr(self, name)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"the module's {name} must be an array, got {type(array).__name__}")
        if not array.flags.writeable:
            raise ValueError(f"the module's {name} must be writeable, got a read-only array")
        return array


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C) or (N, C, L) arrays; all else as in `BatchNorm`.

    Parameters
    ----------
    num_features : int
        C, the number of channels: the length of `x` along `axis`.
    eps, momentum, affine, track_running_stats, bias, axis, dtype, activation, convention, \
on_nonfinite, group_size, renorm
        As in `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import BatchNorm1d
    >>> BatchNorm1d(4)(np.zeros((2, 4, 5, 5), np.float32))
    Traceback (most recent call last):
    ValueError: x must have 2 or 3 dimensions (N, C) or (N, C, L), got 4
    """

    _ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W) arrays; all else as in `BatchNorm`.

    Parameters
    ----------
    num_features : int
        C, the number of channels: the length of `x` along `axis`.
    eps, momentum, affine, track_running_stats, bias, axis, dtype, activation, convention, \
on_nonfinite, group_size, renorm
        As in `BatchNorm`; ``axis=-1`` for (N, H, W, C) arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import BatchNorm2d
    >>> bn = BatchNorm2d(64, axis=-1)
    >>> bn
    BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, axis=-1)
    >>> bn(np.zeros((2, 7, 7, 64), np.float32)).shape
    (2, 7, 7, 64)
    """

    _ranks = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalization of (N, C, D, H, W) arrays; all else as in `BatchNorm`.

    Parameters
    ----------
    num_features : int
        C, the number of channels: the length of `x` along `axis`.
    eps, momentum, affine, track_running_stats, bias, axis, dtype, activation, convention, \
on_nonfinite, group_size, renorm
        As in `BatchNorm`; ``axis=-1`` for (N, D, H, W, C) arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import BatchNorm3d
    >>> BatchNorm3d(3)(np.zeros((2, 3, 4, 5, 6), np.float32)).shape
    (2, 3, 4, 5, 6)
    """

    _ranks = (5,)


def _accumulate(total: _FloatArray | None, gradient: _FloatArray | None) -> _FloatArray | None:
    if total is None:
        return gradient
    if gradient is not None:
        total += gradient
    return total


def _parameter_dtype(dtype: DTypeLike) -> np.dtype[np.floating[Any]]:
    # NumPy reads None as float64, PyTorch as float32: refuse to guess.
    try:
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not _is_float(found):
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype!r}")
    native: np.dtype[Any] = found.newbyteorder("=")
    return native


def _is_float(dtype: np.dtype[Any]) -> bool:
    # bfloat16 comes from ml_dtypes: whoever has an array of it has loaded that.
    bfloat16 = getattr(sys.modules.get("ml_dtypes"), "bfloat16", None)
    return dtype.type in (np.float16, np.float32, np.float64, bfloat16)


def _batches(key: str, value: NDArray[Any]) -> int:
    if value.dtype.kind not in "iu":
        raise TypeError(f"{key} must have an integer dtype, got {value.dtype}")
    if value.shape != ():
        raise ValueError(f"{key} must have shape (), got {value.shape}")
    if value < 0:
        raise ValueError(f"{key} must not be negative, got {value}")
    return int(value)


def _vector(key: str, value: NDArray[Any], like: _FloatArray) -> _FloatArray:
    if like.dtype.name == "bfloat16" and value.dtype == "V2":  # as numpy.savez writes it
        value = value.view(like.dtype)
    if value.dtype.kind != "f" and not _is_float(value.dtype):
        raise TypeError(f"{key} must have a floating dtype, got {value.dtype}")
    if value.shape != like.shape:
        raise ValueError(f"{key} must have shape {like.shape}, got {value.shape}")
    return value.astype(like.dtype)  # a copy: d may hold the module's own arrays
