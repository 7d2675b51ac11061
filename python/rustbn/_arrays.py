"""Arrays that come from elsewhere: tensors, and dtypes that NumPy does not know."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_array", "as_floats"]

# By name, because bfloat16 is ml_dtypes', which an array of it proves to be loaded.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return `value`, an array or a CPU tensor, as an array; errors call it `name`."""
    if hasattr(value, "detach"):  # a tensor, which may require grad and then refuses NumPy
        value = value.detach()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor: {error}") from error


def as_floats(name: str, value: Any) -> NDArray[Any]:
    """Do what `as_array` does, and refuse any dtype but the floating ones up to float64."""
    array = as_array(name, value)
    if array.dtype.name not in _FLOATS:
        raise TypeError(f"{name} must have dtype {' or '.join(_FLOATS)}, got {array.dtype}")
    return array
