"""Arguments as what they should be, or an exception that names them."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "as_array",
    "as_bfloat16",
    "as_floats",
    "as_integer",
    "as_real",
    "check_eps",
    "check_str",
    "from_void",
]

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


def as_real(name: str, value: Any) -> float:
    """Return `value`, a real number of any kind but bool, as a float; infinite if too large."""
    try:
        if not isinstance(value, bool | np.bool_ | str | bytes):
            return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a real number, got {type(value).__name__}")


def check_eps(eps: Any) -> None:
    """Refuse what can be no eps, neither in training nor in evaluation."""
    if not 0.0 <= as_real("eps", eps) < math.inf:
        raise ValueError(f"eps must be 0 or more and finite, got {eps}")


def check_str(name: str, value: object) -> None:
    """Refuse what is no str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return `value`, an array or a CPU tensor, as an array; a tensor of bfloat16 in float32."""
    if hasattr(value, "detach"):  # a tensor, which may require grad and then refuses NumPy
        value = value.detach()
        if str(getattr(value, "dtype", None)) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor: {error}") from error


def as_floats(name: str, value: Any) -> NDArray[Any]:
    """Return `value` as an array of one of the floating dtypes up to float64."""
    array = from_void(as_array(name, value))
    if array.dtype.name not in _FLOATS:
        raise TypeError(f"{name} must have dtype {' or '.join(_FLOATS)}, got {array.dtype}")
    return array


def from_void(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of 2-byte voids, which bfloat16 is in files of NumPy, as bfloat16."""
    return as_bfloat16(array.view(np.uint16)) if array.dtype == "V2" else array


def as_bfloat16(bits: NDArray[np.uint16]) -> NDArray[Any]:
    """Return the bfloat16 of these bits: ml_dtypes' where that is loaded, else float32."""
    ml_dtypes = sys.modules.get("ml_dtypes")
    if ml_dtypes is not None:
        return bits.view(ml_dtypes.bfloat16)
    return (bits.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
