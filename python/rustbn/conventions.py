"""What frameworks disagree on about batch normalization.

All of them compute ``y = (x - mean) / sqrt(var + eps) * weight + bias``. They differ in what the
state is called, how large eps and momentum are unless one says otherwise, whether momentum weighs
the new batch or the old average, and whether the running variance is made of the batch's unbiased
variance (divisor n - 1) or of its biased one (divisor n):

========  =====================================  =====  ========  ==================  ========
name      weight, bias, running mean, variance   eps    momentum  of                  variance
========  =====================================  =====  ========  ==================  ========
"torch"   weight, bias, running_mean,            1e-5   0.1       the new batch       unbiased
          running_var
"keras"   gamma, beta, moving_mean,              1e-3   0.99      the old average     biased
          moving_variance
"flax"    scale, bias, mean, var                 1e-5   0.99      the old average     biased
"onnx"    scale, B, input_mean, input_var        1e-5   0.9       the old average     biased
========  =====================================  =====  ========  ==================  ========

Sources: ``torch.nn.BatchNorm2d`` 2.x; ``keras.layers.BatchNormalization`` 3.x (the fused layers of
Keras 2 on TensorFlow kept the unbiased variance); ``flax.linen.BatchNorm``, whose entries lie in
two collections, "params" and "batch_stats", and ``flax.nnx.BatchNorm``; the operator
BatchNormalization of ONNX, opset 15.

The channel axis is no part of a convention: it says where the channels of *your* arrays are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rustbn._arguments import as_real

__all__ = ["CONVENTIONS", "Convention", "named"]


@dataclass(frozen=True)
class Convention:
    """How one framework writes, names and updates the state of batch normalization.

    Attributes
    ----------
    name : str
        "torch", "keras", "flax" or "onnx".
    entries : mapping of str to str
        The framework's name of each of ours: "weight", "bias", "running_mean", "running_var" and,
        where the framework has it, "num_batches_tracked".
    eps, momentum : float
        The framework's defaults; the momentum in its own direction.
    weighs_old : bool
        Whether momentum weighs the old average, ``running = momentum * running + (1 - momentum) *
        batch``, rather than the new batch.
    biased : bool
        Whether the running variance is made of biased variances.
    separator : str
        What is between the names of a module and of its entry.
    collections : mapping of str to str
        What comes before the module's name in the names of entries, where anything does.
    """

    name: str
    entries: Mapping[str, str]
    eps: float
    momentum: float
    weighs_old: bool
    biased: bool
    separator: str
    collections: Mapping[str, str] = field(default_factory=dict)

    def weight_of_batch(self, momentum: float) -> float:
        """Return the weight of the new batch that `momentum`, a real number, stands for."""
        return 1.0 - as_real("momentum", momentum) if self.weighs_old else momentum


def _entries(
    weight: str, bias: str, mean: str, var: str, batches: str | None = None
) -> Mapping[str, str]:
    entries = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    if batches is not None:
        entries["num_batches_tracked"] = batches
    return MappingProxyType(entries)


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            Convention(
                name="torch",
                entries=_entries(
                    "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
                ),
                eps=1e-5,
                momentum=0.1,
                weighs_old=False,
                biased=False,
                separator=".",
            ),
            Convention(
                name="keras",
                entries=_entries("gamma", "beta", "moving_mean", "moving_variance"),
                eps=1e-3,
                momentum=0.99,
                weighs_old=True,
                biased=True,
                separator="/",
            ),
            Convention(
                name="flax",
                entries=_entries("scale", "bias", "mean", "var"),
                eps=1e-5,
                momentum=0.99,
                weighs_old=True,
                biased=True,
                separator="/",
                collections=MappingProxyType(
                    {
                        "weight": "params",
                        "bias": "params",
                        "running_mean": "batch_stats",
                        "running_var": "batch_stats",
                    }
                ),
            ),
            Convention(
                name="onnx",
                entries=_entries("scale", "B", "input_mean", "input_var"),
                eps=1e-5,
                momentum=0.9,
                weighs_old=True,
                biased=True,
                separator=".",
            ),
        )
    }
)


def named(convention: str) -> Convention:
    """Return the convention of this name.

    Raises
    ------
    ValueError
        If there is none.
    TypeError
        If `convention` is not a string.

    Examples
    --------
    >>> from rustbn import conventions
    >>> conventions.named("keras").entries["running_var"]
    'moving_variance'
    """
    try:
        return CONVENTIONS[convention]
    except (KeyError, TypeError):
        if not isinstance(convention, str):
            raise TypeError(f"convention must be a str, got {type(convention).__name__}") from None
        names = ", ".join(map(repr, CONVENTIONS))
        raise ValueError(f"convention must be one of {names}, got {convention!r}") from None
