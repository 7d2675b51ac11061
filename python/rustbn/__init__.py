"""Batch normalization for NumPy arrays, forward and backward, at the speed of memory.

Functions (`rustbn.functional`): `batch_norm` is ``torch.nn.functional.batch_norm`` for NumPy arrays
of any layout; `batch_norm_forward` and `batch_norm_backward` train; `moments`, `Affine`,
`backward_reduce` and `backward_apply` are the halves they are made of.

Modules (`rustbn.modules`): `BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d` behave like PyTorch's;
`BatchNorm` takes any number of dimensions. They train by the conventions of PyTorch, Keras, Flax or
ONNX (`rustbn.conventions`).

Distributed (`rustbn.distributed`): `SyncBatchNorm` normalises a batch that is spread over
processes.

Recalibration (`rustbn.recalibration`): `recompute_statistics` gives modules the statistics of a
whole data set.

Folding (`rustbn.folding`): batch norm into the linear or convolutional layer next to it.

Checkpoints (`rustbn.checkpoints`): the batch norms of models that others trained, without the
framework that wrote the file. This module, `rustbn.demo` and `rustbn.bench` are imported when they
are first used.

Results are the same bits for any number of threads and with any instruction set.
"""

from typing import TYPE_CHECKING

from rustbn import conventions as conventions
from rustbn import folding as folding
from rustbn._config import empty_cache, get_num_threads, set_num_threads, show_config, threads
from rustbn._rustbn import __version__
from rustbn.distributed import SyncBatchNorm
from rustbn.functional import (
    Affine,
    Context,
    Gradients,
    GradSums,
    Moments,
    backward_apply,
    backward_reduce,
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    moments,
)
from rustbn.modules import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from rustbn.recalibration import recompute_statistics

__all__ = [
    "Affine",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Context",
    "GradSums",
    "Gradients",
    "Moments",
    "SyncBatchNorm",
    "__version__",
    "backward_apply",
    "backward_reduce",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "empty_cache",
    "get_num_threads",
    "moments",
    "recompute_statistics",
    "set_num_threads",
    "show_config",
    "threads",
]

if TYPE_CHECKING:
    from rustbn import bench as bench
    from rustbn import checkpoints as checkpoints
    from rustbn import demo as demo
else:
    from importlib import import_module as _import_module

    _ON_FIRST_USE = ("bench", "checkpoints", "demo")

    def __getattr__(name: str) -> object:
        if name in _ON_FIRST_USE:
            return _import_module(f"rustbn.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ON_FIRST_USE})
