"""How far from the oracle a result may lie: every tolerance of the suite is stated here.

A result may be `ULPS` units in the last place away, at the magnitude of the terms it is made of
(per channel). Statistics are float64 whatever x is: the mean may be `ULPS` float64 ULP away at the
magnitude of |mean| + std, and m2 `M2_ULPS`. That shows in float64 results only, where |mean| / std
is the condition number of batch normalization.
"""

from __future__ import annotations

from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import oracle
from oracle import Array

T = TypeVar("T")

ULPS = 4.0
M2_ULPS = 8.0


def present(result: T | None) -> T:
    """Return a result that must be there, such as a gradient."""
    assert result is not None
    return result


def ulp(size: npt.ArrayLike, dtype: npt.DTypeLike) -> Array:
    """Return the unit in the last place of `dtype` at magnitude `size`, in the widest precision."""
    # No more than that of the largest numbers, the spacing of which is too large for NumPy.
    limited = np.minimum(np.abs(np.asarray(size)), 0.75 * float(ml_dtypes.finfo(dtype).max))
    spacing: Array = np.spacing(limited.astype(dtype))
    return spacing.astype(np.longdouble)


def assert_within(actual: Array, exact: Array, allowed: Any, what: str = "result") -> None:
    """Assert |actual - exact| <= allowed everywhere; the message shows the worst element."""
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, not {exact.shape}"
    error = np.abs(actual.astype(exact.dtype) - exact)
    allowed = np.broadcast_to(allowed, exact.shape)
    wrong = ~(error <= allowed)  # not "error > allowed", so that NaN is wrong
    if wrong.any():
        excess = np.where(np.isnan(error), np.inf, error / np.maximum(allowed, 1e-320))
        worst = np.unravel_index(np.argmax(np.where(wrong, excess, 0)), exact.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} elements are wrong, the worst at {worst}: "
            f"{actual[worst]!r} instead of {exact[worst]!r}, {excess[worst]:.3g} x what is allowed"
        )


def y_size(exact: oracle.Forward) -> Array:
    """Return the scale of each channel of a forward result, broadcastable to y."""
    others = tuple(i for i in range(exact.y.ndim) if i != exact.axis % exact.y.ndim)
    size = np.maximum(abs(exact.y).max(axis=others), abs(exact.bias))
    return oracle.per_channel(size, exact.y.ndim, exact.axis)


def assert_moments(
    mean: Array,
    m2: Array,
    exact: tuple[int, Array, Array],
    what: str = "",
    merged: bool = False,
) -> None:
    """Assert that float64 statistics are right to a few float64 ULP.

    The means of parts that were `merged` were float64 themselves: their distances, and so m2, feel
    that by the condition number |mean| / std.
    """
    count, exact_mean, exact_m2 = exact
    std = np.sqrt(exact_m2 / count)
    size = exact_m2 + np.sqrt(exact_m2 * count) * abs(exact_mean) * merged
    assert_within(mean, exact_mean, ULPS * ulp(abs(exact_mean) + std, np.float64), f"mean {what}")
    assert_within(m2, exact_m2, M2_ULPS * ulp(size, np.float64), f"m2 {what}")


def _of_statistics(exact: oracle.Forward) -> Array:
    """Return what `assert_moments` allows, as an error of xhat at xhat = 1."""
    offset = 1 + abs(exact.mean) * exact.invstd
    return ULPS * ulp(offset, np.float64) + M2_ULPS / 2 * ulp(1.0, np.float64)


def normalised_error(exact: oracle.Forward, dtype: npt.DTypeLike) -> Array:
    """Return how far a normalised value may lie from the exact one, in units of y."""
    gain = oracle.per_channel(_of_statistics(exact), exact.y.ndim, exact.axis)
    size = y_size(exact)
    return np.asarray(ULPS * ulp(size, dtype) + size * gain)


def assert_forward(y: Array, exact: oracle.Forward, what: str = "y") -> None:
    """Assert that `y` is right to a few ULP of its channel's scale."""
    assert_within(y, exact.y, normalised_error(exact, y.dtype), what)


# The largest slope of each activation whose largest is not 1.
_STEEPEST: dict[oracle.Activation, float] = {"silu": 1.1, "hardswish": 1.5, "sigmoid": 0.25}


def assert_epilogue(
    y: Array,
    exact: oracle.Forward,
    residual: Array | None,
    activation: oracle.Activation,
    what: str = "y",
) -> Array:
    """Assert that `y` is the activation of the normalised values and the residual.

    Adding the residual rounds once more, and the activation at most twice. Returns how far the
    activation's argument may have been from the exact one.
    """
    z, error = exact.y, normalised_error(exact, y.dtype)
    if residual is not None:
        z = z + residual.astype(z.dtype)
        error = error + ulp(z, y.dtype)
    wanted = oracle.activate(z, activation)
    allowed = _STEEPEST.get(activation, 1.0) * error + 2 * ulp(wanted, y.dtype)
    assert_within(y, wanted, allowed, what)
    return np.asarray(error)


def assert_backward(
    dx: Array | None,
    dweight: Array | None,
    dbias: Array | None,
    exact: oracle.Backward,
    what: str = "",
) -> None:
    """Assert that every gradient that is there is right to a few ULP of its terms."""
    forward = exact.forward
    gain = _of_statistics(forward)
    if dx is not None:
        allowed = ULPS * ulp(exact.dx_terms, dx.dtype) + exact.dx_terms * gain
        allowed = oracle.per_channel(allowed, dx.ndim, forward.axis)
        assert_within(dx, exact.dx, allowed, f"dx {what}")
    if dweight is not None:
        # Products of subnormals are rounded to a multiple of the smallest one.
        underflow = np.finfo(np.float64).smallest_subnormal * exact.count * forward.invstd
        terms = ULPS * ulp(exact.dweight_terms, np.float64) + exact.dbias_terms * gain
        allowed = ulp(exact.dweight, dweight.dtype) + terms + underflow
        assert_within(dweight, exact.dweight, allowed, f"dweight {what}")
    if dbias is not None:
        allowed = ulp(exact.dbias, dbias.dtype) + ULPS * ulp(exact.dbias_terms, np.float64)
        assert_within(dbias, exact.dbias, allowed, f"dbias {what}")


def assert_same_bits(actual: Array | None, expected: Array | None, what: str = "result") -> None:
    """Assert equal dtype, shape and bits, whatever the memory order; NaN payloads are ignored."""
    if actual is None or expected is None:
        assert actual is expected, f"{what}: one is None"
        return
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, not {expected.shape}"
    same = (actual == expected) & (np.signbit(actual) == np.signbit(expected))
    same |= np.isnan(actual) & np.isnan(expected)
    assert same.all(), f"{what}: {(~same).sum()} of {same.size} elements differ"
