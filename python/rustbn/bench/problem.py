"""The arrays of a case, shared by all contestants, and the float64 answers they must give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rustbn.bench.shapes import Case

Array: TypeAlias = npt.NDArray[Any]

EPS = 1e-5
MOMENTUM = 0.1
SEED = 20150211
# Elements that are taken to float64 at a time: the answers cost no memory to speak of.
BLOCK = 1 << 20


class WrongResultError(AssertionError):
    """A contestant's result is not the float64 answer; the message names both."""


@dataclass(frozen=True)
class Problem:
    """Arrays of shape (N, C, ...) in the memory order of the case, and vectors (C,).

    `out` is the one output that exists beforehand: all contestants write to the same memory, so
    none has luckier pages than another.
    """

    case: Case
    x: Array
    dy: Array
    out: Array
    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array

    @staticmethod
    def make(case: Case) -> Problem:
        """Make arrays up: x has another mean and deviation in each channel, dy feels x."""
        rng = np.random.default_rng(SEED)
        channels = case.shape[1]
        mean, std = rng.uniform(-2, 2, channels), rng.uniform(1, 3, channels)
        x, dy = (_empty(case, np.float32) for _ in range(2))
        for noise in (x, dy):
            rng.standard_normal(dtype=np.float32, out=flat(noise))
        dy += 0.5 * x
        dy += 0.25
        x *= along_channels(std.astype(np.float32), x.ndim)
        x += along_channels(mean.astype(np.float32), x.ndim)
        dtype = bfloat16() if case.dtype == "bfloat16" else np.dtype(case.dtype)
        x, dy = (array.astype(dtype, copy=False) for array in (x, dy))
        out = _filled(case, dtype)
        weight, bias = rng.uniform(0.5, 1.5, channels), rng.normal(size=channels)
        of_vectors = np.float64 if case.dtype == "float64" else np.float32
        vectors = (v.astype(of_vectors) for v in (weight, bias, mean, 4 * std**2))
        return Problem(case, x, dy, out, *vectors)

    @cached_property
    def widened(self) -> Problem:
        """Return the same values in float32 arrays."""
        case = replace(self.case, dtype="float32")
        x, dy = (array.astype(np.float32) for array in (self.x, self.dy))
        return replace(self, case=case, x=x, dy=dy, out=_filled(case, np.float32))


@dataclass(frozen=True)
class Answers:
    """What a pass must give, computed in float64 and kept in float32.

    `sizes` has the magnitude of the terms that each answer is a sum of, which errors are relative
    to.
    """

    y: Array
    y_eval: Array
    dx: Array
    dweight: Array
    dbias: Array
    sizes: dict[str, float]

    @staticmethod
    def of(problem: Problem) -> Answers:
        """Compute them from the formulas (Ioffe & Szegedy 2015, Algorithm 1 and section 3)."""
        x, dy, ndim = problem.x, problem.dy, problem.x.ndim
        count = x.size // x.shape[1]
        axes = (0, *range(2, ndim))

        def spread(values: Array) -> Array:
            return along_channels(values, ndim)

        def total(terms: Iterator[Array]) -> Array:
            sums: Array = np.sum([block.sum(axes) for block in terms], axis=0)
            return sums

        mean = total(_f64(x[rows]) for rows in blocks(x)) / count
        var = total(np.square(_f64(x[rows]) - spread(mean)) for rows in blocks(x)) / count
        invstd = 1 / np.sqrt(var + EPS)
        dbias = total(_f64(dy[rows]) for rows in blocks(x))
        dweight = invstd * total(
            _f64(dy[rows]) * (_f64(x[rows]) - spread(mean)) for rows in blocks(x)
        )
        weight, bias = problem.weight.astype(np.float64), problem.bias.astype(np.float64)
        running_mean = problem.running_mean.astype(np.float64)
        scale = weight / np.sqrt(problem.running_var.astype(np.float64) + EPS)
        y, y_eval, dx = (np.empty_like(x, np.float32) for _ in range(3))
        for rows in blocks(x):
            xhat = (_f64(x[rows]) - spread(mean)) * spread(invstd)
            y[rows] = xhat * spread(weight) + spread(bias)
            y_eval[rows] = (_f64(x[rows]) - spread(running_mean)) * spread(scale) + spread(bias)
            centred = _f64(dy[rows]) - spread(dbias / count) - xhat * spread(dweight / count)
            dx[rows] = centred * spread(weight * invstd)
        terms = float(total(abs(_f64(dy[rows])) for rows in blocks(x)).max())
        sizes = {
            "y": float(abs(y).max()),
            "dx": float((weight * invstd).max() * abs(dy).max()),
            "dweight": terms,
            "dbias": terms,
        }
        return Answers(y, y_eval, dx, dweight, dbias, sizes)

    def check(self, pass_: str, results: Mapping[str, Any], tolerance: float) -> None:
        """Raise unless `results` are the answers to a pass.

        Parameters
        ----------
        pass_ : str
            Of `rustbn.bench.contestant.PASSES`.
        results : mapping of array_like
            One for each answer: y, dx, dweight, dbias, as the pass has them.
        tolerance : float
            Greatest error, relative to the terms of the answer. Results of 16 bits may be half a
            unit further away: they are the answer rounded once more.

        Raises
        ------
        WrongResultError
            If a result is missing, of another shape, or further away than the tolerance.
        """
        for name, answer in self.of_pass(pass_).items():
            result = np.asarray(results[name]) if results.get(name) is not None else None
            if result is None or result.shape != answer.shape:
                shape = None if result is None else result.shape
                raise WrongResultError(f"{name} has shape {shape}, not {answer.shape}")
            half_unit = _eps(result.dtype) / 2 if result.dtype.itemsize == 2 else 0.0
            error = max(_error(result[r], answer[r], half_unit) for r in blocks(answer))
            allowed = tolerance * self.sizes[name]
            if not error <= allowed:  # not ">", so that NaN is wrong
                raise WrongResultError(f"{name} is off by {error:.2g}; {allowed:.2g} is allowed")

    def of_pass(self, pass_: str) -> dict[str, Array]:
        """Return the answers to a pass by name."""
        gradients = {"dx": self.dx, "dweight": self.dweight, "dbias": self.dbias}
        return {
            "forward": {"y": self.y},
            "eval": {"y": self.y_eval},
            "backward": gradients,
            "step": {"y": self.y} | gradients,
        }[pass_]


def flat(array: Array) -> Array:
    """Return the dense memory of an (N, C, ...) array of either layout as one axis, as a view."""
    if not array.flags.c_contiguous:
        array = np.moveaxis(array, 1, -1)
    if not array.flags.c_contiguous:  # reshape would copy
        raise ValueError("array must be dense, channels first or last")
    return array.reshape(-1)


def along_channels(values: Array, ndim: int) -> Array:
    """Return (C,) so that it broadcasts along axis 1 of an array of `ndim` dimensions."""
    return values.reshape(1, -1, *[1] * (ndim - 2))


def blocks(array: Array) -> Iterator[slice]:
    """Yield slices of the first axis, of about `BLOCK` elements each."""
    rows = max(1, BLOCK * len(array) // max(1, array.size))
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)


def _f64(values: Array) -> Array:
    return values.astype(np.float64)


def _error(result: Array, answer: Array, half_unit: float) -> float:
    """Return the largest error beyond what rounding to 16 bits adds; NaN if there is one."""
    error = abs(result.astype(np.float32, copy=False) - answer)
    return float((error - half_unit * abs(answer) if half_unit else error).max())


def bfloat16() -> np.dtype[Any]:
    """Return the dtype of ml_dtypes, which is imported only where it is asked for."""
    found: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    return found


@cache
def _eps(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1 to the next number."""
    one = np.ones((), dtype)
    return float(np.nextafter(one, 2 * one)) - 1


def _filled(case: Case, dtype: npt.DTypeLike) -> Array:
    """Return zeros whose pages are there."""
    array = _empty(case, dtype)
    array[...] = 0
    return array


def _empty(case: Case, dtype: npt.DTypeLike) -> Array:
    if case.layout == "nhwc":
        n, c, *spatial = case.shape
        return np.moveaxis(np.empty((n, *spatial, c), dtype), -1, 1)
    return np.empty(case.shape, dtype)
