"""Batch norm makes networks less sensitive to the scale of their initial weights."""

from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Images, load_digits
from rustbn.demo.layers import Array, Dense
from rustbn.demo.network import batch_norm, dense_network, nothing
from rustbn.demo.results import OnProgress, Table, Test, Work, generators, percent, silent
from rustbn.demo.sequential import Sequential
from rustbn.demo.training import single_threaded, train

ARMS = ("without", "set once", "with batch norm")
SCALES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.01, 0.1)
QUICK = {"depths": (2, 12), "scales": (0.01, 0.1, 1.0, 10.0), "seeds": 1, "steps": 100}

WORKS = 0.9
"""A scale works where the mean final accuracy reaches this."""


@dataclass(frozen=True)
class Initialisation:
    """The numbers of `initialisation`.

    Attributes
    ----------
    rates, depths, scales : tuple
        Learning rates, hidden layers, and factors of the initial weights.
    accuracy : array, shape (3, rates, depths, scales, seeds)
        On the test images after the last step. Axis 0 is `ARMS`.
    """

    rates: tuple[float, ...]
    depths: tuple[int, ...]
    scales: tuple[float, ...]
    accuracy: Array

    @property
    def works(self) -> Array:
        """Whether a scale works, of shape (3, rates, depths, scales)."""
        mean: Array = self.accuracy.mean(axis=-1)
        return mean >= WORKS

    @property
    def tests(self) -> list[Test]:
        """More scales work, for each rate and depth."""
        counts = self.works.sum(axis=-1)
        return [
            Test(
                f"Rate {rate:g}, depth {depth}: more weight scales work with batch norm",
                f"{counts[2, r, d]} of {len(self.scales)} with, {counts[0, r, d]} without, "
                f"{counts[1, r, d]} set once",
                bool(counts[2, r, d] > counts[0, r, d]),
            )
            for r, rate in enumerate(self.rates)
            for d, depth in enumerate(self.depths)
        ]

    @property
    def findings(self) -> list[str]:
        """How many scales work, and what setting the scale once does."""
        low, high = 0, len(self.rates) - 1
        total = self.works[0, 0].size
        count = self.works.sum(axis=(-1, -2))
        deepest = self.accuracy[2, low, -1].mean(axis=-1)
        largest, best = float(deepest[-1]), float(deepest.max())
        repairs = count[1, low] >= count[2, low] and count[1, high] < count[2, high]
        return [
            f"At learning rate {self.rates[low]:g}, {count[2, low]} of {total} combinations of "
            f"depth and weight scale work with batch norm and {count[0, low]} without; at "
            f"{self.rates[high]:g}, {count[2, high]} and {count[0, high]}.",
            "Setting the scale once, with one batch before training, makes "
            f"{count[1, low]} work at {self.rates[low]:g} and {count[1, high]} at "
            f"{self.rates[high]:g}"
            + (
                ": at a low rate it does at least as well as batch norm, at a high one only "
                "normalising at every step helps."
                if repairs
                else "."
            ),
            f"Batch norm is not indifferent to the scale: at {self.rates[low]:g} and "
            f"{self.depths[-1]} layers it ends at {percent(largest, 0)} from the largest weights "
            f"and at {percent(best, 0)} from the best. Its gradients are inversely proportional to "
            "the weights (van Laarhoven 2017), so large ones learn slowly.",
        ]

    @property
    def tables(self) -> list[Table]:
        """Mean final accuracies."""
        columns = ("Network", *(f"scale {scale:g}" for scale in self.scales))
        mean = self.accuracy.mean(axis=-1)
        return [
            Table(
                f"Mean final test accuracy at learning rate {rate:g}",
                columns,
                [
                    (f"{depth} layers, {name}", *(percent(a) for a in mean[arm, r, d]))
                    for d, depth in enumerate(self.depths)
                    for arm, name in enumerate(ARMS)
                ],
            )
            for r, rate in enumerate(self.rates)
        ]


def initialisation(
    seed: int = 0,
    *,
    rates: tuple[float, ...] = RATES,
    depths: tuple[int, ...] = (2, 6, 12),
    scales: tuple[float, ...] = SCALES,
    seeds: int = 2,
    steps: int = 150,
    on_progress: OnProgress = silent,
) -> Initialisation:
    """Train from initial weights of scales over three decades.

    Claim
        Batch norm makes networks less sensitive to the initialisation of their weights.
    Method
        He's initial weights, right for ReLU, are multiplied by 0.01 to 10 in all hidden layers.
        Dense networks of several depths then learn the 8 x 8 digits for a fixed number of steps, at
        a low and at a high learning rate. A scale works where the mean final test accuracy is 90 %
        or more. A third network separates repairing the start from normalising throughout: it has
        no batch norm, but its initial weights and biases are set once, layer by layer, so that
        features have mean 0 and variance 1 over one batch (Mishkin & Matas 2016; Salimans & Kingma
        2016). A seed means the same weights, before the scale, and the same batches for all three.
    Rule
        One test for each learning rate and depth: more scales work with batch norm than without.
        Supported if all hold, refuted if none does, else mixed. The third network has no say.

    Parameters
    ----------
    seed : int
        Decides weights and batches.
    rates, depths, scales : tuple
        Learning rates, hidden layers, and factors of the initial weights.
    seeds, steps : int
        Trainings of each kind, and their steps.
    on_progress : callable
        Called with the part that is done, from 0 to 1.
    """
    digits = load_digits()
    accuracy = np.empty((3, len(rates), len(depths), len(scales), seeds))
    work = Work(3 * len(rates) * sum(depths) * len(scales) * seeds, on_progress)
    with single_threaded():
        for arm, r, d, k, s in np.ndindex(accuracy.shape):
            weights, order = generators(seed, s)
            between = batch_norm if ARMS[arm] == "with batch norm" else nothing
            network = dense_network(depths[d], between, weights, scale=scales[k])
            if ARMS[arm] == "set once":
                set_once(network, digits.train[:256])
            curve = train(network, digits.train, digits.test, rate=rates[r], steps=steps, rng=order)
            accuracy[arm, r, d, k, s] = curve.final
            work.done(depths[d])
    return Initialisation(rates, depths, scales, accuracy)


def set_once(network: Sequential, images: Images) -> None:
    """Give each hidden feature mean 0 and variance 1 over the images, by weights and biases."""
    x = images.x
    *hidden, _ = network.layers
    for layer in hidden:
        if isinstance(layer, Dense):
            moments = rustbn.moments(layer(x))
            # A scale of 0.01 in each of many layers leaves variances far below batch norm's eps.
            scale = moments.invstd(eps=1e-30)
            layer.weight *= scale[:, None]
            layer.bias[:] = (layer.bias - moments.mean) * scale
        x = layer(x)
