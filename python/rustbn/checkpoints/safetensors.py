"""Files of safetensors: a length, a header of JSON, and the arrays.

The format is that of https://huggingface.co/docs/safetensors: eight bytes that hold the length of
the header, the header, then data, in which every entry has its place. It is read here rather than
by the package of that name because that has no bfloat16 for NumPy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rustbn.checkpoints.entries import Entry, Span, read_exactly
from rustbn.checkpoints.errors import CheckpointError, shown

__all__ = ["is_safetensors", "read_safetensors"]

_LARGEST_HEADER = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that starts so is one of safetensors."""
    return len(head) > 8 and head[8:9] == b"{" and _length(head) <= _LARGEST_HEADER


def _length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def read_safetensors(path: Path) -> dict[str, Entry]:
    """Return the entries of a file of safetensors; of dtypes that NumPy has."""
    with open(path, "rb") as file:
        length = _length(read_exactly(file, 0, 8))
        text = read_exactly(file, 8, length)
        end = os.fstat(file.fileno()).st_size
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"its header must be a JSON object, is {shown(header)}")

    entries: dict[str, Entry] = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (first, last) = about["dtype"], about["shape"], about["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"entry {shown(name)} must have dtype, shape and data_offsets"
            ) from error
        _check_sizes(name, shape)
        _check_sizes(name, [first, last])
        start = 8 + length
        if first > last or start + last > end:
            raise CheckpointError(
                f"entry {shown(name)} lies at bytes {start + first} to {start + last}, "
                f"the file has {end}: it is cut short or damaged"
            )
        if isinstance(dtype, str) and dtype in _DTYPES:
            entries[name] = Span(path, start + first, last - first, tuple(shape), _DTYPES[dtype])
    return entries


def _check_sizes(name: str, sizes: Any) -> None:
    if not isinstance(sizes, list) or not all(
        type(size) is int and 0 <= size < 2**63 for size in sizes
    ):
        raise CheckpointError(f"entry {shown(name)} must have sizes of 0 to 2**63 - 1")
