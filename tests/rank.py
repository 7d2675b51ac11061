"""One process of a group: ``python rank.py mpi|gloo FOLDER [RANK SIZE]``.

Trains the steps of `CASES` and writes what it finds to files in the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cases
import numpy as np
import rustbn
from groups import program

# What `program` takes; the sizes of the ranks' batches are made of the length of the batch.
CASES: tuple[dict[str, Any], ...] = (
    {"shape": (9, 5), "axis": 1, "dtype": np.float32},
    {"shape": (9, 4, 6, 5), "axis": 1, "dtype": np.float64},
    {"shape": (9, 6, 5, 33), "axis": -1, "dtype": np.float32},
    {"shape": (9, 4, 3), "axis": 1, "dtype": np.float16, "with_residual": True},
    {
        "shape": (9, 4, 3, 6),
        "axis": 1,
        "dtype": np.float32,
        "activation": "relu",
        "with_residual": True,
    },
)


def sizes(size: int) -> tuple[int, ...]:
    """Return unequal batches of 9 samples in all, one of them empty if there are three or more."""
    return (9,) if size == 1 else (2, 7) if size == 2 else (3, 0, *[1] * (size - 3), 9 - size)


def errors(group: Any, rank: int) -> list[str]:
    """Make mistakes on rank 1, and go on; return what is raised here."""
    bn, wrong = rustbn.SyncBatchNorm(3, group=group), rank == 1
    other = rustbn.SyncBatchNorm(4 if wrong else 3, group=group)
    x = cases.problem((5, 3)).x
    raised = []
    for call in (
        lambda: bn(x.astype(int) if wrong else x),
        lambda: bn.backward(x.astype(float) if wrong else x),
        lambda: other(cases.problem((5, 4)).x if wrong else x),
        lambda: bn(x[:wrong]),
    ):
        bn(x)  # the ranks are in step still
        try:
            call()
        except (TypeError, ValueError, RuntimeError) as error:
            raised.append(f"{type(error).__name__}: {error}")
        else:
            raised.append("")
    return raised


def main(kind: str, folder: str, *numbers: str) -> None:
    group: Any
    if kind == "mpi":
        from mpi4py import MPI

        group = MPI.COMM_WORLD
        rank, size = group.Get_rank(), group.Get_size()
    else:
        import torch

        torch.set_num_threads(1)
        rank, size = map(int, numbers)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
        group = torch.distributed.group.WORLD
    for index, case in enumerate(CASES):
        found = program(group, rank, sizes(size), **case)
        np.savez(Path(folder) / f"{index}-{rank}.npz", **found)  # type: ignore[arg-type]
    raised = errors(group, rank) if size > 1 else []
    (Path(folder) / f"errors-{rank}.json").write_text(json.dumps(raised), encoding="utf-8")
    if kind != "mpi":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
