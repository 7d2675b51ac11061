"""Population statistics for batch norms, from a pass over the data.

The running statistics of a training are a moving average: of few batches, of weights that have
changed since, and of variances within batches only. `recompute_statistics` replaces them by the
statistics of all the data under the weights as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rustbn.functional import Moments
from rustbn.modules import BatchNorm

__all__ = ["recompute_statistics"]

_Batch = TypeVar("_Batch")

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with how many batches are done, and of how many, None where that is not known."""


def recompute_statistics(
    modules: Iterable[BatchNorm] | Mapping[str, BatchNorm],
    batches: Iterable[_Batch],
    forward: Callable[[_Batch], object],
    *,
    progress: bool | Progress = False,
) -> None:
    """Give batch norms the population statistics of the data as their running statistics.

    Parameters
    ----------
    modules : iterable or mapping of BatchNorm
        The batch norms of the network, each once. Frozen ones are left as they are.
    batches : iterable
        The data, in batches of any sizes; in random order, if the order has a meaning.
    forward : callable
        Called with each batch; runs the network, and with it `modules`, forward. Meanwhile these
        are in training mode, and must stay in it: they normalise with the batch, whatever their
        `renorm`.
    progress : bool or callable, default False
        True writes a line that counts the batches to standard error, False nothing. A callable is
        called with the number of batches done and that of all batches, None where `batches` has no
        length, after each.

    Raises
    ------
    TypeError
        If `modules` has anything but batch norms, or `batches`, `forward` or `progress` is none of
        these.
    ValueError
        If `modules` is empty; if a module saw fewer than two values per channel.
    RuntimeError
        If a module has no running statistics.
    FloatingPointError
        If statistics are not finite, in a module whose `on_nonfinite` is "raise".

    Notes
    -----
    Every module merges the moments of all it sees (Chan, Golub & LeVeque 1983, eq. 2.1), so its
    mean and variance are those of all values together, to rounding, whatever the sizes of batches.
    Averages over batches, as of ``torch.optim.swa_utils.update_bn``, leave out the variance between
    batches and weigh a short last batch like the others. What a module sees does depend on the
    batches, if modules before it normalise with them.

    The running variance is the unbiased one, or the biased one where the module's `convention` has
    that. `num_batches_tracked` becomes the number of batches. All else, the mode and what
    `backward` needs included, is as before; after an exception everything is.

    A `SyncBatchNorm` merges the moments of all ranks, which all call this with as many batches.

    Examples
    --------
    >>> import numpy as np
    >>> import rustbn
    >>> bn = rustbn.BatchNorm(1)
    >>> data = np.arange(10.0, dtype=np.float32).reshape(10, 1)
    >>> rustbn.recompute_statistics([bn], np.split(data, [4, 8]), bn)
    >>> bn.running_mean, bn.running_var
    (array([4.5], dtype=float32), array([9.166667], dtype=float32))
    """
    named = _named(modules)
    if not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
        raise TypeError(f"batches must be iterable, got {type(batches).__name__}")
    if not callable(forward):
        raise TypeError(f"forward must be callable, got {type(forward).__name__}")
    if not isinstance(progress, bool | np.bool_) and not callable(progress):
        raise TypeError(f"progress must be a bool or callable, got {type(progress).__name__}")
    for module in named.values():
        module._running_statistics("recompute_statistics")
        for name in ("running_mean", "running_var"):
            module._own(name)
    kept = [(module, module.training, module._context) for module in named.values()]
    total = _length(batches)
    line = None if callable(progress) or not progress else _Line()
    report: Progress | None = progress if callable(progress) else line
    done = 0
    try:
        for module in named.values():
            nothing = np.zeros(module.num_features)
            module._population = Moments(0, nothing, nothing)
            module.train()
        for done, batch in enumerate(batches, start=1):
            forward(batch)
            if report is not None:
                report(done, total)
        found = [_Statistics.of(name, module) for name, module in named.items()]
    finally:
        if line is not None:
            line.end()
        for module, training, context in kept:
            module._population = None
            module.training = training
            module._context = context
    # Nothing can fail from here on.
    for statistics in found:
        statistics.put(done)


class _Statistics(NamedTuple):
    """What the running statistics of a module are to become."""

    module: BatchNorm
    vectors: dict[str, NDArray[Any]]
    kept: NDArray[np.bool_]  # channels that are left as they are

    @classmethod
    def of(cls, name: str, module: BatchNorm) -> Self:
        moments = module._population
        assert moments is not None
        if moments.count < 2:
            raise ValueError(
                f"batches must give {name} at least 2 values per channel in training mode, "
                f"got {moments.count}"
            )
        values = {
            "running_mean": moments.mean,
            "running_var": moments.var(0 if module._convention().biased else 1),
        }
        with np.errstate(over="ignore"):  # infinity, as in training
            vectors = {key: value.astype(module._own(key).dtype) for key, value in values.items()}
        kept = module._spoilt(vectors["running_mean"], vectors["running_var"])
        return cls(module, vectors, kept)

    def put(self, batches: int) -> None:
        for name, vector in self.vectors.items():
            np.copyto(self.module._own(name), vector, where=~self.kept)
        self.module.num_batches_tracked = batches


def _named(modules: Iterable[BatchNorm] | Mapping[str, BatchNorm]) -> dict[str, BatchNorm]:
    """Return the modules that are not frozen, each once, by what to call them."""
    if isinstance(modules, BatchNorm) or not isinstance(modules, Iterable):
        kind = type(modules).__name__
        raise TypeError(f"modules must be an iterable or a mapping of batch norms, got {kind}")
    if isinstance(modules, Mapping):
        named = {f"modules[{key!r}]": module for key, module in modules.items()}
    else:
        named = {f"modules[{index}]": module for index, module in enumerate(modules)}
    for name, module in named.items():
        if not isinstance(module, BatchNorm):
            raise TypeError(f"{name} must be a batch norm, got {type(module).__name__}")
    if not named:
        raise ValueError("modules must have at least one batch norm, got none")
    once = {id(module): name for name, module in reversed(named.items())}
    return {name: named[name] for name in reversed(once.values()) if not named[name].frozen}


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a stream, or a data loader that finds no length in its data set
        return None


class _Line:
    """A line on standard error that counts batches, written anew up to ten times a second."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = 0.0
        self._text = ""

    def __call__(self, done: int, total: int | None) -> None:
        seconds = time.monotonic() - self._start
        of = "" if total is None else f" of {total}"
        self._text = f"\rrecompute_statistics: {done}{of} batches, {seconds:.1f} s"
        if seconds >= self._next:
            self._next = seconds + 0.1
            self._write(self._text)

    def end(self) -> None:
        """Write the last count, and end the line."""
        if self._text:
            self._write(self._text + "\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
