"""Train the demonstration's network on several processes as if on one.

    mpiexec -n 2 python examples/train_data_parallel.py
    torchrun --nproc-per-node 2 examples/train_data_parallel.py --gloo

Each process takes a part of every batch, the last one the most. Batch norm normalises with the
statistics of the whole batch (`SyncBatchNorm`), and the processes add their gradients, so the loss
is that of one process, to rounding: without mpiexec the same program shows it.

Needs ``pip install 'rustbn[demo]'`` for the images, and ``mpi4py`` and ``mpich``, or ``torch``.
Takes about ten seconds. Over more steps the curves part, once rounding has decided a maximum
otherwise.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import rustbn
from numpy.typing import NDArray
from rustbn.demo.data import load_mnist
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.network import conv_network
from rustbn.demo.optim import SGD
from rustbn.demo.training import accuracy, batches, single_threaded

BATCH, RATE = 64, 0.05


class World(NamedTuple):
    """The processes: what SyncBatchNorm wants of them, and what the training does."""

    group: Any
    rank: int
    size: int
    add: Callable[[NDArray[Any]], object]  # in place, over all processes


def mpi() -> World:
    """Return the processes that mpiexec started."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return World(world, world.rank, world.size, lambda a: world.Allreduce(MPI.IN_PLACE, a))


def gloo() -> World:
    """Return the processes that torchrun started."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    return World(
        distributed.group.WORLD, rank, size, lambda a: distributed.all_reduce(torch.from_numpy(a))
    )


def part(batch: int, world: World) -> slice:
    """Return the samples of a batch that this process takes: rank r takes r + 1 of a share."""
    shares = np.arange(world.size + 1)
    edges = batch * np.cumsum(shares) // shares.sum()
    return slice(edges[world.rank], edges[world.rank + 1])


def train(world: World, steps: int) -> list[float]:
    """Train, and return the loss of each step, that of the whole batch."""
    digits = load_mnist()
    rng = np.random.default_rng(0)  # the same in all processes, and so are weights and batches
    network = conv_network(
        lambda features: [rustbn.SyncBatchNorm(features, group=world.group)], rng
    )
    optimiser = SGD(network, RATE)
    losses = []
    for whole in islice(batches(digits.train, BATCH, rng), steps):
        mine = whole[part(len(whole), world)]
        network.zero_grad()
        loss, dlogits = softmax_cross_entropy(network(mine.x), mine.labels)
        # Both are means over this process's part; of the whole batch's mean it is this much:
        share = len(mine) / len(whole)
        network.backward(dlogits * np.float32(share))
        grads = [grad for _, grad in network.named_grads()]
        flat = np.concatenate([grad.ravel() for grad in grads])
        world.add(flat)
        edges = np.cumsum([grad.size for grad in grads])[:-1]
        for grad, total in zip(grads, np.split(flat, edges), strict=True):
            grad[...] = total.reshape(grad.shape)
        optimiser.step()
        mean = np.array([loss * share])
        world.add(mean)
        losses.append(float(mean[0]))
    if world.rank == 0:  # evaluation exchanges nothing
        print(f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} in the end")
        print(f"test accuracy {100 * accuracy(network, digits.test):.1f} %")
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gloo", action="store_true", help="processes of torchrun, not mpiexec")
    parser.add_argument("--steps", type=int, default=120, help="default: 120")
    parser.add_argument("--curve", help="file to write the losses to, one a line")
    options = parser.parse_args(arguments)
    world = gloo() if options.gloo else mpi()
    with single_threaded():  # the processes are the threads
        losses = train(world, options.steps)
    if options.curve and world.rank == 0:
        np.savetxt(options.curve, losses)
    if options.gloo:
        from torch import distributed

        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
