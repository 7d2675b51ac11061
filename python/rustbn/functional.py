"""Batch normalization as functions, and the pieces they are made of.

The formulas are those of Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training
by Reducing Internal Covariate Shift" (2015). `batch_norm` is the whole; `moments`, `Affine`,
`backward_reduce` and `backward_apply` are its halves, for whoever composes their own: statistics
of many parts, of other machines, of data that does not fit in memory.
"""

from rustbn._rustbn import (
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

__all__ = [
    "Affine",
    "Context",
    "GradSums",
    "Gradients",
    "Moments",
    "backward_apply",
    "backward_reduce",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "moments",
]
