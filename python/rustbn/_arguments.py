"""Arguments as what they should be, or an exception that names them."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_array", "as_floats", "as_integer"]

# By name, because bfloat16 is ml_dtypes', which an array of it proves to be loaded.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def as_integer(name: str, value: object) -> int:
    """Return `value`, an int or NumPy's, as an int."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return `value`, an array or a CPU tensor, as an array."""
    if hasattr(value, "detach"):  # a tensor, which may require grad and then refuses NumPy
        value = value.detach()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor: {error}") from error


def as_floats(name: str, value: Any) -> NDArray[Any]:
    """Return `value` as an array of one of the floating dtypes up to float64."""
    array = as_array(name, value)
    if array.dtype.name not in _FLOATS:
        raise TypeError(f"{name} must have dtype {' or '.join(_FLOATS)}, got {array.dtype}")
    return array
