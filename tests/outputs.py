"""Large outputs with known contents, and where their memory comes from."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import rustbn
from numpy.random import default_rng  # imported here: a fork may find the import lock taken

# Where NumPy keeps its C interface depends on its version, and the stubs know neither place.
try:
    umath: Any = import_module("numpy._core._multiarray_umath")
except ImportError:
    umath = import_module("numpy.core._multiarray_umath")

MiB = 2**20
LARGE = MiB // 8


def handler(array: np.ndarray[Any, Any] | None = None) -> str:
    """Return the name of the handler of an array, or of the one that is current."""
    arguments = () if array is None else (array,)
    return str(umath.get_handler_name(*arguments))


def full(shape: tuple[int, ...], value: float) -> np.ndarray[Any, Any]:
    """Return a large output of one value."""
    zero = np.zeros(shape[1])
    affine = rustbn.Affine(zero, zero, zero + value)
    return affine(np.broadcast_to(np.float32(0), shape).copy())


def churn(worker: int, rounds: int, problems: list[str], held: int = 6) -> None:
    """Make and free outputs of many sizes, each full of a number that nobody else uses."""
    rng = default_rng(worker)
    mine: list[tuple[float, np.ndarray[Any, Any]]] = []
    for i in range(rounds):
        value = float(worker * rounds + i)
        y = full((1, 1, int(rng.choice([32, 33, 48, 64, 200])), 1024), value)
        mine.append((value, y))
        if len(mine) > held:
            value, y = mine.pop(int(rng.integers(len(mine))))
            if not (y == value).all():
                problems.append(f"{value} has been overwritten")
            del y
    problems += [f"{value} has been overwritten" for value, y in mine if not (y == value).all()]
