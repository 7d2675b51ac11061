"""The pickle of a PyTorch checkpoint, interpreted without calling anything.

Python's unpickler imports and calls what a pickle names, so even a restricted one is only as safe
as all that it lets through. This machine knows the opcodes that dictionaries of tensors are made
of, decoded by the standard library's `pickletools`, and builds descriptions: a tensor is the key
of a storage, an offset, a size and strides. The few globals that it lets through are names to it,
never objects: it imports nothing, calls nothing and sets no attributes. Everything else is
refused.

What it builds is at most as large as the pickle: nothing is allocated from a declared size.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rustbn.checkpoints.errors import CheckpointError, shown

__all__ = ["Storage", "Tensor", "interpret"]


@dataclass(frozen=True)
class Storage:
    """A block of memory that tensors are views of."""

    key: str
    dtype: str | None  # None: of bytes
    size: int  # elements, or bytes


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; all but `size` in elements."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _OrderedDict(dict[Any, Any]):
    """What `collections.OrderedDict` becomes, the one kind of object that may have a state."""


_STORAGES = {
    f"{prefix}Storage": dtype
    for prefix, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }.items()
}
_DTYPES = {
    *_STORAGES.values(),
    *("uint16", "uint32", "uint64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
}
_FUNCTIONS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
}
_UNTYPED = ("torch.storage", "UntypedStorage")


def interpret(data: bytes) -> Any:
    """Return what a pickle holds: dicts, lists, tuples, numbers, strings and `Tensor`s.

    Raises
    ------
    CheckpointError
        If the pickle names, calls or holds anything else, or is damaged or cut short.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, struct.error, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its pickle is damaged or cut short: {error}") from error
    raise CheckpointError("its pickle is cut short: it does not end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE":
                push(None)
            case "NEWTRUE":
                push(True)
            case "NEWFALSE":
                push(False)
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES"
            ):  # fmt: skip
                push(argument)
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE":
                push(tuple(self.above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(items)))
            case "APPEND":
                item = self.pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.above_mark()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                _set_items(self.top(dict), [key, value])
            case "SETITEMS":
                items = self.above_mark()
                _set_items(self.top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise CheckpointError("its pickle is damaged: it recalls what it never held")
                push(self.memo[argument])
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                push(_global(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(_global(module, attribute))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                push(_reduce(function, arguments))
            case "BUILD":
                state = self.pop()
                # PyTorch's state dicts carry metadata about versions, which nothing here needs.
                if type(self.top()) is not _OrderedDict or type(state) not in (dict, _OrderedDict):
                    raise CheckpointError(
                        f"its pickle sets the state of {shown(self.top())}, which is refused"
                    )
            case "BINPERSID":
                push(_storage(self.pop()))
            case _:
                raise CheckpointError(f"its pickle has the opcode {name}, which is refused")

    def pop(self) -> Any:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) <= floor:
            raise CheckpointError("its pickle is damaged: it takes what it never held")
        return self.stack.pop()

    def top(self, kind: type | None = None) -> Any:
        value = self.pop()
        self.stack.append(value)
        if kind is not None and not isinstance(value, kind):
            raise CheckpointError(f"its pickle adds items to {shown(value)}, which is refused")
        return value

    def above_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError("its pickle is damaged: it takes what it never held")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise CheckpointError("its pickle is damaged: a key has no value")
    for key, value in _pairs(items):
        # Hashing a tuple hashes what it holds, as deep as it goes, and may overflow the C stack.
        if not isinstance(key, str | int | float | bytes | None):
            raise CheckpointError(f"its pickle has {shown(key)} as a key, which is refused")
        target[key] = value


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _global(module: object, name: object) -> _Global:
    if isinstance(module, str) and isinstance(name, str):
        found = (module, name)
        known = module == "torch" and (name in _STORAGES or name in _DTYPES)
        if known or found in _FUNCTIONS or found == _UNTYPED:
            return _Global(module, name)
        called = f"{shown(module)[1:-1]}.{shown(name)[1:-1]}"
    else:
        called = f"{shown(module)}, {shown(name)}"
    raise CheckpointError(
        f"its pickle names {called}, which is refused: only tensors, containers, numbers and "
        "strings are read. If you trust the file, write what is needed of it where PyTorch is: "
        "torch.save(model.state_dict(), path)"
    )


def _storage(persistent_id: object) -> Storage:
    match persistent_id if type(persistent_id) is tuple else None:
        case ("storage", _Global() as kind, str() as key, str(), int() as size):
            _check_sizes("a storage", (size,))
            if (kind.module, kind.name) == _UNTYPED:
                return Storage(key, None, size)
            if kind.module == "torch" and kind.name in _STORAGES:
                return Storage(key, _STORAGES[kind.name], size)
    raise CheckpointError("its pickle refers to something that is no storage of PyTorch")


def _reduce(function: object, arguments: object) -> Any:
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise CheckpointError(f"its pickle calls {shown(function)}, which is refused")
    match function.name, arguments:
        case "OrderedDict", ():
            return _OrderedDict()
        case "OrderedDict", (list() as pairs,):
            made = _OrderedDict()
            for pair in pairs:
                if type(pair) not in (tuple, list) or len(pair) != 2:
                    raise CheckpointError("its pickle is damaged: an OrderedDict is not of pairs")
                _set_items(made, list(pair))
            return made
        case "Size", (tuple() as size,):
            _check_sizes("a Size", size)
            return size
        case "device", _:
            return None
        case "_rebuild_parameter", (Tensor() as tensor, *_):
            return tensor
        case "_rebuild_tensor_v2", (Storage(dtype=str() as dtype) as storage, *where):
            return _tensor(storage, dtype, where)
        case "_rebuild_tensor_v3", (
            Storage() as storage, offset, size, stride, _, _, _Global(name=dtype), *_
        ) if dtype in _DTYPES:  # fmt: skip
            return _tensor(storage, dtype, [offset, size, stride])
    raise CheckpointError(f"its pickle calls {function} otherwise than PyTorch does")


def _tensor(storage: Storage, dtype: str, where: list[Any]) -> Tensor:
    match where:
        case [int() as offset, tuple() as size, tuple() as stride, *_]:
            _check_sizes("a tensor", (offset, *size, *stride))
            if len(size) == len(stride):
                return Tensor(storage, dtype, offset, size, stride)
    raise CheckpointError("its pickle has a tensor without offset, size and strides")


def _check_sizes(what: str, sizes: tuple[Any, ...]) -> None:
    for size in sizes:
        if type(size) is not int or not 0 <= size < 2**63:
            raise CheckpointError(f"its pickle has {what} with a size of {shown(size)}")
