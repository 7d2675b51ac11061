"""What batch norm does to the activations of a layer while a network trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import rustbn
from rustbn.demo.data import load_mnist
from rustbn.demo.layers import Array
from rustbn.demo.network import batch_norm, conv_network
from rustbn.demo.results import OnProgress, Table, Test, Work, generators, percent, silent, spread
from rustbn.demo.sequential import Sequential, activations
from rustbn.demo.training import single_threaded, train

RATE = 0.1
EVERY = 10
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUICK = {"seeds": 1, "steps": 60}

CLOSE = 0.01
"""A mean is 0 and a standard deviation 1 if they are no further off than this."""
MOVED = 0.05
"""Scales and shifts have been learnt if they are this far from 1 and 0, on average."""


@dataclass(frozen=True)
class Normalise:
    """The numbers of `normalise`, of the second convolution of the network.

    Attributes
    ----------
    steps : array, shape (measurements,)
        When it was measured; 0 is before the first step.
    before, after : array, shape (2, measurements, channels, seeds)
        Mean and standard deviation of each channel of a batch, before batch norm, and after it with
        scale and shift taken out.
    quantiles : array, shape (3, 5, measurements, channels, seeds)
        Of each channel, at `QUANTILES`: before batch norm, normalised, and scaled and shifted.
    weight, bias : array, shape (measurements, channels, seeds)
        The learnt scales and shifts.
    accuracy : array, shape (seeds,)
        On the test images in the end.
    same_alone : array, shape (seeds,)
        The part of the test images to which the answer alone is that among the others.
    """

    steps: Array
    before: Array
    after: Array
    quantiles: Array
    weight: Array
    bias: Array
    accuracy: Array
    same_alone: Array

    @property
    def off(self) -> tuple[float, float]:
        """The largest distance of a normalised mean from 0 and standard deviation from 1."""
        mean, std = self.after
        return float(np.abs(mean).max()), float(np.abs(std - 1).max())

    @property
    def learnt(self) -> tuple[Array, Array]:
        """Mean |scale - 1| and mean |shift| in the end, of each seed."""
        return np.abs(self.weight[-1] - 1).mean(axis=0), np.abs(self.bias[-1]).mean(axis=0)

    @property
    def tests(self) -> list[Test]:
        """Normalised at every step, then scaled and shifted, and independent of the batch later."""
        mean, std = self.off
        weight, bias = self.learnt
        return [
            Test(
                "In training every channel of every batch has mean 0 and standard deviation 1",
                f"off by {mean:.0e} and {std:.0e} at most",
                mean < CLOSE and std < CLOSE,
            ),
            Test(
                "Scale and shift learn their way from 1 and 0",
                f"{spread(weight, digits=2)} and {spread(bias, digits=2)} away, on average",
                bool(min(weight.min(), bias.min()) > MOVED),
            ),
            Test(
                "In evaluation an image gets the same answer alone as among others",
                f"{percent(self.same_alone.min(), 2)} of the test images",
                bool(self.same_alone.min() == 1),
            ),
        ]

    @property
    def findings(self) -> list[str]:
        """What is the same at every step and what moves."""
        mean, std = self.before
        moved = np.abs(mean[-1] - mean[0]) / std[0]
        weight, bias = self.learnt
        return [
            f"While training moves a channel's mean by {moved.mean():.1f} standard deviations and "
            f"makes its standard deviation {(std[-1] / std[0]).mean():.1f} times what it was, the "
            "normalised channel keeps mean 0 and standard deviation 1 at every step.",
            f"Scale and shift then leave 1 and 0, by {weight.mean():.2f} and {bias.mean():.2f} on "
            f"average; the network ends at {percent(float(self.accuracy.mean()))} test accuracy.",
        ]

    @property
    def tables(self) -> list[Table]:
        """Mean and standard deviation along the way."""
        rows = []
        for m, step in enumerate(self.steps):
            if m % 3 == 0 or m == len(self.steps) - 1:
                cells = (*self.before[:, m], *self.after[:, m], self.weight[m], self.bias[m])
                rows.append((f"{step}", *(spread(cell.ravel(), digits=2) for cell in cells)))
        columns = (
            "Step",
            "Mean before",
            "Std before",
            "Mean normalised",
            "Std normalised",
            "Scale",
            "Shift",
        )
        return [Table("Mean ± standard deviation over channels and seeds", columns, rows)]


def normalise(
    seed: int = 0, *, seeds: int = 3, steps: int = 150, on_progress: OnProgress = silent
) -> Normalise:
    """Follow the activations of a convolution through batch norm while the network trains.

    Claim
        Batch norm gives each channel of each batch mean 0 and standard deviation 1, whatever the
        layers below do; then a scale and a shift of its own, which it learns.
    Method
        A network of 2 convolutions and 2 dense layers learns the 28 x 28 digits of MNIST by SGD
        with momentum 0.9, learning rate 0.1, in batches of 64. Every 10 steps a batch of 256
        training images goes through it in training mode: what comes out of the second convolution,
        and what batch norm makes of that, with scale and shift and without. In the end each test
        image is evaluated alone and among the others.
    Rule
        Tests: no mean of a normalised channel is further than 0.01 from 0, no standard deviation
        further from 1; in each seed scales and shifts are in the end at least 0.05 from 1 and 0 on
        average; each test image gets the same answer alone. Supported if all hold, refuted if none
        does, else mixed.

    Parameters
    ----------
    seed : int
        Decides weights and batches.
    seeds, steps : int
        The number of trainings, and their steps.
    on_progress : callable
        Called with the part that is done, from 0 to 1.
    """
    digits = load_mnist()
    work = Work(seeds * steps * 1.3, on_progress)
    probe = digits.train.x[:256]
    seen: list[list[Snapshot]] = []
    ends: list[tuple[float, float]] = []
    with single_threaded():
        for s in range(seeds):
            weights, order = generators(seed, s)
            network = conv_network(batch_norm, weights)
            snapshots = [snapshot(network, probe)]

            def after_step(step: int) -> None:
                work.done(1)
                if step % EVERY == 0:
                    snapshots.append(snapshot(network, probe))  # noqa: B023

            curve = train(
                network, digits.train, digits.test,
                rate=RATE, steps=steps, rng=order, after_step=after_step,
            )  # fmt: skip
            seen.append(snapshots)
            ends.append((curve.final, same_alone(network, digits.test.x)))
            work.done(0.3 * steps)

    def gather(what: Callable[[Snapshot], Any]) -> Array:
        """Return an array of shape (measurements, ..., seeds)."""
        return np.stack([np.stack([what(one) for one in snapshots]) for snapshots in seen], -1)

    final, alone = np.array(ends).T
    return Normalise(
        steps=EVERY * np.arange(len(seen[0])),
        before=np.moveaxis(gather(lambda one: one.before), 1, 0),
        after=np.moveaxis(gather(lambda one: one.after), 1, 0),
        quantiles=np.moveaxis(gather(lambda one: one.quantiles), 0, 2),
        weight=gather(lambda one: one.weight),
        bias=gather(lambda one: one.bias),
        accuracy=final,
        same_alone=alone,
    )


class Snapshot(NamedTuple):
    """What `Normalise` keeps of one moment."""

    before: tuple[Array, Array]
    after: tuple[Array, Array]
    quantiles: Array
    weight: Array
    bias: Array


def snapshot(network: Sequential, x: Array) -> Snapshot:
    """Send x through in training, leaving no trace, and look around the second batch norm."""
    index = [i for i, layer in enumerate(network.layers) if isinstance(layer, rustbn.BatchNorm)][1]
    norm = network.layers[index]
    assert isinstance(norm, rustbn.BatchNorm)
    assert norm.weight is not None
    assert norm.bias is not None
    outputs = activations(network, x)
    before, shifted = outputs[index - 1], outputs[index]
    normalised = (shifted - norm.bias[:, None, None]) / norm.weight[:, None, None]
    return Snapshot(
        before=_mean_and_std(before),
        after=_mean_and_std(normalised),
        quantiles=np.stack(
            [np.quantile(z, QUANTILES, axis=(0, 2, 3)) for z in (before, normalised, shifted)]
        ),
        weight=norm.weight.copy(),
        bias=norm.bias.copy(),
    )


def same_alone(network: Sequential, x: Array) -> float:
    """Return the part of the images that get the same answer alone as among the others."""
    network.eval()
    together = network(x).argmax(axis=1)
    alone = [int(network(x[i : i + 1]).argmax()) for i in range(len(x))]
    return float(np.mean(together == alone))


def _mean_and_std(x: Array) -> tuple[Array, Array]:
    moments = rustbn.moments(x)
    return moments.mean, np.sqrt(moments.var())
