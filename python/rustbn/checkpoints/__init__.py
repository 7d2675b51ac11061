"""Batch norms from checkpoints that others wrote, without the framework that wrote them.

`load` finds every batch norm of a model and gives it as an :class:`rustbn.Affine` for inference and
folding, or as a module to train on; `read` gives any array of a checkpoint by name, for the layers
around them. Both open PyTorch's checkpoints, safetensors, ``.npz`` and ONNX with NumPy alone, read
only the bytes that are asked for, and run nothing that a file says::

    >>> from rustbn import BatchNorm2d, checkpoints
    >>> batch_norms = checkpoints.load("resnet50.pth")  # doctest: +SKIP
    >>> print(batch_norms)  # doctest: +SKIP
    >>> affine = batch_norms["layer1.0.bn1"].affine()  # doctest: +SKIP
    >>> weight = checkpoints.read("resnet50.pth")["layer1.0.conv1.weight"]  # doctest: +SKIP
    >>> weight, bias = affine.fold_into_conv(weight)  # doctest: +SKIP
    >>> modules = batch_norms.modules(BatchNorm2d)  # doctest: +SKIP

`to_entries` is the way back: the state of batch norms under the names of a framework.

With the extra ``checkpoints`` (ml_dtypes), once it is imported, bfloat16 arrays keep their dtype.
Keras and Flax have file formats of their own, which are not read; hand over their arrays, nested as
they are: ``load({w.path: w.numpy() for w in model.weights}, convention="keras")``,
``load(variables, convention="flax")``.
"""

from rustbn.checkpoints.batch_norms import BatchNorms, BatchNormState, load, to_entries
from rustbn.checkpoints.entries import Entries
from rustbn.checkpoints.errors import CheckpointError
from rustbn.checkpoints.files import read

__all__ = [
    "BatchNormState",
    "BatchNorms",
    "CheckpointError",
    "Entries",
    "load",
    "read",
    "to_entries",
]
