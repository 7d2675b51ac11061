"""Batch normalization with the statistics of a batch that is spread over processes.

`SyncBatchNorm` is `BatchNorm` over the batches of all ranks of a group together. Each rank measures
its part; the parts' moments are exchanged, and every rank merges them in the order of ranks, so all
have the same statistics to the last bit. They are those of the whole batch, whatever the parts'
sizes (Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1).
Backward exchanges the two sums that gradients through the statistics are made of.

A group is whatever can gather an object from each of its ranks, as communicators of mpi4py and
process groups of torch.distributed can.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, reduce
from operator import add
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rustbn._rustbn import module_forward, part_backward, part_forward
from rustbn.functional import Context, Gradients, GradSums, Moments, batch_norm_backward
from rustbn.modules import _EPS, _MOMENTUM, BatchNorm, _Activation, _Array, _FloatArray

__all__ = ["SyncBatchNorm"]

_Vector: TypeAlias = NDArray[np.float64]

# What a rank sends in the place of its count: that it has raised an exception; that it has values,
# none of which its mask counts (one that has no values sends 0); that these are a backward's sums.
_RAISED, _NONE_COUNTED, _SUMS = -1.0, -2.0, -3.0


class _Gather(Protocol):
    """How a group gathers the equally long vectors of its ranks as rows, in the order of ranks."""

    def __call__(self, row: _Vector, /) -> _Vector: ...


class SyncBatchNorm(BatchNorm):
    """Batch normalization with the statistics of the batches of all ranks of a group.

    Every rank makes the module alike, and calls it as often as the others, with batches of any
    size, 0 included. y, dx and running statistics are those that `BatchNorm` has for all batches
    concatenated. `weight_grad` and `bias_grad` are this rank's share: their sum over the ranks is
    the gradient, which is up to the training loop, as with all other parameters.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, bias, axis, dtype, activation, \
convention, on_nonfinite, renorm
        As in `BatchNorm`.
    group : None, communicator or process group, default None
        An object with ``allgather(object) -> list`` in the order of ranks; a communicator of mpi4py
        is one, and gathers buffers rather than pickles; or a process group of
        ``torch.distributed`` with a backend for CPU tensors, such as gloo. None is a group of one.

    Attributes
    ----------
    group
        As given; may be replaced, on all ranks alike. After unpickling a mark that it is lost.

    Raises
    ------
    TypeError
        If `group` is nothing of the kind.

    See Also
    --------
    BatchNorm : The module this is one of; parameters, attributes and methods are explained there.

    Notes
    -----
    A training forward gathers 2 C + 1 float64 from each rank, and its backward as many; the first
    forward of all also checks that the ranks have the same `num_features`. In eval and when frozen
    nothing is exchanged. There is no `group_size`: ghost batches are less than a rank's batch.

    What is wrong with a call on one rank, such as a batch of another dtype, is known before the
    exchange. That rank raises its exception and the others a `RuntimeError` that tells of it, and
    none is left waiting; no module has changed. So it is where some ranks call forward and others
    backward. A rank that does not call, or is in eval or frozen, is waited for.

    Copies made by `copy` share the group. A group belongs to the processes that are in it, so a
    pickle leaves it out, and a module that was unpickled wants its `group` set before it trains.

    Examples
    --------
    With mpi4py, under ``mpiexec -n 2 python -m mpi4py train.py``::

        from mpi4py import MPI

        bn = rustbn.SyncBatchNorm(64, group=MPI.COMM_WORLD)

    A group of one:

    >>> import numpy as np
    >>> from rustbn import SyncBatchNorm
    >>> SyncBatchNorm(2)(np.array([[1.0, 10.0], [3.0, 50.0]], dtype=np.float32)).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    # Whether this rank has an exchange before it that the other ranks will be waiting in.
    _expected: bool = False

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
        renorm: tuple[float, float] | None = None,
        group: Any = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            bias=bias,
            axis=axis,
            dtype=dtype,
            activation=activation,
            convention=convention,
            on_nonfinite=on_nonfinite,
            renorm=renorm,
        )
        self.group = group

    @property
    def group(self) -> Any:
        """The group whose batches are normalised together, None for this rank's alone.

        After unpickling it is neither, but a mark that it is lost, until it is set.
        """
        return self._link.group

    @group.setter
    def group(self, group: Any) -> None:
        self._link = _Link(group)

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
        """Normalise `x`, in training by the statistics of the batches of all ranks.

        Parameters
        ----------
        x, residual, mask, lengths, update, out
            As in `BatchNorm.forward`; each rank has its own.

        Returns
        -------
        numpy.ndarray
            y, of x's shape, dtype and memory order.

        Raises
        ------
        ValueError, TypeError, FloatingPointError, numpy.exceptions.AxisError
            As in `BatchNorm.forward`. Too few values per channel are those of the group.
        ValueError
            If the ranks differ in `num_features`.
        RuntimeError
            If another rank has raised an exception or is in backward, or the module was unpickled
            and its `group` not set.
        TypeError, ValueError
            If the group's `allgather` returns anything but an array of the right shape of each
            rank.
        """
        exchanges = self.training and not self._frozen and not self._link.alone
        with self._one_exchange() if exchanges else nullcontext():
            return super().forward(
                x, residual=residual, mask=mask, lengths=lengths, update=update, out=out
            )

    def backward(self, dy: _Array, *, out: _FloatArray | None = None) -> Any:
        """Return the gradient for the latest forward's `x`, and add those of the parameters.

        Parameters
        ----------
        dy, out
            As in `BatchNorm.backward`; each rank has its own.

        Returns
        -------
        numpy.ndarray, or a tuple of two
            dx, through the statistics of all batches; ``(dx, dresidual)`` if the forward had a
            residual.

        Raises
        ------
        ValueError, TypeError
            As in `BatchNorm.backward`.
        RuntimeError
            As in `BatchNorm.backward`, or if another rank has raised an exception or is in forward;
            `out` may have been written to then.
        """
        if self._link.alone or (self._context is not None and self._context.moments is None):
            return super().backward(dy, out=out)
        with self._one_exchange():
            return super().backward(dy, out=out)

    def _normalise(self, x: _Array, *arguments: Any) -> tuple[_FloatArray, Context]:
        if self._link.alone:
            return module_forward(x, *arguments)
        *of_part, _, group_size = arguments  # part_forward takes all but the last two
        if group_size is not None:
            raise ValueError(f"group_size must be None in a SyncBatchNorm, got {group_size}")
        return part_forward(partial(self._merge, x), x, *of_part)

    def _differentiate(self, dy: _Array, context: Context, *, out: _FloatArray | None) -> Gradients:
        if self._link.alone or context.moments is None:
            return batch_norm_backward(dy, context, out=out)
        return part_backward(self._add, dy, context, out=out)

    def _merge(self, x: _Array, moments: Moments) -> Moments:
        """Return the moments of the group, given this rank's batch and its moments."""
        count = _NONE_COUNTED if math.prod(np.shape(x)) and not moments.count else moments.count
        counts, means, m2s = self._exchange(count, moments.mean, moments.m2)
        parts = map(Moments, [max(0, int(n)) for n in counts], means, m2s)
        whole = reduce(Moments.merge, parts)
        if whole.count == 1 or (whole.count == 0 and _NONE_COUNTED in counts):
            raise ValueError(
                "x must have at least 2 values per channel that count, over all ranks of the "
                f"group, for batch statistics in training, got {whole.count}"
            )
        return whole

    def _add(self, sums: GradSums) -> GradSums:
        """Return the sums of the group, given those of this rank's batch."""
        _, sum_dy, sum_dy_xmu = self._exchange(_SUMS, sums.sum_dy, sums.sum_dy_xmu)
        return reduce(add, map(GradSums, sum_dy, sum_dy_xmu))

    def _exchange(
        self, head: float, first: _Vector, second: _Vector
    ) -> tuple[list[float], _Vector, _Vector]:
        """Gather what all ranks give, in the order of ranks."""
        self._expected = False
        rows = self._link.gather(np.concatenate(([head], first, second)))
        heads = rows[:, 0].tolist()
        if _RAISED in heads:
            rank = heads.index(_RAISED)
            raise RuntimeError(f"rank {rank} of the group has raised {_text(rows[rank, 1:])}")
        if 0 < heads.count(_SUMS) < len(heads):
            backward = [rank for rank, head in enumerate(heads) if head == _SUMS]
            raise RuntimeError(
                f"ranks {backward} of the group are in backward, the others in forward: all ranks "
                "must make the same calls"
            )
        return heads, *np.split(rows[:, 1:], 2, axis=1)

    @contextmanager
    def _one_exchange(self) -> Iterator[None]:
        """Do what comes to one exchange; on an exception before it, exchange that."""
        self._link.check()
        self._expected = True
        try:
            yield
        except Exception as error:
            if self._expected:
                row = np.full(2 * self.num_features + 1, _RAISED)
                _write_text(row[1:], f"{type(error).__name__}: {error}")
                with suppress(Exception):  # what went wrong here first is what matters
                    self._link.gather(row)
            raise
        finally:
            del self._expected


class _Link:
    """A module's group, and how it gathers.

    Stays the same object when the module is copied, and is broken when it is pickled.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.alone = group is None
        if group is not None:
            self._gather = _gathering(group)
        self._agreed = False

    def check(self) -> None:
        """Raise RuntimeError if there is no group to gather from."""

    def gather(self, row: _Vector) -> _Vector:
        """Return the rows of all ranks, once they have been found equally long."""
        if not self._agreed:
            lengths = self._gather(np.array([row.size], np.float64))[:, 0]
            if np.any(lengths != lengths[0]):
                features = [int(length) // 2 for length in lengths]
                raise ValueError(f"num_features must be the same on all ranks, got {features}")
            self._agreed = True
        return self._gather(row)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Link, (None,)) if self.alone else (_Broken, ())


class _Lost:
    """What `group` is in a module that was unpickled."""

    def __repr__(self) -> str:
        return "<lost in a pickle>"


class _Broken(_Link):
    """What is left of a group in another process."""

    def __init__(self) -> None:
        super().__init__(None)
        self.alone = False
        self.group = _Lost()

    def check(self) -> None:
        raise RuntimeError(
            f"group must be set after unpickling, None for a group of one, got {self.group}"
        )


def _gathering(group: Any) -> _Gather:
    """Return how `group` gathers vectors.

    Raises
    ------
    TypeError
        If it is neither a process group of torch nor an object with `allgather`.
    """
    # Who has a process group has loaded torch.
    torch = sys.modules.get("torch")
    process_group = getattr(getattr(torch, "distributed", None), "ProcessGroup", ())
    if isinstance(group, process_group):
        return partial(_gather_tensors, torch, group)
    if isinstance(group, type) or not callable(getattr(group, "allgather", None)):
        raise TypeError(
            "group must be None, have a method allgather(object) -> list, or be a process group of "
            f"torch.distributed, got {type(group).__name__}"
        )
    # As mpi4py has them: capital letters for buffers.
    if callable(getattr(group, "Allgather", None)) and callable(getattr(group, "Get_size", None)):
        return partial(_gather_buffers, group)
    return partial(_gather_objects, group)


def _gather_objects(group: Any, row: _Vector) -> _Vector:
    gathered: Collection[_Vector] = group.allgather(row)
    expected = f"group.allgather must return a list of an array of shape {row.shape} for each rank"
    if not isinstance(gathered, Collection):
        raise TypeError(f"{expected}, got {type(gathered).__name__}")
    with suppress(TypeError, ValueError):
        rows = np.array(gathered, np.float64)
        if len(rows) and rows.shape[1:] == row.shape:
            return rows
    got = [
        f"shape {each.shape}" if isinstance(each, np.ndarray) else type(each).__name__
        for each in gathered
    ]
    raise ValueError(f"{expected}, got {', '.join(got) or 'none'}")


def _gather_buffers(group: Any, row: _Vector) -> _Vector:
    rows = np.empty((group.Get_size(), row.size))
    group.Allgather(row, rows)
    return rows


def _gather_tensors(torch: Any, group: Any, row: _Vector) -> _Vector:
    rows = np.empty((group.size(), row.size))
    torch.distributed.all_gather(list(torch.from_numpy(rows)), torch.from_numpy(row), group=group)
    return rows


def _write_text(row: _Vector, text: str) -> None:
    """Write as much of `text` as there is room for into the bytes of `row`."""
    room = row.view(np.uint8)
    encoded = text.encode()[: room.size]
    room[:] = 0
    room[: len(encoded)] = np.frombuffer(encoded, np.uint8)


def _text(row: _Vector) -> str:
    found = row.tobytes()
    cut = "..." if found[-1] else ""
    return found.rstrip(b"\0").decode(errors="ignore") + cut
