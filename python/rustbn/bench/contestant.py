"""What takes part in a benchmark, and the names under which it is reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PASSES = ("forward", "backward", "eval", "step")

# Bytes moved and nothing else, with existing and with fresh outputs, and with streaming stores.
LIMIT, LIMIT_FRESH, STREAMING = "limit out=", "limit", "streaming"
# As a user calls it (fresh outputs); into existing memory; into the input itself.
RUSTBN, RUSTBN_OUT, RUSTBN_IN_PLACE = "rustbn", "rustbn out=", "rustbn in place"
TORCH, TORCH_OUT = "torch", "torch out="
NUMPY = "numpy"
# rustbn on the same values as float32 arrays, beside values of 16 bits.
FLOAT32, FLOAT32_OUT = "float32", "float32 out="
NAMES = (
    LIMIT, STREAMING, RUSTBN_OUT, RUSTBN_IN_PLACE, FLOAT32_OUT, TORCH_OUT,
    LIMIT_FRESH, RUSTBN, FLOAT32, TORCH, NUMPY,
)  # fmt: skip


# Greatest error of a result before it is rounded to its dtype, relative to the terms of its sums.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Contestant:
    """One way to compute a pass.

    `call` is what is timed. `results` takes what it returned and gives arrays by the names of the
    answers; None for what computes none (the limits). `prepare` is run once before the check.
    """

    name: str
    call: Callable[[], Any]
    results: Callable[[Any], Mapping[str, Any]] | None
    tolerance: float = TOLERANCE
    prepare: Callable[[], None] | None = None
