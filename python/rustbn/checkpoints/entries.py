"""Arrays of a checkpoint by name, each of which stays in its file until it is asked for.

An entry is read anew each time. bfloat16 becomes ml_dtypes' where that is loaded (not merely
installed: what a program gets must not depend on what else is), else float32, which holds every
bfloat16.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from rustbn._arguments import as_bfloat16
from rustbn.checkpoints.errors import CheckpointError, naming, shown

__all__ = ["DTYPES", "Entries", "Entry", "Span", "numbers", "read_exactly"]

# Bytes of an element, and NumPy's code of what they are read as: bfloat16 as bits.
DTYPES: Mapping[str, tuple[int, str]] = {
    "float64": (8, "f8"),
    "float32": (4, "f4"),
    "float16": (2, "f2"),
    "bfloat16": (2, "u2"),
    "int64": (8, "i8"),
    "int32": (4, "i4"),
    "int16": (2, "i2"),
    "int8": (1, "i1"),
    "uint64": (8, "u8"),
    "uint32": (4, "u4"),
    "uint16": (2, "u2"),
    "uint8": (1, "u1"),
    "bool": (1, "?"),
    "complex64": (8, "c8"),
    "complex128": (16, "c16"),
}


class Entry(Protocol):
    """An array in a file."""

    def read(self) -> NDArray[Any]:
        """Return the array, a new one."""
        ...


class Entries(Mapping[str, NDArray[Any]]):
    """The arrays of a checkpoint by name, read from the file when they are asked for.

    A read-only mapping. Every look-up reads the bytes of that one array and gives a new array.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.path = path
        self._entries = entries

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read an array; KeyError where there is none, CheckpointError where it is damaged."""
        entry = self._entries[name]
        with naming(self.path):
            try:
                return entry.read()
            except CheckpointError as error:
                raise CheckpointError(f"entry {shown(name)}: {error}") from error.__cause__
            except ValueError as error:  # more dimensions than NumPy has, or the like
                raise CheckpointError(f"entry {shown(name)} is no array: {error}") from error

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of the file."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Return whether there is an array of this name, without reading it."""
        return name in self._entries

    def __repr__(self) -> str:
        """Return the file and how many arrays it has."""
        return f"<{len(self)} arrays of {str(self.path)!r}>"


@dataclass(frozen=True)
class Span:
    """An array of contiguous bytes in a file."""

    path: Path
    start: int
    size: int  # bytes that are there for it
    shape: tuple[int, ...]
    dtype: str  # a name of DTYPES
    byteorder: str = "<"

    def read(self) -> NDArray[Any]:
        """Return the array, a new one."""
        count = math.prod(self.shape)
        itemsize, _ = DTYPES[self.dtype]
        if count * itemsize != self.size:
            raise CheckpointError(
                f"{self.dtype} of shape {self.shape} needs {shown(count * itemsize)} bytes, "
                f"the file has {self.size} for it"
            )
        with open(self.path, "rb") as file:
            data = read_exactly(file, self.start, self.size)
        return numbers(data, self.dtype, self.byteorder).reshape(self.shape)


def read_exactly(file: BinaryIO, start: int, size: int) -> bytes:
    """Return `size` bytes from `start` on, once the file is known to have them."""
    length = os.fstat(file.fileno()).st_size
    if start < 0 or start + size > length:
        raise CheckpointError(
            f"the file is cut short or damaged: bytes {start} to {start + size} are needed, it has "
            f"{length}"
        )
    file.seek(start)
    return file.read(size)


def numbers(data: bytes, dtype: str, byteorder: str) -> NDArray[Any]:
    """Return a new, native, writeable array of the elements in `data`."""
    _, code = DTYPES[dtype]
    array = np.frombuffer(data, np.dtype(f"{byteorder}{code}"))
    native: NDArray[Any] = array.astype(array.dtype.newbyteorder("="))
    return as_bfloat16(native) if dtype == "bfloat16" else native
