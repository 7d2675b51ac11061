"""What synchronising costs: ``mpiexec -n 2 python benches/sync.py [--batch 16] [--rounds 20]``.

For the layers of ResNet-50, each process with so many images: a training step, forward and
backward with `out=`, of BatchNorm, which knows its own batch only, and of SyncBatchNorm; and the
exchanges of such a step alone. Processes wait for each other before each measurement; times are
wall clock, medians over rounds of the slowest process. One thread a process.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rustbn
from mpi4py import MPI
from rustbn.bench.shapes import shapes

WORLD = MPI.COMM_WORLD


def seconds(call: Callable[[], object]) -> float:
    """Return how long the slowest process takes for a call that all begin together."""
    WORLD.Barrier()
    start = time.perf_counter()
    call()
    longest: float = WORLD.allreduce(time.perf_counter() - start, op=MPI.MAX)
    return longest


def step(bn: rustbn.BatchNorm, arrays: Sequence[Any]) -> Callable[[], object]:
    """Return a training step of a module."""
    x, dy, y, dx = arrays

    def call() -> None:
        bn(x, out=y)
        bn.backward(dy, out=dx)

    return call


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="images a process, default: 16")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    options = parser.parse_args()
    rng = np.random.default_rng(WORLD.rank)
    first = WORLD.rank == 0
    totals = np.zeros(3)
    if first:
        print(f"{WORLD.size} processes of {options.batch} images; ms, medians")
        print("| layer | alone | sync | exchanges | sync / alone | exchanges / alone |")
        print("|---|---|---|---|---|---|")
    with rustbn.threads(1):
        for (_, channels, *spatial), count in shapes()["resnet50"]:
            shape = (options.batch, channels, *spatial)
            arrays = [rng.standard_normal(shape, np.float32) for _ in range(4)]
            row = np.zeros(2 * channels + 1)
            synchronised = rustbn.SyncBatchNorm(channels, group=WORLD)
            calls: list[Callable[[], object]] = [
                step(rustbn.BatchNorm(channels), arrays),
                step(synchronised, arrays),
                lambda: [synchronised._link.gather(row) for _ in range(2)],  # noqa: B023
            ]
            for call in calls:
                call()
            times = [[seconds(call) for call in calls] for _ in range(options.rounds)]
            alone, together, exchanges = 1e3 * np.median(times, axis=0)
            totals += count * np.array([alone, together, exchanges])
            if first:
                print(_line("x".join(map(str, shape)), alone, together, exchanges))
    if first:
        print(_line("all layers", *totals))


def _line(name: str, alone: float, together: float, exchanges: float) -> str:
    return (
        f"| {name} | {alone:.2f} | {together:.2f} | {exchanges:.3f} | {together / alone:.2f} "
        f"| {exchanges / alone:.3f} |"
    )


if __name__ == "__main__":
    main()
