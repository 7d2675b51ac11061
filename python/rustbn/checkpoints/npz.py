"""Archives of `numpy.savez`: a zip file whose members are arrays.

Arrays of Python objects are refused: reading one would run a pickle.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rustbn._arguments import from_void
from rustbn.checkpoints.entries import Entry
from rustbn.checkpoints.errors import CheckpointError, shown

__all__ = ["read_npz"]

_UNREADABLE = 0x61  # of a member's flags: encrypted, patched, strongly encrypted


@dataclass(frozen=True)
class _Member:
    path: Path
    name: str

    def read(self) -> NDArray[Any]:
        """Return the array, a new one, once the archive is known to have its bytes."""
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        try:
            with zipfile.ZipFile(self.path) as archive, self._open(archive) as file:
                size = archive.getinfo(self.name).file_size
                version = np.lib.format.read_magic(file)
                if version not in read_header:
                    raise CheckpointError(f"version {version} of NumPy's format is not supported")
                shape, fortran, dtype = read_header[version](file)
                if dtype.hasobject:
                    raise CheckpointError("arrays of Python objects are refused")
                needed = math.prod(shape) * dtype.itemsize
                if needed != size - file.tell():
                    raise CheckpointError(
                        f"{dtype} of shape {shown(str(shape))} needs {shown(needed)} bytes, "
                        f"the member has {size - file.tell()}"
                    )
                flat = np.frombuffer(file.read(needed), dtype)
            array = from_void(flat.astype(dtype.newbyteorder("=")))
            return array.reshape(shape, order="F" if fortran else "C")
        except (CheckpointError, FileNotFoundError):
            raise
        except (KeyError, zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
            raise CheckpointError(f"damaged or cut short: {error}") from error

    def _open(self, archive: zipfile.ZipFile) -> IO[bytes]:
        info = archive.getinfo(self.name)
        plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not plain or info.flag_bits & _UNREADABLE:
            raise CheckpointError("is compressed or encrypted as numpy.savez never does")
        return archive.open(info)


def read_npz(path: Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
    """Return the entries of an archive of NumPy."""
    members = (info.filename for info in archive.infolist())
    return {
        name.removesuffix(".npy"): _Member(path, name) for name in members if name.endswith(".npy")
    }
