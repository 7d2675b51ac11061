"""SyncBatchNorm over processes: MPI, and gloo of torch.distributed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from groups import check, problem
from rank import CASES

RANK = Path(__file__).with_name("rank.py")


def judge(folder: Path, size: int) -> None:
    """Compare what the ranks have written with what one process finds."""
    for index, case in enumerate(CASES):
        p, residual = problem(case["shape"], case["axis"], case["dtype"])
        found = [dict(np.load(folder / f"{index}-{rank}.npz")) for rank in range(size)]
        wanted = residual if case.get("with_residual") else None
        check(found, p, wanted, case.get("activation"))


def judge_errors(folder: Path, size: int) -> None:
    """Compare what the ranks have raised, where rank 1 made mistakes, with what they should."""
    features = ", ".join("4" if rank == 1 else "3" for rank in range(size))
    both = [
        f"ValueError: num_features must be the same on all ranks, got [{features}]",
        "ValueError: x must have at least 2 values per channel",
    ]
    for rank in range(size):
        found = json.loads((folder / f"errors-{rank}.json").read_text(encoding="utf-8"))
        told = "" if rank == 1 else "RuntimeError: rank 1 of the group has raised "
        own = [f"{told}TypeError: {argument} must have dtype " for argument in ("x", "dy")]
        for actual, expected in zip(found, own + both, strict=True):
            assert actual.startswith(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_mpi(size: int, tmp_path: Path) -> None:
    command = [
        processes.mpiexec(),
        "-n",
        str(size),
        sys.executable,
        str(RANK),
        "mpi",
        str(tmp_path),
    ]
    processes.run(command)
    judge(tmp_path, size)
    if size > 1:
        judge_errors(tmp_path, size)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)
def test_gloo(tmp_path: Path) -> None:
    command = [sys.executable, str(RANK), "gloo", str(tmp_path)]
    processes.run(*([*command, str(rank), "2"] for rank in range(2)))
    judge(tmp_path, 2)
    judge_errors(tmp_path, 2)
