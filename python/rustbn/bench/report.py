"""The numbers of a run, and their JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from rustbn.bench.shapes import kind
from rustbn.bench.timing import Quartiles

# Changes when the meaning of the JSON does.
SCHEMA = 1


@dataclass(frozen=True)
class Measurement:
    """A pass over a case: seconds by contestant."""

    group: str
    shape: tuple[int, ...]
    count: int
    layout: str
    threads: int
    pass_: str
    clock: str
    results: dict[str, Quartiles]
    dtype: str = "float32"

    @property
    def kind(self) -> str:
        """As `Case.kind`."""
        return kind(self.layout, self.dtype)


@dataclass(frozen=True)
class NetworkMeasurement:
    """A training step of all layers of a group: seconds by contestant."""

    group: str
    layers: int
    layout: str
    threads: int
    clock: str
    results: dict[str, Quartiles]
    dtype: str = "float32"

    @property
    def kind(self) -> str:
        """As `Case.kind`."""
        return kind(self.layout, self.dtype)


@dataclass(frozen=True)
class CallMeasurement:
    """Calls that do comparable work: seconds by name, and which of them is the measure."""

    title: str
    reference: str
    clock: str
    results: dict[str, Quartiles]


@dataclass
class Report:
    """All that a run gives."""

    machine: dict[str, Any]
    versions: dict[str, str]
    arguments: dict[str, Any]
    skipped: list[str]
    measurements: list[Measurement] = field(default_factory=list)
    networks: list[NetworkMeasurement] = field(default_factory=list)
    calls: list[CallMeasurement] = field(default_factory=list)
    fused: list[CallMeasurement] = field(default_factory=list)
    masked: list[CallMeasurement] = field(default_factory=list)
    core_rates: list[float] = field(default_factory=list)
    """`rustbn.bench.timing.core_rate`, from time to time."""

    def json(self) -> str:
        """Return the report as JSON; times are seconds per call."""
        fields = dataclasses.asdict(self)
        for measurement in fields["measurements"]:
            measurement["pass"] = measurement.pop("pass_")
        return json.dumps({"schema": SCHEMA, **fields}, indent=1) + "\n"
