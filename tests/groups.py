"""Groups of ranks: threads of this process, and what every kind of group is tested with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import rustbn
from judge import ULPS, assert_backward, assert_epilogue, assert_same_bits, assert_within, ulp
from oracle import Array

SECONDS = 20.0


class Threads:
    """A group whose ranks are threads; a rank that waits in vain gets BrokenBarrierError."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.gathered: list[list[int]] = []  # the sizes of what each collective gathered
        self._barrier = threading.Barrier(size, timeout=SECONDS)
        self._slots: list[Any] = [None] * size
        self._rank = threading.local()

    def allgather(self, sendobj: Any) -> list[Any]:
        rank = self._rank.value
        self._slots[rank] = sendobj
        self._barrier.wait()
        gathered = list(self._slots)
        if rank == 0:
            self.gathered.append([np.size(each) for each in gathered])
        self._barrier.wait()
        return gathered

    def run(self, program: Callable[[int], Any]) -> list[Any]:
        """Run the program in all ranks; return what each returned, or the exception it raised."""
        results: list[Any] = [None] * self.size

        def run(rank: int) -> None:
            self._rank.value = rank
            try:
                results[rank] = program(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def shards(values: Array, sizes: Sequence[int], along: int = 0) -> list[Array]:
    """Cut an array into parts of these sizes."""
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == values.shape[along]
    return [values.take(range(a, b), along) for a, b in pairwise(edges)]


def step(
    bn: rustbn.BatchNorm, p: cases.Problem, x: Array, dy: Array, residual: Array | None
) -> dict[str, Array]:
    """Train one step from the problem's vectors; return all that comes out."""
    running_mean, running_var, weight, bias = p.copied_vectors()
    bn.load_state_dict(
        {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    )
    y = bn(x, residual=residual)
    dx = bn.backward(dy)
    found = {"y": y}
    if residual is None:
        found["dx"] = dx
    else:
        found["dx"], found["dresidual"] = dx
    found |= dict(bn.state_dict()) | {f"{name}_grad": grad for name, grad in bn.named_grads()}
    assert found.pop("num_batches_tracked") == 1
    return found


# What is of the rank's own batch, and what is its share of the gradients; the rest is the group's.
OWN = ("y", "dx", "dresidual")
SHARES = ("weight_grad", "bias_grad")


def check(
    found: Sequence[dict[str, Array]],
    p: cases.Problem,
    residual: Array | None = None,
    activation: oracle.Activation = None,
) -> None:
    """Compare what the ranks found with BatchNorm on the whole batch, and with the formulas."""
    along = 1 if p.axis == 0 else 0
    whole = {
        name: np.concatenate([of_rank[name] for of_rank in found], along)
        for name in OWN
        if name in found[0]
    }
    whole |= {name: np.sum([f[name].astype(np.float64) for f in found], axis=0) for name in SHARES}
    for name, value in found[0].items():
        if name not in whole:
            whole[name] = value
            for of_rank in found:
                assert_same_bits(of_rank[name], value, f"{name} on every rank")

    # Moments that were merged differ in the last bits of float64, which seldom shows.
    options: dict[str, Any] = {"axis": p.axis, "dtype": p.weight.dtype, "activation": activation}
    single = step(rustbn.BatchNorm(p.x.shape[p.axis], **options), p, p.x, p.dy, residual)
    assert single.keys() == whole.keys()
    for name, value in single.items():
        size = abs(value.astype(np.float64)).max()
        ulps = len(found) + 1 if name in SHARES else ULPS
        assert_within(whole[name], value.astype(np.longdouble), ulps * ulp(size, value.dtype), name)

    exact = oracle.train(p.x, p.weight, p.bias, axis=p.axis)
    error = assert_epilogue(whole["y"], exact, residual, activation)
    z = exact.y if residual is None else exact.y + residual.astype(exact.y.dtype)
    # The product with a slope is rounded to float32 first where dy has 16 bits.
    dz = oracle.gate_backward(p.dy.astype(p.weight.dtype), z, activation).astype(p.dy.dtype)
    for corner in oracle.corners(activation):  # where the oracle may be on the other side
        unsure = abs(z - corner) <= error
        if residual is not None:
            dz[unsure] = whole["dresidual"][unsure]
        else:
            assert not unsure.any()
    if residual is not None:
        assert_same_bits(whole["dresidual"], dz, "dresidual")
    exact_gradients = oracle.train_backward(dz, p.x, p.weight, axis=p.axis)
    assert_backward(whole["dx"], None, None, exact_gradients)
    assert_within(
        whole["running_var"],
        oracle.running(p.running_var, oracle.unbiased(p.x, p.axis), 0.1),
        2 * ulp(whole["running_var"], whole["running_var"].dtype),
        "running_var",
    )


def program(
    group: Any,
    rank: int,
    sizes: Sequence[int],
    shape: tuple[int, ...],
    axis: int = 1,
    dtype: npt.DTypeLike = np.float32,
    activation: oracle.Activation = None,
    with_residual: bool = False,
) -> dict[str, Array]:
    """Train a step as one rank of a group, whose batch is sizes[rank] long."""
    p, residual = problem(shape, axis, dtype)
    along = 1 if axis == 0 else 0
    cut = [None if v is None else shards(v, sizes, along)[rank] for v in (p.x, p.dy, residual)]
    bn = rustbn.SyncBatchNorm(
        shape[axis], axis=axis, dtype=p.weight.dtype, activation=activation, group=group
    )
    x, dy, r = cut
    assert x is not None
    assert dy is not None
    return step(bn, p, x, dy, r if with_residual else None)


def problem(shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike) -> tuple[cases.Problem, Array]:
    """Return a batch with parameters in float32 or wider, and a residual."""
    p = cases.problem(shape, axis, dtype)
    wide = cases.parameter_dtype(dtype)
    vectors = (vector.astype(wide) for vector in p.vectors)
    p.running_mean, p.running_var, p.weight, p.bias = vectors
    return p, cases.problem(shape, axis, dtype, seed=1).x
