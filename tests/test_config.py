"""What the installation says of itself: `show_config`, `python -m rustbn info`, the version."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import sys

import numpy as np
import pytest
import rustbn
from conftest import RunPython
from rustbn import _rustbn


def shown() -> str:
    file = io.StringIO()
    rustbn.show_config(file)
    return file.getvalue()


def test_config_shows_version_simd_level_threads_and_numpy() -> None:
    with rustbn.threads(7):
        text = shown()
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)
    assert lines["rustbn"] == rustbn.__version__
    assert lines["threads"] == "7"
    assert lines["NumPy"] == np.__version__
    assert _rustbn.simd_level() in text


def test_config_is_printed_where_one_expects_it(capsys: pytest.CaptureFixture[str]) -> None:
    rustbn.show_config()
    assert capsys.readouterr().out == shown()


def test_the_command_prints_the_config() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rustbn", "info"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rustbn.empty_cache()
    assert done.stdout == shown()


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["info", "--no-such-option"]])
def test_the_command_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rustbn", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "usage: python -m rustbn" in done.stderr
    assert not done.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert rustbn.__version__ == importlib.metadata.version("rustbn")


def test_modules_are_imported_on_first_use(run_python: RunPython) -> None:
    code = """
import sys
import rustbn

def imported():
    return [name for name in ("bench", "checkpoints", "demo") if f"rustbn.{name}" in sys.modules]

assert not imported()
assert {"bench", "checkpoints", "demo", "folding", "batch_norm"} <= set(dir(rustbn))
from rustbn import *
names = set(globals())
assert set(rustbn.__all__) <= names
assert not imported()
for name in ("conventions", "distributed", "folding", "functional", "modules", "recalibration"):
    assert getattr(rustbn, name) is sys.modules[f"rustbn.{name}"]
assert not imported()
assert callable(rustbn.checkpoints.load) and imported() == ["checkpoints"]
assert callable(rustbn.demo.stability)
from rustbn import bench
assert bench is rustbn.bench
try:
    rustbn.chekpoints
except AttributeError as error:
    print(error)
"""
    said = run_python(code).stdout.strip()
    assert said == "module 'rustbn' has no attribute 'chekpoints'"


def test_importing_loads_no_other_framework(run_python: RunPython) -> None:
    code = """
import sys
import rustbn
heavy = {"torch", "matplotlib", "sklearn", "rich", "ml_dtypes", "mpi4py", "pytest"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    assert run_python(code).stdout.strip() == "[]"
