"""Each example runs as a user would run it, and does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str) -> str:
    """Run an example in a fresh interpreter and return what it prints."""
    for module in ("mlxtend", "sklearn"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_train_cnn() -> None:
    printed = run("train_cnn.py")
    assert len(re.findall(r"^epoch \d: loss", printed, re.M)) == 5
    found = re.search(r"^test accuracy ([\d.]+) %$", printed, re.M)
    assert found is not None
    assert float(found[1]) > 96


def test_each_example_has_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.name}")' in tests, example.name
