"""Programs of several processes, which end in time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SECONDS = 100


def mpiexec() -> str:
    """Return the command; without it, or without mpi4py, skip the test."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).with_name("mpiexec")  # as `pip install mpich` puts it
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec: pip install mpich")
    return found


def run(*commands: Sequence[str]) -> list[tuple[str, str]]:
    """Run commands side by side; return what they print, output and errors.

    All are killed when one takes too long.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        printed = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    for process, (out, err) in zip(processes, printed, strict=True):
        assert process.returncode == 0, f"{out}\n{err}"
    return printed
