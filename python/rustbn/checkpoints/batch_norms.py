"""The batch norms among the entries of a checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustbn._arguments import as_array, as_floats, check_eps, check_str
from rustbn.checkpoints.entries import Entries
from rustbn.checkpoints.errors import CheckpointError, naming, shown
from rustbn.checkpoints.files import read
from rustbn.checkpoints.onnx import OnnxEntries
from rustbn.checkpoints.tree import flatten
from rustbn.conventions import CONVENTIONS, Convention, named
from rustbn.functional import Affine
from rustbn.modules import BatchNorm

__all__ = ["BatchNormState", "BatchNorms", "load", "to_entries"]

_Vector = NDArray[Any]
_VECTORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class BatchNormState:
    """One batch norm of a checkpoint.

    Attributes
    ----------
    name : str
        What its entries start with, without the separator: "layer1.0.bn1".
    running_mean, running_var : numpy.ndarray of shape (C,)
        As in the file, whatever its floating dtype.
    weight, bias : numpy.ndarray of shape (C,) or None
        None where the checkpoint has none.
    num_batches_tracked : int or None
        None where the checkpoint has none.
    convention : str
        Whose batch norm it is, see `rustbn.conventions`.
    eps : float
        Added to the variance.
    momentum : float
        In the convention's direction.
    eps_given : bool
        Whether eps was given, by the file or by the caller; else it is the convention's default,
        which the model may not have used.
    """

    name: str
    running_mean: _Vector = field(repr=False)
    running_var: _Vector = field(repr=False)
    weight: _Vector | None = field(repr=False)
    bias: _Vector | None = field(repr=False)
    num_batches_tracked: int | None
    convention: str
    eps: float
    momentum: float
    eps_given: bool

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return int(self.running_mean.size)

    def affine(self) -> Affine:
        """Return what this batch norm is at inference.

        Returns
        -------
        Affine
            ``y = (x - mean) * scale + bias`` of each channel, for use or for folding.
        """

        def wide(vector: _Vector | None) -> _Vector | None:
            return None if vector is None else vector.astype(np.float64)

        return Affine.from_running(
            wide(self.running_mean),
            wide(self.running_var),
            wide(self.weight),
            wide(self.bias),
            self.eps,
        )

    def module(self, kind: type[BatchNorm] = BatchNorm, **options: Any) -> BatchNorm:
        """Return this batch norm as a module, in training mode, as all modules start.

        Parameters
        ----------
        kind : type, default BatchNorm
            Which module: `BatchNorm`, `BatchNorm1d`, `BatchNorm2d` or `BatchNorm3d`.
        **options
            Arguments of `kind`: `axis`, `dtype` (float64 where the statistics are, else float32, if
            absent), `eps`, and `momentum`, where the model did not use the convention's default.

        Returns
        -------
        BatchNorm
            With copies of the state, of this convention: training continues as it would have there.

        Raises
        ------
        TypeError
            If `kind` is no class of batch norms.
        """
        if not (isinstance(kind, type) and issubclass(kind, BatchNorm)):
            raise TypeError(f"kind must be a class of batch norms, got {kind!r}")
        double = self.running_mean.dtype == np.float64
        defaults = {
            "eps": self.eps,
            "momentum": self.momentum,
            "dtype": np.float64 if double else np.float32,
        }
        module = kind(
            self.channels,
            affine=self.weight is not None or self.bias is not None,
            bias=self.bias is not None,
            convention=self.convention,
            **defaults | options,
        )
        if self.weight is None:  # and yet it may have a bias
            module.weight = module.weight_grad = None
        state = {e: getattr(self, name) for name, e in named(self.convention).entries.items()}
        module.load_state_dict({entry: v for entry, v in state.items() if v is not None})
        return module

    def dead_channels(self, tolerance: float = 1e-5) -> NDArray[np.intp]:
        """Return the channels whose output all but ignores their input.

        Parameters
        ----------
        tolerance : float, default 1e-5
            A channel is dead if its output has at most this standard deviation.

        Returns
        -------
        numpy.ndarray of int
            Their indices, ascending. Such channels are constant (``bias`` and whatever follows),
            and can be pruned.

        Notes
        -----
        On data with the running statistics the output of a channel has the standard deviation
        ``|weight| * sqrt(running_var / (running_var + eps))``: 0 where weight or variance is 0, and
        near it where weight decay, or a layer before without any effect, has driven them there.
        """
        var = np.maximum(self.running_var.astype(np.float64), 0.0)
        total = var + self.eps
        share = np.divide(var, total, out=np.zeros_like(var), where=total > 0.0)
        weight = 1.0 if self.weight is None else np.abs(self.weight.astype(np.float64))
        dead: NDArray[np.intp] = np.flatnonzero(weight * np.sqrt(share) <= tolerance)
        return dead


class BatchNorms(Mapping[str, BatchNormState]):
    """The batch norms of a checkpoint by name, in its order.

    A read-only mapping of names to `BatchNormState`. ``print`` lists them.
    """

    def __init__(self, states: Mapping[str, BatchNormState]) -> None:
        self._states = dict(states)

    def __getitem__(self, name: str) -> BatchNormState:
        """Return one batch norm; KeyError where there is none of this name."""
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._states)

    def __len__(self) -> int:
        """Return the number of batch norms."""
        return len(self._states)

    def affines(self) -> dict[str, Affine]:
        """Return every `BatchNormState.affine` by name."""
        return {name: state.affine() for name, state in self.items()}

    def modules(self, kind: type[BatchNorm] = BatchNorm, **options: Any) -> dict[str, BatchNorm]:
        """Return every `BatchNormState.module` by name, all of one kind."""
        return {name: state.module(kind, **options) for name, state in self.items()}

    def __repr__(self) -> str:
        """Return how many there are, and of how many channels."""
        channels = sum(state.channels for state in self.values())
        return f"<{len(self)} batch norms, {channels} channels>"

    def __str__(self) -> str:
        """Return a listing: name, channels, eps (given or assumed), dead channels."""
        rows = [("name", "channels", "eps", "dead channels")]
        for name, state in self.items():
            given = "given" if state.eps_given else "assumed"
            dead = str(state.dead_channels().size or "-")
            rows.append((name or "(root)", str(state.channels), f"{state.eps:g} ({given})", dead))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, channels, eps, dead in rows:
            cells = (
                name.ljust(widths[0]),
                channels.rjust(widths[1]),
                eps.ljust(widths[2]),
                dead.rjust(widths[3]),
            )
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    convention: str | None = None,
    eps: float | Mapping[str, float] | None = None,
    prefix: str = "",
) -> BatchNorms:
    """Find every batch norm of a model.

    Parameters
    ----------
    source : str, path-like, or mapping
        A file that `read` opens, what `read` returns, or a mapping of names to arrays or CPU
        tensors (of bfloat16 as float32), nested or not: a state dict, the variables of a Flax
        model, a dictionary of the weights of a Keras model by path.
    convention : {"torch", "keras", "flax", "onnx"}, optional
        Whose entry names to look for, and whose eps and momentum to assume; see
        `rustbn.conventions`. The default is "onnx" for ONNX models, whose graphs say what is
        a batch norm, and "torch" for everything else.
    eps : float or mapping of str to float, optional
        Of all batch norms, or of those named; checkpoints of PyTorch, Keras and Flax do not hold
        it. Without it that of the file or of the convention.
    prefix : str, default ""
        Look only at entries that start with it, and take it off the names: "state_dict.".

    Returns
    -------
    BatchNorms
        Mapping of names to `BatchNormState`. Only the bytes of the batch norms are read.

    Raises
    ------
    CheckpointError
        If there is no batch norm, the vectors of one do not fit each other, or as `read`.
    ValueError
        If there is no such convention, an eps is negative or not finite, or `eps` names a batch
        norm that is not there.
    TypeError
        If `source`, `eps` or `prefix` is none of the above.

    Notes
    -----
    A batch norm is known by its running mean and running variance, so one that tracks none is not
    found, and an instance norm that does track them is. The running variance is taken as it is,
    biased or not: at inference it means the same in all conventions.

    Examples
    --------
    >>> import numpy as np
    >>> from rustbn import checkpoints
    >>> state = {
    ...     "conv.weight": np.zeros((2, 3, 1, 1), np.float32),
    ...     "bn.weight": np.array([1.0, 0.0], np.float32),
    ...     "bn.bias": np.zeros(2, np.float32),
    ...     "bn.running_mean": np.zeros(2, np.float32),
    ...     "bn.running_var": np.ones(2, np.float32),
    ... }
    >>> batch_norms = checkpoints.load(state)
    >>> print(batch_norms)
    name  channels  eps              dead channels
    bn           2  1e-05 (assumed)              1
    >>> batch_norms["bn"].affine().scale.round(3)
    array([1., 0.])
    """
    if convention is not None:
        named(convention)
    check_str("prefix", prefix)
    if isinstance(source, str | os.PathLike):
        source = read(source)
    elif not isinstance(source, Mapping):
        raise TypeError(f"source must be a path or a mapping, got {type(source).__name__}")
    with naming(source.path if isinstance(source, Entries) else "source"):
        if isinstance(source, OnnxEntries) and convention in (None, "onnx"):
            entries: Mapping[str, Any] = source
            found = _of_graph(source, prefix)
        else:
            expected = named(convention or "torch")
            if isinstance(source, Entries):
                entries = source
            else:
                entries = flatten(source, lambda v: hasattr(v, "__array__"), expected.separator)
            found = _by_names(entries, expected, prefix)
        given = _Eps(eps, found)
        states = {
            name: _state(name, group, *given.of(name, group), entries)
            for name, group in found.items()
        }
    return BatchNorms(states)


def to_entries(
    batch_norms: Mapping[str, BatchNorm | BatchNormState], *, convention: str = "torch"
) -> dict[str, NDArray[Any]]:
    """Return the state of batch norms as entries of a checkpoint, under a framework's names.

    Parameters
    ----------
    batch_norms : mapping of str to BatchNorm or BatchNormState
        By the names of the modules; a `BatchNorms` for one.
    convention : {"torch", "keras", "flax", "onnx"}, default "torch"
        Whose names; see `rustbn.conventions`.

    Returns
    -------
    dict of str to numpy.ndarray
        Copies, fit for ``numpy.savez(path, **entries)`` or ``safetensors.numpy.save_file``, such as
        "bn1.weight" (torch), "bn1/gamma" (Keras), "params/bn1/scale" (Flax), "bn1.scale" (ONNX,
        whose operator needs a scale and a bias: ones and zeros where there are none).

    Raises
    ------
    ValueError
        If there is no such convention, or a batch norm has no running statistics.
    TypeError
        If `batch_norms` is no mapping of names to batch norms.

    Notes
    -----
    The running variance is written as it is. It means the same at inference; only in training do
    the averages go on differently.

    Examples
    --------
    >>> from rustbn import BatchNorm2d, checkpoints
    >>> list(checkpoints.to_entries({"bn1": BatchNorm2d(3)}, convention="flax"))
    ['params/bn1/scale', 'params/bn1/bias', 'batch_stats/bn1/mean', 'batch_stats/bn1/var']
    """
    target = named(convention)
    if not isinstance(batch_norms, Mapping):
        kind = type(batch_norms).__name__
        raise TypeError(f"batch_norms must be a mapping of names to batch norms, got {kind}")
    entries: dict[str, NDArray[Any]] = {}
    for name, batch_norm in batch_norms.items():
        if not isinstance(name, str):
            raise TypeError(f"batch_norms must have names of type str, got {type(name).__name__}")
        item = f"batch_norms[{name!r}]"
        if not isinstance(batch_norm, BatchNorm | BatchNormState):
            raise TypeError(f"{item} must be a batch norm, got {type(batch_norm).__name__}")
        mean = batch_norm.running_mean
        if mean is None or batch_norm.running_var is None:
            raise ValueError(f"{item} must have running statistics to be written, got None")
        for ours, theirs in target.entries.items():
            value = getattr(batch_norm, ours)
            if value is None and target.name == "onnx":
                value = np.full(mean.shape, float(ours == "weight"), mean.dtype)
            if value is not None:
                whole = [target.collections.get(ours, ""), name, theirs]
                key = target.separator.join(part for part in whole if part)
                entries[key] = np.array(value, np.int64 if ours == "num_batches_tracked" else None)
    return entries


@dataclass(frozen=True)
class _Group:
    """Where the parts of a batch norm are, and what is known of it."""

    sources: Mapping[str, str]  # our names to entries
    convention: Convention
    eps: float | None = None
    momentum: float | None = None


class _Eps:
    """The eps of each batch norm, and whether it was given."""

    def __init__(
        self, eps: float | Mapping[str, float] | None, names: Mapping[str, object]
    ) -> None:
        self._eps = eps
        if isinstance(eps, Mapping):
            unknown = [name for name in eps if name not in names]
            if unknown:
                raise ValueError(f"eps must be of batch norms that are there, got {unknown}")
        values = eps.values() if isinstance(eps, Mapping) else [] if eps is None else [eps]
        for value in values:
            check_eps(value)

    def of(self, name: str, group: _Group) -> tuple[float, bool]:
        eps = self._eps.get(name) if isinstance(self._eps, Mapping) else self._eps
        if eps is None:
            eps = group.eps
        if eps is None:
            return group.convention.eps, False
        return float(eps), True


def _of_graph(source: OnnxEntries, prefix: str) -> dict[str, _Group]:
    convention = named("onnx")
    found = {
        node.name.removeprefix(prefix): _Group(node.sources, convention, node.eps, node.momentum)
        for node in source.nodes
        if node.name.startswith(prefix)
    }
    if not found:
        raise CheckpointError(
            f"holds no BatchNormalization of initializers{_with(prefix)}; exporters fold those "
            "that follow a convolution, unless told to export for training"
        )
    return found


def _by_names(entries: Mapping[str, Any], convention: Convention, prefix: str) -> dict[str, _Group]:
    found = _groups(entries, convention, prefix)
    if found:
        return found
    reason = (
        f"holds no batch norm{_with(prefix)} under the names of {convention.name}, "
        f"{convention.entries['running_mean']} and {convention.entries['running_var']}"
    )
    for other in CONVENTIONS.values():
        count = len(_groups(entries, other, prefix))
        if count:
            reason += f"; under those of {other.name}, convention={other.name!r}, it holds {count}"
    raise CheckpointError(reason)


def _with(prefix: str) -> str:
    return f" with the prefix {prefix!r}" if prefix else ""


def _groups(entries: Mapping[str, Any], convention: Convention, prefix: str) -> dict[str, _Group]:
    ours = {theirs: name for name, theirs in convention.entries.items()}
    collections = set(convention.collections.values())
    groups: dict[str, dict[str, str]] = {}
    for key in entries:
        whole = key.removesuffix(":0")  # TensorFlow numbers its variables: "bn/gamma:0"
        collection, *rest = re.split("[./]", whole, maxsplit=1)
        if collection in collections and rest:
            (whole,) = rest
        if not whole.startswith(prefix):
            continue
        *path, entry = re.split("[./]", whole.removeprefix(prefix))
        name = whole.removeprefix(prefix)[: -len(entry) - 1] if path else ""
        if entry in ours:
            groups.setdefault(name, {})[ours[entry]] = key
    return {
        name: _Group(sources, convention)
        for name, sources in groups.items()
        if "running_mean" in sources and "running_var" in sources
    }


def _state(
    name: str, group: _Group, eps: float, eps_given: bool, entries: Mapping[str, Any]
) -> BatchNormState:
    vectors: dict[str, _Vector | None] = dict.fromkeys(_VECTORS)
    batches = None
    for ours, key in group.sources.items():
        try:
            if ours == "num_batches_tracked":
                batches = _count(key, entries[key])
            else:
                vectors[ours] = as_floats(f"entry {shown(key)}", entries[key])
        except TypeError as error:
            raise CheckpointError(str(error)) from error
    mean, var = vectors["running_mean"], vectors["running_var"]
    assert mean is not None  # both make it a group
    assert var is not None
    for ours in ("running_mean", "running_var", "weight", "bias"):
        vector = vectors[ours]
        if vector is not None and (vector.ndim != 1 or vector.shape != mean.shape):
            raise CheckpointError(
                f"entry {shown(group.sources[ours])} must have one value per channel of batch norm "
                f"{shown(name)}, shape ({mean.size},), got {vector.shape}"
            )
    if not mean.size:
        raise CheckpointError(f"batch norm {shown(name)} must have channels, got none")
    return BatchNormState(
        name=name,
        running_mean=mean,
        running_var=var,
        weight=vectors["weight"],
        bias=vectors["bias"],
        num_batches_tracked=batches,
        convention=group.convention.name,
        eps=eps,
        momentum=group.convention.momentum if group.momentum is None else group.momentum,
        eps_given=eps_given,
    )


def _count(key: str, value: Any) -> int:
    array = as_array(f"entry {shown(key)}", value)
    if array.shape != () or array.dtype.kind not in "iu" or array < 0:
        raise CheckpointError(
            f"entry {shown(key)} must be a count, got {array.dtype} {array.shape}"
        )
    return int(array)
