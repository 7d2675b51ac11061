"""Checkpoints of ``torch.save``: a zip archive of a pickle and of the bytes of each storage.

Members are stored without compression, so that a tensor is a range of bytes of the file, and only
those that are asked for are read. A member that is read whole is compared with its checksum, which
PyTorch writes unless told not to.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from rustbn.checkpoints.entries import DTYPES, Entry, numbers, read_exactly
from rustbn.checkpoints.errors import CheckpointError, shown
from rustbn.checkpoints.pickles import Tensor, interpret
from rustbn.checkpoints.tree import flatten

__all__ = ["read_torch_zip"]

# Signature, 22 bytes that the directory has too, the lengths of the name and of the extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class _Member:
    name: str
    header: int  # where its local header is
    size: int
    checksum: int  # 0: none

    @classmethod
    def of(cls, archive: zipfile.ZipFile, name: str) -> _Member:
        try:
            info = archive.getinfo(name)
        except KeyError:
            raise CheckpointError(f"the archive has no member {shown(name)}") from None
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"member {shown(name)} is compressed or encrypted, which torch.save never does"
            )
        return cls(name, info.header_offset, info.file_size, info.CRC)

    def read(self, file: BinaryIO, first: int = 0, last: int | None = None) -> bytes:
        """Return the bytes from `first` to before `last`, both of which it must have."""
        last = self.size if last is None else last
        header = read_exactly(file, self.header, _LOCAL_HEADER.size)
        signature, name, extra = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04":
            raise CheckpointError(f"member {shown(self.name)} is not where the directory says")
        start = self.header + _LOCAL_HEADER.size + name + extra
        data = read_exactly(file, start + first, last - first)
        if len(data) == self.size and self.checksum not in (0, zlib.crc32(data)):
            raise CheckpointError(f"member {shown(self.name)} is damaged: its checksum differs")
        return data


@dataclass(frozen=True)
class _View:
    """A tensor in a member of the archive."""

    path: Path
    member: _Member
    tensor: Tensor
    byteorder: str

    def read(self) -> NDArray[Any]:
        """Return the array, a new one, once the member is known to have its elements."""
        tensor = self.tensor
        itemsize, _ = DTYPES[tensor.dtype]
        count = math.prod(tensor.size)
        reach = sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
        first, last = tensor.offset, tensor.offset + reach + 1
        if not count:
            first = last = 0
        there = self.member.size // itemsize
        # Strides of zero repeat elements; more of them than are there is no tensor to be read.
        if max(last, count) > there:
            raise CheckpointError(
                f"a tensor of shape {tensor.size} needs {shown(max(last, count))} elements of "
                f"{tensor.dtype}, its storage has {there}"
            )
        with open(self.path, "rb") as file:
            data = self.member.read(file, first * itemsize, last * itemsize)
        flat = numbers(data, tensor.dtype, self.byteorder)
        if not count:
            return flat.reshape(tensor.size)
        # The stride of an axis of one element may be any number.
        strides = tuple(
            step * flat.itemsize if n > 1 else 0
            for n, step in zip(tensor.size, tensor.stride, strict=True)
        )
        return np.array(as_strided(flat, tensor.size, strides), order="C")


def read_torch_zip(path: Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
    """Return the entries of a checkpoint of PyTorch; of dtypes that NumPy has, and bfloat16."""
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if n.rpartition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise CheckpointError("the archive has more than one data.pkl")
    (root,) = roots
    if f"{root}constants.pkl" in names:
        raise CheckpointError(
            "is a TorchScript program, not a checkpoint; write its arrays where PyTorch is: "
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), other_path)"
        )
    with open(path, "rb") as file:
        order = b"little"
        if f"{root}byteorder" in names:
            order = _Member.of(archive, f"{root}byteorder").read(file)
        tree = interpret(_Member.of(archive, f"{root}data.pkl").read(file))
    if order not in (b"little", b"big"):
        raise CheckpointError("its byte order is neither little nor big")

    entries: dict[str, Entry] = {}
    tensors = flatten(tree, lambda value: isinstance(value, Tensor), ".")
    for name, tensor in tensors.items():
        if tensor.dtype in DTYPES:
            member = _Member.of(archive, f"{root}data/{tensor.storage.key}")
            _check_storage(name, tensor, member)
            byteorder = "<" if order == b"little" else ">"
            entries[name] = _View(path, member, tensor, byteorder)
    return entries


def _check_storage(name: str, tensor: Tensor, member: _Member) -> None:
    storage = tensor.storage
    itemsize = 1 if storage.dtype is None else DTYPES[storage.dtype][0]
    if storage.size * itemsize > member.size:
        raise CheckpointError(
            f"entry {shown(name)} has a storage of {storage.size * itemsize} bytes, of which the "
            f"archive has {member.size}"
        )
