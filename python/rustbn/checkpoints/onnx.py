"""ONNX models: initializers, and the batch norms of the graph.

A model is a message of protocol buffers, https://protobuf.dev/programming-guides/encoding, of the
messages in ``onnx.proto``. Of those only the way to the initializers and to the nodes is read, and
only where things are, not the numbers: the file is mapped, and an array is read when it is asked
for. Nested graphs (of If and Loop) are not looked into.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rustbn.checkpoints.entries import DTYPES, Entries, Entry, Span, numbers
from rustbn.checkpoints.errors import CheckpointError, shown
from rustbn.conventions import named

__all__ = ["Node", "OnnxEntries", "read_onnx"]

# TensorProto.DataType
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}
_EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class Node:
    """A batch norm of a graph: where its vectors are, by our names, and its attributes."""

    name: str
    sources: Mapping[str, str]
    eps: float
    momentum: float


class OnnxEntries(Entries):
    """The initializers of a model, and its batch norms."""

    def __init__(self, path: Path, entries: Mapping[str, Entry], nodes: list[Node]) -> None:
        super().__init__(path, entries)
        self.nodes = nodes


class _Slice(NamedTuple):
    """A message within the file."""

    buffer: mmap.mmap
    start: int
    end: int

    def bytes(self) -> bytes:
        return self.buffer[self.start : self.end]

    def text(self) -> str:
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise CheckpointError("the model is damaged: a name is no text") from error

    def varint(self, position: int) -> tuple[int, int]:
        """Return the number at `position`, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= self.end:
                raise CheckpointError("the model is cut short or damaged: a number does not end")
            byte = self.buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value % 2**64, position
        raise CheckpointError("the model is damaged: a number is too long")

    def fields(self) -> Iterator[tuple[int, int | _Slice]]:
        """Yield the number of each field, and its value: a number, or where its bytes are."""
        position = self.start
        while position < self.end:
            key, position = self.varint(position)
            kind = key & 7
            if kind == 0:
                value, position = self.varint(position)
                yield key >> 3, value
                continue
            if kind == 2:
                size, position = self.varint(position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise CheckpointError(f"the model is damaged: a field has the wire type {kind}")
            if size > self.end - position:
                raise CheckpointError(
                    f"the model is cut short or damaged: {size} bytes are needed where "
                    f"{self.end - position} are left"
                )
            yield key >> 3, _Slice(self.buffer, position, position + size)
            position += size

    def message(self, **numbers: int) -> dict[str, list[Any]]:
        """Return the values of the named fields, all there are of each."""
        found: dict[str, list[Any]] = {name: [] for name in numbers}
        names = {number: name for name, number in numbers.items()}
        for number, value in self.fields():
            if number in names:
                found[names[number]].append(value)
        return found


def read_onnx(path: Path) -> tuple[dict[str, Entry], list[Node]] | None:
    """Return the initializers and the batch norms of a model; None where it is none at all."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        if buffer[0] != 0x08:  # ir_version, which every model starts with
            return None
        model = _Slice(buffer, 0, len(buffer)).message(graph=7)
        if not model["graph"]:
            raise CheckpointError("is an ONNX model without a graph, or is cut short")
        graph = _part(model["graph"][-1]).message(node=1, initializer=5)
        entries: dict[str, Entry] = {}
        for tensor in graph["initializer"]:
            _add_tensor(path, _part(tensor), entries)
        nodes = [_node(_part(node)) for node in graph["node"]]
        aliases = {node.outputs[0]: node.inputs[0] for node in nodes if node.op == "Identity"}
        for node in nodes:
            if node.op == "Constant" and "value" in node.tensors:
                _add_tensor(path, node.tensors["value"], entries, node.outputs[0])
        return entries, _batch_norms(nodes, aliases, entries)


class _Node(NamedTuple):
    """A NodeProto."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    floats: dict[str, float]  # its attributes that are numbers
    tensors: dict[str, _Slice]  # and those that are tensors


def _node(proto: _Slice) -> _Node:
    node = proto.message(input=1, output=2, name=3, op=4, attribute=5)
    floats, tensors = {}, {}
    for given in node["attribute"]:
        attribute = _part(given).message(name=1, float=2, tensor=5)
        name = _text(attribute["name"])
        if attribute["float"]:
            bits = _part(attribute["float"][-1]).bytes()
            if len(bits) != 4:
                raise CheckpointError("the model is damaged: an attribute is no float")
            (floats[name],) = struct.unpack("<f", bits)
        if attribute["tensor"]:
            tensors[name] = _part(attribute["tensor"][-1])
    op = _text(node["op"])
    inputs, outputs = ([_part(name).text() for name in node[key]] for key in ("input", "output"))
    least = {"BatchNormalization": 5, "Identity": 1}.get(op, 0)
    if len(inputs) < least or not outputs:
        raise CheckpointError(f"the model is damaged: {shown(op)} has too few inputs or outputs")
    return _Node(op, _text(node["name"]), inputs, outputs, floats, tensors)


def _batch_norms(
    nodes: list[_Node], aliases: Mapping[str, str], entries: Mapping[str, Entry]
) -> list[Node]:
    """Return the nodes that are batch norms of initializers, each set of vectors once."""
    convention = named("onnx")
    found: dict[str, Node] = {}
    for index, node in enumerate(nodes):
        if node.op != "BatchNormalization":
            continue
        given = dict(
            zip(("weight", "bias", "running_mean", "running_var"), node.inputs[1:5], strict=True)
        )
        sources = {ours: _original(name, aliases) for ours, name in given.items()}
        if not all(name in entries for name in sources.values()):
            continue
        batch_norm = Node(
            _prefix(list(given.values())) or node.name or f"BatchNormalization_{index}",
            sources,
            node.floats.get("epsilon", convention.eps),
            node.floats.get("momentum", convention.momentum),
        )
        if found.get(batch_norm.name, batch_norm) != batch_norm:  # another of the same name
            name = f"{batch_norm.name}_{index}"
            batch_norm = Node(name, sources, batch_norm.eps, batch_norm.momentum)
        found[batch_norm.name] = batch_norm
    return list(found.values())


def _original(name: str, aliases: Mapping[str, str]) -> str:
    """Follow the Identity nodes by which exporters write equal initializers once."""
    for _ in range(len(aliases)):
        if name not in aliases:
            break
        name = aliases[name]
    return name


def _prefix(names: list[str]) -> str:
    """Return what the names have in common before their last separator."""
    prefixes = {
        re.sub(r"[./][^./]*$", "", name) if re.search("[./]", name) else "" for name in names
    }
    return prefixes.pop() if len(prefixes) == 1 else ""


def _part(value: Any) -> _Slice:
    if not isinstance(value, _Slice):
        raise CheckpointError("the model is damaged: a number is where a message should be")
    return value


def _text(values: list[Any]) -> str:
    return _part(values[-1]).text() if values else ""


def _add_tensor(
    path: Path, proto: _Slice, entries: dict[str, Entry], name: str | None = None
) -> None:
    """Add a TensorProto, if it is of a dtype that NumPy has or of bfloat16."""
    tensor = proto.message(
        dims=1, dtype=2, floats=4, int32s=5, int64s=7, name=8, raw=9, doubles=10, uint64s=11,
        external=13, location=14,
    )  # fmt: skip
    if name is None:
        name = _text(tensor["name"])
    dtype = _DTYPES.get(tensor["dtype"][-1]) if tensor["dtype"] else None
    shape = tuple(_integers(tensor["dims"]))
    if any(size >= 2**63 for size in shape):
        raise CheckpointError(f"the model is damaged: {shown(name)} has a negative size")
    if dtype is None:
        return
    if tensor["location"] and tensor["location"][-1] == _EXTERNAL:
        entries[name] = _external(path, tensor["external"], shape, dtype)
        return
    contiguous = tensor["raw"] or tensor["floats"] or tensor["doubles"]
    if len(contiguous) == 1:
        where = _part(contiguous[0])
        entries[name] = Span(path, where.start, where.end - where.start, shape, dtype)
        return
    values = _integers(tensor["int32s"] or tensor["int64s"] or tensor["uint64s"])
    entries[name] = _Integers(values, shape, dtype)


def _integers(values: list[Any]) -> list[int]:
    """Return repeated integers, which may be packed into one field."""
    integers: list[int] = []
    for value in values:
        if isinstance(value, int):
            integers.append(value)
            continue
        position = value.start
        while position < value.end:
            integer, position = value.varint(position)
            integers.append(integer)
    return integers


@dataclass(frozen=True)
class _Integers:
    """A tensor whose elements are written as integers: also float16 and bfloat16, as bits."""

    values: list[int]
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> NDArray[Any]:
        """Return the array, a new one."""
        if len(self.values) != math.prod(self.shape):
            raise CheckpointError(
                f"{self.dtype} of shape {self.shape} has {len(self.values)} elements"
            )
        itemsize, _ = DTYPES[self.dtype]
        # Negative numbers are written as their 64 bits.
        bits = np.array(self.values, np.uint64).astype(f"<u{min(itemsize, 8)}")
        return numbers(bits.tobytes(), self.dtype, "<").reshape(self.shape)


def _external(path: Path, pairs: list[Any], shape: tuple[int, ...], dtype: str) -> Entry:
    about = {}
    for pair in pairs:
        entry = _part(pair).message(key=1, value=2)
        if entry["key"] and entry["value"]:
            about[_part(entry["key"][-1]).text()] = _part(entry["value"][-1]).text()
    location = about.get("location", "")
    # The file may only be beside the model: a model must not make others' files its weights.
    folder = path.parent.resolve()
    named_one = bool(location) and "\0" not in location
    other = (folder / location).resolve() if named_one else folder
    if not named_one or not other.is_relative_to(folder):
        raise CheckpointError(
            f"its external data must lie beside the model, is at {shown(location)}"
        )
    given = [about[key] for key in ("offset", "length") if key in about]
    if not all(re.fullmatch("[0-9]{1,18}", number) for number in given):
        raise CheckpointError(f"its external data has no such place: {shown(', '.join(given))}")
    size = math.prod(shape) * DTYPES[dtype][0]
    return Span(other, int(about.get("offset", 0)), int(about.get("length", size)), shape, dtype)
