"""Checkpoints: written by PyTorch, safetensors, ONNX and NumPy, read without any of the first."""

from __future__ import annotations

import doctest
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import rustbn
import safetensors.numpy
import safetensors.torch
import torch
from conftest import RunPython
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rustbn import BatchNorm, BatchNorm2d, checkpoints
from rustbn.checkpoints import CheckpointError, batch_norms, torch_zip, tree
from rustbn.checkpoints import entries as entries_module

Array = NDArray[Any]
VECTORS = ("weight", "bias", "running_mean", "running_var")


class Block(torch.nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


def block(channels: int = 5, dtype: torch.dtype = torch.float32) -> Block:
    """Return a block that has seen some batches, of random parameters."""
    generator = torch.Generator().manual_seed(0)
    net = Block(channels)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4 + 0.1)
        for _ in range(3):
            net(torch.randn(2, channels, 6, 6, generator=generator))
    return net.to(dtype).eval()


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is(state: checkpoints.BatchNormState, theirs: torch.nn.BatchNorm2d) -> None:
    for name in VECTORS:
        expected = getattr(theirs, name)
        ours = getattr(state, name)
        if expected is None:
            assert ours is None
        else:
            np.testing.assert_array_equal(
                ours.astype(np.float64), expected.detach().double().numpy()
            )
    assert state.num_batches_tracked == int(theirs.num_batches_tracked or 0)


# PyTorch


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_array_of_a_checkpoint(tmp_path: Path, protocol: int) -> None:
    state = block().state_dict()
    path = save(tmp_path / "block.pth", state, pickle_protocol=protocol)
    entries = checkpoints.read(path)
    assert list(entries) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(entries[name], tensor.numpy())
        assert entries[name].dtype == tensor.numpy().dtype
        assert entries[name].flags.writeable
    assert entries.path == path
    assert "bn1.weight" in entries
    assert "bn9.weight" not in entries
    with pytest.raises(KeyError, match="bn9"):
        entries["bn9.weight"]
    assert repr(entries) == f"<{len(state)} arrays of {str(path)!r}>"


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norms_of_a_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    net = block(dtype=dtype)
    found = checkpoints.load(save(tmp_path / "block.pth", net.state_dict()))
    assert list(found) == ["bn1", "bn2"]
    assert len(found) == 2
    for name, state in found.items():
        theirs = getattr(net, name)
        assert_is(state, theirs)
        assert (state.name, state.channels, state.convention) == (name, 5, "torch")
        assert (state.eps, state.eps_given, state.momentum) == (1e-5, False, 0.1)
        expected = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16}
        assert state.weight is not None
        assert state.weight.dtype == expected.get(dtype, ml_dtypes.bfloat16)

        x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
        y = theirs.double()(x).detach().numpy()
        np.testing.assert_allclose(state.affine()(x.numpy()), y, rtol=0, atol=1e-12)
        module = state.module(BatchNorm2d)
        assert type(module) is BatchNorm2d
        assert module.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert module.num_batches_tracked == 3
        assert module.training
        np.testing.assert_allclose(module.eval()(x.numpy()), y, rtol=0, atol=1e-5)


def test_training_goes_on_where_pytorch_stopped(tmp_path: Path) -> None:
    theirs = block().bn1.train()
    found = checkpoints.load(save(tmp_path / "bn.pth", theirs.state_dict()))
    module = found[""].module(BatchNorm2d)
    x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(module(x.numpy()), theirs(x).detach().numpy(), atol=1e-5)
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(getattr(module, name), getattr(theirs, name), rtol=1e-6)
    assert module.num_batches_tracked == 4


def test_all_at_once(tmp_path: Path) -> None:
    found = checkpoints.load(save(tmp_path / "block.pth", block().state_dict()))
    assert found.affines() == {name: state.affine() for name, state in found.items()}
    modules = found.modules(BatchNorm2d, axis=-1, momentum=0.2)
    assert [repr(m) for m in modules.values()] == [
        repr(BatchNorm2d(5, momentum=0.2, axis=-1)) for _ in found
    ]


def test_a_training_checkpoint(tmp_path: Path) -> None:
    net = block()
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content = {
        "epoch": 7,
        "best": 0.25,
        "name": "block",
        "history": [1.0, (2, None, True)],
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([1, 2]),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "exotic": [torch.ones(2, dtype=torch.uint16), torch.ones(2).to(torch.float8_e5m2)],
    }
    path = save(tmp_path / "training.pth", content)
    entries = checkpoints.read(path)
    np.testing.assert_array_equal(entries["parameter"], [0, 1, 2])
    np.testing.assert_array_equal(entries["exotic.0"], np.ones(2, np.uint16))
    assert "exotic.1" not in entries  # no dtype of NumPy
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    np.testing.assert_array_equal(entries["optimizer.state.0.exp_avg"], moment)

    assert list(checkpoints.load(path)) == ["state_dict.bn1", "state_dict.bn2"]
    found = checkpoints.load(path, prefix="state_dict.")
    assert list(found) == ["bn1", "bn2"]
    assert_is(found["bn2"], net.bn2)
    with pytest.raises(CheckpointError, match=r"no batch norm with the prefix 'ema\.'"):
        checkpoints.load(path, prefix="ema.")


def test_tensors_that_share_and_skip_memory(tmp_path: Path) -> None:
    pool = torch.arange(24.0)
    content = {
        "slice": pool[3:7],
        "strided": pool[1::5],
        "transposed": pool.view(4, 6).T,
        "scalar": pool[5],
        "empty": pool[:0],
        "expanded": pool[4].expand(3),
        "complex": torch.tensor([1 + 2j]),
        "bool": torch.tensor([True, False]),
    }
    entries = checkpoints.read(save(tmp_path / "views.pth", content))
    for name, tensor in content.items():
        np.testing.assert_array_equal(entries[name], tensor.numpy())
        assert entries[name].shape == tuple(tensor.shape)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every read from now on adds how many bytes it wants."""
    sizes = []
    original = entries_module.read_exactly

    def read_exactly(file: Any, start: int, size: int) -> bytes:
        sizes.append(size)
        return original(file, start, size)

    monkeypatch.setattr(torch_zip, "read_exactly", read_exactly)
    return sizes


def test_only_the_bytes_of_batch_norms_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = block(64)
    path = save(tmp_path / "block.pth", net.state_dict())
    sizes = count_reads(monkeypatch)
    checkpoints.load(path)
    vectors = 2 * (4 * 64 * 4 + 8)
    pickled = zipfile.ZipFile(path).getinfo("block/data.pkl").file_size
    assert vectors <= sum(sizes) < vectors + pickled + 1000
    assert path.stat().st_size > 20 * sum(sizes)


def test_a_slice_of_a_large_storage_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "flat.pth", {"part": torch.arange(100_000.0)[70_000:70_003]})
    sizes = count_reads(monkeypatch)
    entries = checkpoints.read(path)
    np.testing.assert_array_equal(entries["part"], [70_000, 70_001, 70_002])
    assert sum(sizes) < 2000


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "block.pth", block().state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert list(checkpoints.load(path)) == ["bn1", "bn2"]


@pytest.mark.parametrize("order", ["big", "little", "middle"])
def test_byte_order(tmp_path: Path, order: str) -> None:
    path = save(tmp_path / "block.pth", {"x": torch.arange(3.0)})
    swapped = tmp_path / "swapped.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(swapped, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "block/byteorder":
                data = order.encode()
            if name == "block/data/0" and order == "big":
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            target.writestr(name, data)
    if order == "middle":
        with pytest.raises(CheckpointError, match="byte order"):
            checkpoints.read(swapped)
    else:
        np.testing.assert_array_equal(checkpoints.read(swapped)["x"], [0, 1, 2])


WITHOUT = """
import sys
for name in ("torch", "onnx", "safetensors", "ml_dtypes"):
    sys.modules[name] = None  # importing it is an error
from rustbn import checkpoints
import numpy as np
found = checkpoints.load({path!r}, {options})
for name, state in found.items():
    print(name, state.weight.dtype, state.weight.tolist())
    state.affine()
    state.module()
"""


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx"])
def test_nothing_but_numpy_is_needed(tmp_path: Path, run_python: RunPython, kind: str) -> None:
    net = block(dtype=torch.bfloat16)
    path, state = tmp_path / f"block.{kind}", net.state_dict()
    if kind == "pth":
        torch.save(state, path)
    elif kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        arrays = {
            name: tensor.float().numpy().astype(ml_dtypes.bfloat16)
            for name, tensor in state.items()
            if "bn" in name
        }
        onnx.save(model([bn_node("bn1"), bn_node("bn2")], arrays), path)
    out = run_python(WITHOUT.format(path=str(path), options="")).stdout
    # float32 holds every bfloat16.
    expected = [
        f"{name} float32 {getattr(net, name).weight.float().tolist()}" for name in ("bn1", "bn2")
    ]
    assert out.splitlines() == expected


def convolve(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Convolve with 3 x 3 kernels and one zero around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.einsum("nihwkl,oikl->nohw", sliding_window_view(padded, (3, 3), (2, 3)), weight)
    return y if bias is None else np.asarray(y + bias[:, None, None])


@pytest.mark.parametrize("way", ["one by one", "fused", "folded"])
def test_a_basic_block_of_a_resnet(tmp_path: Path, way: str) -> None:
    net = block(8)
    path = save(tmp_path / "block.pth", net.state_dict())
    found, entries = checkpoints.load(path), checkpoints.read(path)
    x = torch.randn(2, 8, 7, 6, generator=torch.Generator().manual_seed(2))

    def layer(x: Array, number: int, shortcut: Array | None = None) -> Array:
        affine = found[f"bn{number}"].affine()
        weight = entries[f"conv{number}.weight"]
        if way == "fused":
            return affine(convolve(x, weight), activation="relu", residual=shortcut)
        if way == "folded":
            z = convolve(x, *affine.fold_into_conv(weight))
        else:
            z = affine(convolve(x, weight))
        return np.maximum(z if shortcut is None else z + shortcut, 0)

    y = layer(layer(x.numpy(), 1), 2, x.numpy())
    expected = net(x).detach().numpy()
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


# What is refused


def test_the_legacy_format_says_what_to_do(tmp_path: Path) -> None:
    path = save(tmp_path / "old.pth", block().state_dict(), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before version 1\.6.*torch\.save\(torch\.load\("):
        checkpoints.read(path)


def test_a_whole_module_says_what_to_do(tmp_path: Path) -> None:
    path = save(tmp_path / "module.pth", block())
    match = r"test_checkpoints\.Block, which is refused.*torch\.save\(model\.state_dict\(\), path\)"
    with pytest.raises(CheckpointError, match=match):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK", "is no checkpoint of PyTorch, safetensors"),
        (b"PK\x03\x04", "is cut short or damaged: it starts as a zip archive"),
        (b"GIF89a", "is no checkpoint of PyTorch, safetensors"),
        (b"\x89HDF\r\n\x1a\n", r"HDF5 file of Keras.*numpy\.savez"),
        (b"\x08\x07", "without a graph"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/data.pkl", "a/constants.pkl", "a/code/x.py"], "TorchScript program"),
        (["model.weights.h5", "config.json"], "a file of Keras"),
        (["readme.txt"], r"without data\.pkl"),
        (["a/data.pkl", "b/data.pkl"], r"more than one data\.pkl"),
    ],
)
def test_archives_of_other_kinds(tmp_path: Path, names: list[str], message: str) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "none.pth")


def archive_of(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a checkpoint with this pickle and one storage of four float32."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())
    return path


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "file", b"\x80\x02}." * 100, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoints.read(path)


class Exploit:
    """What runs a command when Python unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, nested: bool, protocol: int) -> None:
    proof = tmp_path / "proof"
    exploit: Any = Exploit(f"touch {proof}")
    content = OrderedDict({"a": [{"b": (exploit,)}]}) if nested else exploit
    pickled = pickle.dumps(content, protocol)
    path = archive_of(tmp_path / "file", pickled)
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.system|opcode"):
        checkpoints.load(path)
    assert not proof.exists()
    pickle.loads(pickled)  # and it would have
    assert proof.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ORDERED = b"ccollections\nOrderedDict\n)R"
FLOATS = b"ctorch\nFloatStorage\n"
STORAGE = b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x04tQ"


def tensor(
    offset: bytes = b"K\x00", size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85"
) -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return call + STORAGE + offset + size + stride + b"\x89" + ORDERED + b"tR"


def many(item: bytes, count: int) -> bytes:
    return b"(" + item * count + b"t"


def storage(*parts: bytes) -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = b"K\x00K\x04\x85K\x01\x85\x89" + ORDERED + b"tR"
    return call + b"(" + b"".join(parts) + b"tQ" + rest


def long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def test_a_pickle_by_hand_is_read(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "file", b"\x80\x02}" + text("x") + tensor() + b"s.")
    np.testing.assert_array_equal(checkpoints.read(path)["x"], [0, 1, 2, 3])


STORAGE_NAME, CPU = text("storage"), text("cpu")
REFUSED = {
    "eval": (b"cbuiltins\neval\n" + text("1") + b"\x85R", r"builtins\.eval"),
    "getattr": (b"cbuiltins\ngetattr\n", r"builtins\.getattr"),
    "import of torch": (b"ctorch\nload\n", r"torch\.load"),
    "another of torch._utils": (b"ctorch._utils\n_rebuild_qtensor\n", "_rebuild_qtensor"),
    "dotted": (b"ccollections\nOrderedDict.__init__.__globals__\n", r"OrderedDict\.__init__"),
    "os as a storage": (b"cos\nFloatStorage\n", r"os\.FloatStorage"),
    "stack global": (text("os") + text("system") + b"\x93", r"os\.system"),
    "stack global of numbers": (b"K\x01K\x02\x93", "names 1, 2"),
    "memoized name": (text("os") + b"q\x00" + text("system") + b"q\x01h\x00h\x01\x93", "os.system"),
    "instance": (b"(ios\nsystem\n", "opcode INST"),
    "object": (b"(cos\nsystem\no", r"os\.system"),
    "new object": (b"ccollections\nOrderedDict\n)\x81", "opcode NEWOBJ"),
    "extension": (b"\x82\x01", "opcode EXT1"),
    "buffer": (b"\x97", "opcode NEXT_BUFFER"),
    "set": (b"\x8f", "opcode EMPTY_SET"),
    "state of a dict": (b"}}b", "sets the state of a dict"),
    "state of a tensor": (tensor() + b"}b", "sets the state of a Tensor"),
    "state of a global": (b"ccollections\nOrderedDict\n}b", "sets the state of"),
    "state that is no dict": (ORDERED + b"K\x01b", "sets the state of"),
    "state in two parts": (ORDERED + b"}}\x86b", "sets the state of"),
    "call of a storage": (FLOATS + b")R", r"calls torch\.FloatStorage otherwise"),
    "call of a string": (text("x") + b")R", "calls 'x'"),
    "call of a tensor": (tensor() + b")R", "calls a Tensor"),
    "call without a tuple": (b"ccollections\nOrderedDict\n]R", "calls a _Global"),
    "OrderedDict of no pairs": (
        b"ccollections\nOrderedDict\n](K\x01K\x02e\x85R",
        "an OrderedDict is not of pairs",
    ),
    "tensor of a list": (b"ctorch._utils\n_rebuild_tensor_v2\n(]K\x00))tR", "otherwise"),
    "tensor of another call": (b"ctorch._utils\n_rebuild_parameter\n]\x85R", "otherwise"),
    "tuple as a key": (b"})K\x01s", "a tuple as a key"),
    "deep tuple as a key": (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s", "a tuple as a key"),
    "item of a list": (b"]K\x01K\x02s", "adds items to a list"),
    "append to a dict": (b"}K\x01a", "adds items to a dict"),
    "append to an int": (b"K\x01K\x01a", "adds items to 1"),
    "persistent id in text": (b"P1\n", "opcode PERSID"),
    "persistent id: int": (b"K\x01Q", "no storage"),
    "persistent id: module": (
        b"(" + text("module") + FLOATS + text("0") + CPU + b"K\x04tQ",
        "no storage",
    ),
    "persistent id: short": (b"(" + STORAGE_NAME + FLOATS + text("0") + b"tQ", "no storage"),
    "persistent id: list": (
        b"](" + STORAGE_NAME + FLOATS + text("0") + CPU + b"K\x04eQ",
        "no storage",
    ),
    "persistent id: function": (
        storage(STORAGE_NAME, b"ctorch\nSize\n", text("0"), CPU, b"K\x04"),
        "no storage",
    ),
    "persistent id: number as key": (
        storage(STORAGE_NAME, FLOATS, b"K\x00", CPU, b"K\x04"),
        "no st",
    ),
    "storage elsewhere": (
        b"}"
        + text("x")
        + storage(STORAGE_NAME, FLOATS, text("../data.pkl/../../x"), CPU, b"K\x04")
        + b"s",
        "no member",
    ),
    "storage larger than its member": (
        b"}" + text("x") + storage(STORAGE_NAME, FLOATS, text("0"), CPU, long(2**40)) + b"s",
        "has a storage of 4398046511104 bytes, of which the archive has 16",
    ),
    "negative storage": (storage(STORAGE_NAME, FLOATS, text("0"), CPU, long(-1)), "size of -1"),
    "bool as size": (storage(STORAGE_NAME, FLOATS, text("0"), CPU, b"\x88"), "size of True"),
    "endless number": (
        storage(STORAGE_NAME, FLOATS, text("0"), CPU, long(1 << 2000)),
        "size of an int of 2001 bits",
    ),
    "negative offset": (tensor(offset=long(-1)), "size of -1"),
    "negative stride": (tensor(stride=long(-1) + b"\x85"), "size of -1"),
    "float as size": (tensor(size=b"G" + struct.pack(">d", 4.0) + b"\x85"), r"size of 4\.0"),
    "sizes without strides": (tensor(stride=b")"), "without offset, size and strides"),
    "long number": (b"\x8b\x04\x00\x00\x00\x01\x02\x03\x04", "opcode LONG4"),
    "bytearray of a declared size": (b"\x96" + struct.pack("<Q", 2**50), "cut short"),
    "bytes of a declared size": (b"\x8e" + struct.pack("<Q", 2**50), "cut short"),
    "text of a declared size": (b"\x8d" + struct.pack("<Q", 2**50), "cut short"),
    "far memo": (b"h\x07", "recalls what it never held"),
    "empty stack": (b"0", "opcode POP"),
    "append to nothing": (b"a", "takes what it never held"),
    "below a mark": (b"]K\x01(a", "takes what it never held"),
    "no mark": (b"t", "takes what it never held"),
    "odd items": (b"}(K\x01u", "a key has no value"),
    "no text": (b"X\x01\x00\x00\x00\xff", "damaged or cut short"),
    "unknown opcode": (b"\xff", "damaged or cut short"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    pickled, message = REFUSED[case]
    path = archive_of(tmp_path / "file", b"\x80\x02" + pickled + b".")
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(path)


def test_a_far_place_in_the_memo_costs_nothing(tmp_path: Path) -> None:
    # CPython's own unpickler makes a table of four billion places of this.
    path = archive_of(
        tmp_path / "file", b"\x80\x02}r\xff\xff\xff\xff" + text("x") + tensor() + b"s."
    )
    assert list(checkpoints.read(path)) == ["x"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": b"K\x01"}, "needs 5 elements of float32, its storage has 4"),
        ({"size": b"K\x05\x85"}, "needs 5 elements"),
        ({"stride": b"K\x02\x85"}, "needs 7 elements"),
        ({"size": long(2**62) + b"\x85", "stride": b"K\x00\x85"}, f"needs {2**62} elements"),
        ({"size": long(2**62) + b"\x85", "stride": long(2**62) + b"\x85"}, "elements"),
        ({"size": many(long(2**62), 90), "stride": many(b"K\x00", 90)}, "an int of 5581 bits"),
        ({"size": many(b"K\x01", 90), "stride": many(b"K\x00", 90)}, "is no array"),
    ],
)
def test_a_tensor_of_more_than_there_is(
    tmp_path: Path, changes: dict[str, bytes], message: str
) -> None:
    path = archive_of(tmp_path / "file", b"\x80\x02}" + text("x") + tensor(**changes) + b"s.")
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.read(path)["x"]
    assert f"{path}: entry 'x'" in str(caught.value)


def test_the_stride_of_one_element_is_any(tmp_path: Path) -> None:
    pickled = tensor(offset=b"K\x02", size=b"K\x01\x85", stride=long(2**62) + b"\x85")
    path = archive_of(tmp_path / "file", b"\x80\x02}" + text("x") + pickled + b"s.")
    np.testing.assert_array_equal(checkpoints.read(path)["x"], [2])


def test_containers_within_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_MOST_LEAVES", 1000)
    cyclic = b"\x80\x02]q\x00(h\x00" + tensor() + b"e."
    with pytest.raises(CheckpointError, match="deeper than 100"):
        checkpoints.read(archive_of(tmp_path / "cyclic", cyclic))
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(CheckpointError, match="deeper than 100"):
        checkpoints.read(archive_of(tmp_path / "deep", deep))
    # Sixty lists, each twice in the next: 2 ** 60 paths to one string, or to one tensor.
    for leaf, error in [(text("x"), None), (tensor(), "more than 1000 entries")]:
        laughs = b"\x80\x02" + leaf + b"q\x00" + b"".join(
            b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
        )  # fmt: skip
        path = archive_of(tmp_path / "laughs", laughs + b".")
        if error is None:
            assert len(checkpoints.read(path)) == 0
        else:
            with pytest.raises(CheckpointError, match=error):
                checkpoints.read(path)


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    content = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    with pytest.raises(CheckpointError, match=r"two entries named 'a\.b'"):
        checkpoints.read(save(tmp_path / "file", content))


# Damage


def write_each_format(folder: Path) -> dict[str, Path]:
    net = block(2)
    state = net.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    paths = {kind: folder / f"block.{kind}" for kind in ("pth", "npz", "safetensors", "onnx")}
    torch.save(state, paths["pth"])
    np.savez(paths["npz"], **arrays)
    safetensors.numpy.save_file(arrays, paths["safetensors"])
    onnx.save(model([bn_node("bn1"), bn_node("bn2")], arrays), paths["onnx"])
    return paths


KINDS = ["pth", "npz", "safetensors", "onnx"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_says_so(tmp_path: Path, kind: str) -> None:
    path = write_each_format(tmp_path)[kind]
    whole = {name: state.affine() for name, state in checkpoints.load(path).items()}
    complete = 0
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        try:
            found = checkpoints.load(path)
        except CheckpointError as error:
            message = str(error)
        else:
            # What an ONNX model has after its graph is not needed.
            assert kind == "onnx"
            assert {name: state.affine() for name, state in found.items()} == whole
            complete += 1
            continue
        assert ("is empty" if size == 0 else "cut short") in message
    assert complete < 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_error_or_is_read(tmp_path: Path, kind: str) -> None:
    path = write_each_format(tmp_path)[kind]
    data = path.read_bytes()
    rng = np.random.default_rng(15)
    errors = 0
    with path.open("r+b", buffering=0) as file:
        for _ in range(1000):
            places = rng.integers(len(data), size=rng.integers(1, 4)).tolist()
            for place in places:
                file.seek(place)
                file.write(rng.bytes(1))
            try:
                for mapping in (checkpoints.read(path), checkpoints.load(path)):
                    for name in mapping:
                        mapping[name]
            except (CheckpointError, FileNotFoundError):  # of external data
                errors += 1
            for place in places:
                file.seek(place)
                file.write(data[place : place + 1])
    assert path.read_bytes() == data
    assert errors > 50


def test_damage_that_a_checksum_tells(tmp_path: Path) -> None:
    path = save(tmp_path / "block.pth", {"x": torch.arange(4.0), "y": torch.arange(4.0, 9.0)})
    data = path.read_bytes()
    place = data.index(np.arange(4, dtype="<f4").tobytes())
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    entries = checkpoints.read(path)
    with pytest.raises(CheckpointError, match="'block/data/0' is damaged: its checksum differs"):
        entries["x"]
    np.testing.assert_array_equal(entries["y"], [4, 5, 6, 7, 8])


# safetensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    net, path = block(dtype=dtype), tmp_path / "block.safetensors"
    safetensors.torch.save_file(net.state_dict(), path, metadata={"format": "pt"})
    entries = checkpoints.read(path)
    assert set(entries) == set(net.state_dict())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(
            entries[name].astype(np.float64), value.double().numpy(), err_msg=name
        )
    for name, state in checkpoints.load(path).items():
        assert_is(state, getattr(net, name))


def safetensors_file(path: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{]", "its header is no JSON"),
        (b"{" * 100_000, "its header is no JSON"),
        ({"x": 1}, "entry 'x' must have dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "must have dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "must have dtype"),
        ({"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, "must have sizes"),
        ({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "must have sizes"),
        ({"x": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "must have sizes"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}, "cut short or damaged"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, "cut short or damaged"),
        ({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, r"\(3,\) needs 12 bytes"),
        ({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, "needs"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, header: Any, message: str) -> None:
    path = safetensors_file(tmp_path / "file", header)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(path)["x"]


def test_safetensors_of_other_dtypes_are_left_out(tmp_path: Path) -> None:
    about = {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}
    assert list(checkpoints.read(safetensors_file(tmp_path / "file", {"x": about}))) == []


# NumPy


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, write: Any) -> None:
    net, path = block(), tmp_path / "block.npz"
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    state["conv1.weight"] = np.asfortranarray(state["conv1.weight"])
    state["bn1.bias"] = state["bn1.bias"].astype(">f8")
    write(path, **state)
    entries = checkpoints.read(path)
    assert list(entries) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(entries[name], value)
        assert entries[name].dtype.isnative
    for name, found in checkpoints.load(path).items():
        assert_is(found, getattr(net, name))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_of_bfloat16(tmp_path: Path, write: Any) -> None:
    """NumPy writes bfloat16 as voids of 2 bytes, which are nothing else."""
    modules = {"a": BatchNorm(3, dtype=ml_dtypes.bfloat16)}
    modules["a"](np.random.default_rng(3).normal(size=(9, 3)))
    entries: dict[str, Any] = checkpoints.to_entries(modules)
    path = tmp_path / "block.npz"
    write(path, **entries, other=np.zeros(2, "V3"))
    read = checkpoints.read(path)
    assert read["other"].dtype == "V3"
    for name, value in entries.items():
        assert read[name].dtype == value.dtype
        assert read[name].tobytes() == value.tobytes()
    with np.load(path) as archive:
        assert archive["a.weight"].dtype == "V2"
        for source in (path, archive):
            state = checkpoints.load(source)["a"]
            assert state.affine() == modules["a"].affine_transform()
            assert state.running_var.dtype == ml_dtypes.bfloat16
            module = state.module(dtype=ml_dtypes.bfloat16)
            assert module.state_dict().keys() == modules["a"].state_dict().keys()
        with pytest.raises(TypeError, match="weight must have dtype"):
            rustbn.folding.fold_into_linear(state.affine(), np.zeros((3, 2), "V3"))


def test_npz_of_bfloat16_without_ml_dtypes(tmp_path: Path, run_python: RunPython) -> None:
    path, values = tmp_path / "bn.npz", np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16)
    entries: dict[str, Any] = dict.fromkeys(VECTORS, values)
    np.savez(path, **entries)
    code = f"""
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from rustbn import checkpoints
for source in ({str(path)!r}, np.load({str(path)!r})):
    (state,) = checkpoints.load(source).values()
    print(state.weight.dtype, state.weight.tolist())
"""
    assert run_python(code).stdout == "float32 [1.5, -2.0, 3.0]\n" * 2


def test_tensors_of_bfloat16() -> None:
    net = block(dtype=torch.bfloat16)
    found = checkpoints.load(net.state_dict())
    for name, state in found.items():
        assert_is(state, getattr(net, name))
        assert state.running_mean.dtype == np.float32


def test_npz_of_objects_is_refused(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array(
            file, np.array([Exploit(f"touch {proof}")], object), allow_pickle=True
        )
    with pytest.raises(CheckpointError, match="entry 'x': arrays of Python objects are refused"):
        checkpoints.read(path)["x"]
    assert not proof.exists()


def test_npz_that_declares_more_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(16))
    with pytest.raises(CheckpointError, match="the member has 16"):
        checkpoints.read(path)["x"]


# ONNX


def model(nodes: list[Any], arrays: dict[str, Array], **options: Any) -> Any:
    initializers = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()]
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 5])
    graph = onnx.helper.make_graph(nodes, "graph", [value], [value], initializers)
    return onnx.helper.make_model(graph, **options)


def bn_node(prefix: str, **options: Any) -> Any:
    inputs = ["x", *(f"{prefix}.{name}" for name in VECTORS)]
    return onnx.helper.make_node("BatchNormalization", inputs, [f"{prefix}/y"], **options)


def vectors(prefix: str = "bn", channels: int = 3, dtype: Any = np.float32) -> dict[str, Array]:
    rng = np.random.default_rng(16)
    return {f"{prefix}.{name}": rng.uniform(0.5, 2, channels).astype(dtype) for name in VECTORS}


def assert_vectors(state: checkpoints.BatchNormState, expected: dict[str, Array]) -> None:
    for name, value in zip(VECTORS, expected.values(), strict=True):
        np.testing.assert_array_equal(getattr(state, name), value)
        assert getattr(state, name).dtype == value.dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_onnx(tmp_path: Path, dtype: Any) -> None:
    path, arrays = tmp_path / "model.onnx", vectors(dtype=dtype)
    onnx.save(model([bn_node("bn", epsilon=0.5, momentum=0.75)], arrays), path)
    assert list(checkpoints.read(path)) == list(arrays)
    found = checkpoints.load(path)
    assert list(found) == ["bn"]
    state = found["bn"]
    assert_vectors(state, arrays)
    assert (state.convention, state.eps, state.momentum) == ("onnx", 0.5, 0.75)
    assert state.eps_given
    assert "0.5 (given)" in str(found)
    # The momentum of ONNX weighs the old average, and the variance is biased.
    module = state.module()
    x = np.random.default_rng(17).normal(size=(7, 3)).astype(np.float32)
    module(x)
    expected = 0.75 * state.running_var.astype(float) + 0.25 * x.astype(float).var(axis=0)
    assert module.running_var is not None
    np.testing.assert_allclose(module.running_var, expected, rtol=1e-6)


def test_onnx_that_pytorch_exports(tmp_path: Path) -> None:
    net, path = block(), tmp_path / "block.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself, and that it traces
        torch.onnx.export(
            net, (torch.zeros(1, 5, 6, 6),), path, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.TRAINING,
        )  # fmt: skip
    found = checkpoints.load(path)
    assert list(found) == ["bn1", "bn2"]
    for name, state in found.items():
        for vector in VECTORS:
            expected = getattr(getattr(net, name), vector).detach().numpy()
            np.testing.assert_array_equal(getattr(state, vector), expected)
        assert state.eps == np.float32(1e-5)


def test_onnx_defaults_and_names(tmp_path: Path) -> None:
    path, arrays = tmp_path / "model.onnx", vectors()
    plain = {f"v{i}": value for i, value in enumerate(arrays.values())}
    node = onnx.helper.make_node("BatchNormalization", ["x", *plain], ["y"], name="norm")
    nameless = onnx.helper.make_node("BatchNormalization", ["y", *plain], ["z"])
    other = onnx.helper.make_node("BatchNormalization", ["z", *reversed(plain)], ["w"], name="norm")
    onnx.save(model([node, nameless, other], plain), path)
    found = checkpoints.load(path)
    assert list(found) == ["norm", "BatchNormalization_1", "norm_2"]
    assert_vectors(found["norm"], plain)
    np.testing.assert_array_equal(found["norm_2"].weight, plain["v3"])
    assert (found["norm"].eps, found["norm"].momentum) == (1e-5, 0.9)
    assert list(checkpoints.load(path, prefix="norm")) == ["", "_2"]


def test_onnx_through_identities_and_constants(tmp_path: Path) -> None:
    path, arrays = tmp_path / "model.onnx", vectors()
    constant = onnx.numpy_helper.from_array(arrays.pop("bn.running_var"))
    nodes = [
        onnx.helper.make_node("Identity", ["shared"], ["between"]),
        onnx.helper.make_node("Identity", ["between"], ["bn.weight"]),
        onnx.helper.make_node("Constant", [], ["bn.running_var"], value=constant),
        bn_node("bn"),
    ]
    arrays["shared"] = arrays.pop("bn.weight")
    onnx.save(model(nodes, arrays), path)
    assert_vectors(checkpoints.load(path)["bn"], vectors())


def test_onnx_of_lists(tmp_path: Path) -> None:
    """Numbers that are in the fields of their types rather than in raw bytes."""
    path, graph = tmp_path / "model.onnx", onnx.GraphProto()
    kinds = {
        "float32": onnx.TensorProto.FLOAT,
        "float64": onnx.TensorProto.DOUBLE,
        "float16": onnx.TensorProto.FLOAT16,
        "bfloat16": onnx.TensorProto.BFLOAT16,
        "int64": onnx.TensorProto.INT64,
        "int32": onnx.TensorProto.INT32,
        "uint64": onnx.TensorProto.UINT64,
        "bool": onnx.TensorProto.BOOL,
    }
    for name, kind in kinds.items():
        numbers = [1, 0, 1] if name == "bool" else [3, 0 if name[0] == "u" else -2, 5]
        graph.initializer.append(onnx.helper.make_tensor(name, kind, [3], numbers))
    onnx.save(onnx.helper.make_model(graph), path)
    entries = checkpoints.read(path)
    assert list(entries) == list(kinds)
    for name, proto in zip(kinds, graph.initializer, strict=True):
        np.testing.assert_array_equal(entries[name], onnx.numpy_helper.to_array(proto))
        assert entries[name].dtype.name == name


def test_onnx_with_external_data(tmp_path: Path) -> None:
    path, arrays = tmp_path / "model.onnx", vectors(channels=300)
    onnx.save(
        model([bn_node("bn")], arrays), path, save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    assert (tmp_path / "weights.bin").exists()
    assert_vectors(checkpoints.load(path)["bn"], arrays)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"entry 'bn\.weight': .*cut short"):
        checkpoints.load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"location": "../secret"}, "must lie beside the model"),
        ({"location": "link"}, "must lie beside the model"),
        ({"location": "/etc/passwd"}, "must lie beside the model"),
        ({"location": ""}, "must lie beside the model"),
        ({"location": "a\0b"}, "must lie beside the model"),
        ({}, "must lie beside the model"),
        ({"location": "w", "offset": "-1"}, "no such place"),
        ({"location": "w", "length": "9" * 5000}, "no such place"),
        ({"location": "w", "length": "4"}, r"needs 12 bytes, the file has 4"),
    ],
)
def test_onnx_with_external_data_elsewhere(
    tmp_path: Path, about: dict[str, str], message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(12))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "w").write_bytes(bytes(100))
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[3], data_location="EXTERNAL")
    for key, value in about.items():
        tensor.external_data.add(key=key, value=value)
    saved = onnx.helper.make_model(onnx.GraphProto(initializer=[tensor]))
    path = folder / "model.onnx"
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        checkpoints.read(path)["t"]


def test_onnx_without_batch_norms(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model([bn_node("bn")], {"other": np.ones(3)}), path)
    with pytest.raises(CheckpointError, match="no BatchNormalization of initializers"):
        checkpoints.load(path)
    # By names it is another matter.
    onnx.save(model([], vectors()), path)
    assert list(checkpoints.load(path, convention="torch")) == ["bn"]


# Conventions

RNG = np.random.default_rng(18)
GAMMA, BETA, MEAN, VAR = RNG.uniform(0.5, 2.0, (4, 3)).astype(np.float32)
FLAX = {
    "params": {
        "encoder": {"BatchNorm_0": {"scale": GAMMA, "bias": BETA}, "Dense_0": {"bias": BETA}},
    },
    "batch_stats": {"encoder": {"BatchNorm_0": {"mean": MEAN, "var": VAR}}},
}


@pytest.mark.parametrize(
    ("convention", "source", "name"),
    [
        pytest.param(
            "keras",
            {"net/bn/gamma": GAMMA, "net/bn/beta": BETA, "net/bn/moving_mean": MEAN,
             "net/bn/moving_variance": VAR, "net/dense/kernel": GAMMA},
            "net/bn",
            id="keras",
        ),
        pytest.param(
            "keras",
            {"bn/gamma:0": GAMMA, "bn/beta:0": BETA, "bn/moving_mean:0": MEAN,
             "bn/moving_variance:0": VAR},
            "bn",
            id="keras on TensorFlow",
        ),
        pytest.param("flax", FLAX, "encoder/BatchNorm_0", id="linen"),
        pytest.param(
            "flax",
            {"params.bn.scale": GAMMA, "params.bn.bias": BETA, "batch_stats.bn.mean": MEAN,
             "batch_stats.bn.var": VAR},
            "bn",
            id="linen, with dots",
        ),
        pytest.param(
            "flax",
            {"bn": {"scale": GAMMA, "bias": BETA, "mean": MEAN, "var": VAR}},
            "bn",
            id="nnx",
        ),
        pytest.param(
            "onnx",
            {"bn.scale": GAMMA, "bn.B": BETA, "bn.input_mean": MEAN, "bn.input_var": VAR},
            "bn",
            id="onnx",
        ),
        pytest.param(
            "torch",
            {"layer": [{"bn": {"weight": torch.tensor(GAMMA, requires_grad=True), "bias": BETA,
                               "running_mean": MEAN, "running_var": VAR}}]},
            "layer.0.bn",
            id="torch",
        ),
    ],
)  # fmt: skip
def test_mappings_of_each_convention(convention: str, source: Any, name: str) -> None:
    found = checkpoints.load(source, convention=convention)
    assert list(found) == [name]
    state = found[name]
    for ours, value in zip(VECTORS, (GAMMA, BETA, MEAN, VAR), strict=True):
        np.testing.assert_array_equal(torch.as_tensor(getattr(state, ours)), value)
    module = state.module()
    reference = BatchNorm(3, convention=convention)
    assert repr(module) == repr(reference)
    assert (state.eps, state.momentum) == (reference.eps, reference.momentum)
    x = np.random.default_rng(19).normal(size=(6, 3))
    scale = GAMMA / np.sqrt(VAR.astype(np.float64) + reference.eps)
    np.testing.assert_allclose(state.affine()(x), (x - MEAN) * scale + BETA, rtol=0, atol=1e-12)


@pytest.mark.parametrize("convention", ["torch", "keras", "flax", "onnx"])
def test_what_is_written_is_read(tmp_path: Path, convention: str) -> None:
    modules = {"a.bn": BatchNorm(3), "b": BatchNorm(4, affine=False, dtype=np.float64)}
    rng = np.random.default_rng(20)
    for module in modules.values():
        module(rng.normal(size=(9, module.num_features)))
    entries = checkpoints.to_entries(modules, convention=convention)
    path = tmp_path / "entries.npz"
    np.savez(path, **entries)  # type: ignore[arg-type]
    found = checkpoints.load(path, convention=convention, eps=1e-5)
    assert list(found) == list(modules)
    for name, module in modules.items():
        assert found[name].affine() == module.affine_transform()
        expected = module.num_batches_tracked if convention == "torch" else None
        assert found[name].num_batches_tracked == expected
    assert checkpoints.to_entries(found, convention=convention).keys() == entries.keys()


def test_names_that_are_written() -> None:
    bn = BatchNorm(2, bias=False)
    names = {c: list(checkpoints.to_entries({"a": bn}, convention=c)) for c in ("keras", "onnx")}
    assert names["keras"] == ["a/gamma", "a/moving_mean", "a/moving_variance"]
    assert names["onnx"] == ["a.scale", "a.B", "a.input_mean", "a.input_var"]
    assert list(checkpoints.to_entries({"": bn})) == [
        "weight", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"^batch_norms\['a'\] must have running statistics"):
        checkpoints.to_entries({"a": BatchNorm(2, track_running_stats=False)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (BatchNorm2d(3), "a mapping of names to batch norms, got BatchNorm2d"),
        ([BatchNorm2d(3)], "a mapping of names to batch norms, got list"),
        (None, "a mapping of names to batch norms, got NoneType"),
    ],
)
def test_what_cannot_be_written(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^batch_norms must be {message}$"):
        checkpoints.to_entries(wrong)


def test_entries_that_cannot_be_written() -> None:
    wrong: Any = {"b": BatchNorm(2), "a": 3}
    with pytest.raises(TypeError, match=r"^batch_norms\['a'\] must be a batch norm, got int$"):
        checkpoints.to_entries(wrong)
    wrong = {1: BatchNorm(2)}
    with pytest.raises(TypeError, match=r"^batch_norms must have names of type str, got int$"):
        checkpoints.to_entries(wrong)


@pytest.mark.parametrize("kind", [dict, 3, None, BatchNorm(3), rustbn.Affine])
def test_a_module_of_no_class_of_batch_norms(kind: Any) -> None:
    found = checkpoints.load(vectors())
    match = f"^kind must be a class of batch norms, got {re.escape(repr(kind))}$"
    with pytest.raises(TypeError, match=match):
        found["bn"].module(kind)
    with pytest.raises(TypeError, match=match):
        found.modules(kind)
    assert type(found["bn"].module(rustbn.SyncBatchNorm)) is rustbn.SyncBatchNorm


@pytest.mark.parametrize("missing", [("weight",), ("bias",), ("weight", "bias")])
def test_missing_parameters(missing: tuple[str, ...]) -> None:
    arrays = vectors()
    for name in missing:
        del arrays[f"bn.{name}"]
    state = checkpoints.load(arrays)["bn"]
    module: Any = state.module().eval()
    for name in missing:
        assert getattr(state, name) is None
        assert getattr(module, name) is None
        assert getattr(module, f"{name}_grad") is None
    x = np.random.default_rng(21).normal(size=(6, 3))
    scale = arrays.get("bn.weight", 1.0) / np.sqrt(arrays["bn.running_var"].astype(float) + 1e-5)
    expected = (x - arrays["bn.running_mean"]) * scale + arrays.get("bn.bias", 0.0)
    np.testing.assert_allclose(module(x), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.affine()(x), expected, rtol=0, atol=1e-12)
    module.train()(x)
    module.backward(x)
    assert {name for name, _ in module.named_grads()} == {"weight", "bias"} - set(missing)


# eps, and the listing


def test_eps() -> None:
    arrays = vectors("a") | vectors("b")
    both = checkpoints.load(arrays, eps=1e-3)
    assert [(s.eps, s.eps_given) for s in both.values()] == [(1e-3, True)] * 2
    one = checkpoints.load(arrays, eps={"b": 1e-3})
    assert [(s.eps, s.eps_given) for s in one.values()] == [(1e-5, False), (1e-3, True)]
    assert one["b"].module().eps == 1e-3
    for eps, error, message in [
        (-1.0, ValueError, "eps must be 0 or more and finite, got -1"),
        (np.nan, ValueError, "eps must be 0 or more and finite, got nan"),
        ({"c": 1e-3}, ValueError, r"batch norms that are there, got \['c'\]"),
        ("1e-3", TypeError, "eps must be a real number, got str"),
        ({"a": True}, TypeError, "eps must be a real number, got bool"),
    ]:
        bad: Any = eps
        with pytest.raises(error, match=message):
            checkpoints.load(arrays, eps=bad)


def test_dead_channels() -> None:
    arrays = {
        "bn.weight": np.array([0.0, 1.0, 1e-9, -1.0, 0.5, 1.0], np.float32),
        "bn.bias": np.ones(6, np.float32),
        "bn.running_mean": np.zeros(6, np.float32),
        "bn.running_var": np.array([1.0, 0.0, 1.0, 1e-20, 1e-8, 2.0], np.float32),
    }
    state = checkpoints.load(arrays)["bn"]
    assert state.dead_channels().tolist() == [0, 1, 2, 3]
    assert state.dead_channels(0.0).tolist() == [0, 1]
    # Those and no others have hardly any spread of their own.
    x = np.random.default_rng(22).normal(size=(10_000, 6)) * np.sqrt(arrays["bn.running_var"])
    assert np.flatnonzero(state.affine()(x).std(axis=0) <= 1e-5).tolist() == [0, 1, 2, 3]
    assert checkpoints.load(arrays, eps=0.0)["bn"].dead_channels().tolist() == [0, 1, 2]


def test_listing() -> None:
    arrays = vectors("layer1.0.bn1", 64) | vectors("bn", 128)
    arrays["bn.weight"][:3] = 0.0
    found = checkpoints.load(arrays, eps={"bn": 0.001})
    assert str(found).splitlines() == [
        "name          channels  eps              dead channels",
        "layer1.0.bn1        64  1e-05 (assumed)              -",
        "bn                 128  0.001 (given)                3",
    ]
    assert repr(found) == "<2 batch norms, 192 channels>"
    assert "(root)" in str(checkpoints.load(BatchNorm(3).state_dict()))
    assert "running_mean" not in repr(found["bn"])


# Errors of load


def test_another_convention_is_named() -> None:
    match = r"under the names of torch.*under those of flax, convention='flax', it holds 1"
    with pytest.raises(CheckpointError, match=match):
        checkpoints.load(FLAX)
    with pytest.raises(CheckpointError, match="source: holds no batch norm under the names of"):
        checkpoints.load({"conv.weight": GAMMA})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn.running_var": np.ones(4)}, r"'bn.running_var' must have one .* \(3,\), got \(4,\)"),
        ({"bn.weight": np.ones((3, 1))}, r"'bn.weight' must have .*got \(3, 1\)"),
        ({"bn.running_mean": np.ones((3, 1))}, "'bn.running_mean' must have"),
        ({"bn.bias": np.ones(3, int)}, "'bn.bias' must have dtype"),
        ({"bn.num_batches_tracked": np.ones(1)}, "'bn.num_batches_tracked' must be a count"),
        ({"bn.num_batches_tracked": np.array(-1)}, "'bn.num_batches_tracked' must be a count"),
        ({f"bn.{name}": np.ones(0) for name in VECTORS}, "must have channels, got none"),
    ],
)
def test_vectors_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(vectors() | change)


def test_arguments_of_load() -> None:
    source: Any
    for source in (None, 1, [1]):
        with pytest.raises(TypeError, match="source must be a path or a mapping, got"):
            checkpoints.load(source)
    with pytest.raises(ValueError, match="convention must be one of"):
        checkpoints.load({}, convention="caffe")
    nothing: Any = None
    with pytest.raises(TypeError, match="prefix must be a str, got NoneType"):
        checkpoints.load(vectors(), prefix=nothing)


@pytest.mark.parametrize("module", [checkpoints, batch_norms])
def test_docstring_examples(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_importing_rustbn_alone_imports_no_format(run_python: RunPython) -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import rustbn; "
        "print({'zipfile', 'pickletools', 'mmap'} & (set(sys.modules) - before))"
    )
    assert run_python(code).stdout.strip() == "set()"
    assert rustbn.checkpoints is checkpoints
