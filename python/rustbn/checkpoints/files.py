"""A file by what it contains: which format it is, or what to do about it."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

from rustbn.checkpoints.entries import Entries, Entry
from rustbn.checkpoints.errors import CheckpointError, naming
from rustbn.checkpoints.npz import read_npz
from rustbn.checkpoints.onnx import OnnxEntries, read_onnx
from rustbn.checkpoints.safetensors import is_safetensors, read_safetensors
from rustbn.checkpoints.torch_zip import read_torch_zip

__all__ = ["read"]

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# The pickled magic number 0x1950a86a20f9469cfc6c.
_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_HDF5_ADVICE = (
    "is an HDF5 file of Keras, which is not read here; write the weights as NumPy arrays where "
    "Keras is: numpy.savez('weights.npz', **{w.path: w.numpy() for w in model.weights})"
)


def read(path: str | os.PathLike[str]) -> Entries:
    """Open a checkpoint and return its arrays by name, each read when it is asked for.

    Parameters
    ----------
    path : str or path-like
        A PyTorch checkpoint (the zip format of ``torch.save``, PyTorch 1.6 and later), a file of
        safetensors, an archive of ``numpy.savez``, or an ONNX model (its initializers). The format
        is known by the contents, not by the name.

    Returns
    -------
    Entries
        Read-only mapping of names to NumPy arrays. Nested dictionaries of a PyTorch checkpoint
        become names joined by ".", such as "state_dict.conv1.weight". What is no array is left
        out. bfloat16 becomes ml_dtypes' where that package is loaded, else float32.

    Raises
    ------
    CheckpointError
        If the file is cut short or damaged, of another format, or holds what is refused: in a
        pickle everything but plain containers, numbers, strings and tensors.
    FileNotFoundError
        If there is no such file.

    Notes
    -----
    Nothing of a checkpoint is executed: the pickle of a PyTorch checkpoint is interpreted by a
    machine that knows tensors and plain containers and calls nothing; arrays of Python objects are
    refused. Neither PyTorch nor ONNX nor safetensors need be installed.
    """
    path = Path(path)
    with naming(path):
        with open(path, "rb") as file:
            head = file.read(16)
        if head.startswith(_ZIP):
            return Entries(path, _read_zip(path))
        if head.startswith(_LEGACY_TORCH):
            raise CheckpointError(
                "is a PyTorch checkpoint of the format before version 1.6, which is not read here; "
                "write it anew where PyTorch is: torch.save(torch.load(path, map_location='cpu'), "
                "path)"
            )
        if head.startswith(_HDF5):
            raise CheckpointError(_HDF5_ADVICE)
        if is_safetensors(head):
            return Entries(path, read_safetensors(path))
        if not head:
            raise CheckpointError("is empty")
        onnx = read_onnx(path)
        if onnx is None:
            raise CheckpointError(
                "is no checkpoint of PyTorch, safetensors, NumPy (.npz) or ONNX, or is cut short"
            )
        initializers, nodes = onnx
        return OnnxEntries(path, initializers, nodes)


def _read_zip(path: Path) -> dict[str, Entry]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error) as error:
        raise CheckpointError(
            "is cut short or damaged: it starts as a zip archive and has no valid directory at its "
            f"end ({error})"
        ) from error
    except NotImplementedError as error:
        raise CheckpointError(f"is a zip archive that is not supported: {error}") from error
    with archive:
        names = archive.namelist()
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return read_torch_zip(path, archive)
        if any(name.endswith(".npy") for name in names):
            return read_npz(path, archive)
        if "model.weights.h5" in names:
            raise CheckpointError(_HDF5_ADVICE.replace("an HDF5 file", "a file"))
        raise CheckpointError(
            "is a zip archive without data.pkl (PyTorch) or members named *.npy (NumPy)"
        )
