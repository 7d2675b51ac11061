"""Fixtures: reproducible randomness, and fresh interpreters with settings of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
TIMEOUT = 60

# PyTorch is here to be compared with, not to compete with the test for cores.
torch.set_num_threads(1)

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed."""
    return np.random.default_rng(20150211)


@pytest.fixture
def run_python() -> RunPython:
    """Return run(code, check=True, **environment): runs `code` in a fresh interpreter.

    The library reads RUSTBN_SIMD and RUSTBN_NUM_THREADS once per process, so each setting needs a
    process. Neither is inherited. The code may import the helper modules of the tests. Where it
    hangs, its children die with it.
    """

    def run(code: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUSTBN_")}
        env["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [env.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=env | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"no end after {TIMEOUT} s\n{err}")
        if check:
            assert process.returncode == 0, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
