"""Fixtures: reproducible randomness, and fresh interpreters with settings of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent

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
    process. Neither is inherited. The code may import the helper modules of the tests.
    """

    def run(code: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RUSTBN_")}
        env["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [env.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
