"""Batch norm makes training more stable: at which learning rates networks train."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rustbn.demo.data import Images, load_digits
from rustbn.demo.layers import Array, ReLU
from rustbn.demo.loss import softmax_cross_entropy
from rustbn.demo.network import batch_norm, dense_network, nothing
from rustbn.demo.results import OnProgress, Table, Test, Work, generators, percent, silent
from rustbn.demo.sequential import Sequential
from rustbn.demo.training import single_threaded, train

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SCALES = (0.5, 1.0, 2.0)
QUICK = {"depths": (4, 10), "seeds": 2, "steps": 150}

WORKS = 0.9
"""A learning rate works where the final accuracy reaches this with every seed."""


@dataclass(frozen=True)
class Stability:
    """The numbers of `stability`. Axis 0 is without and with batch norm.

    Attributes
    ----------
    depths, rates, scales : tuple
        Hidden layers, learning rates, and factors of the initial weights.
    accuracy : array, shape (2, depths, rates, seeds)
        On the test images, after the last step.
    gradients : array, shape (2, scales, layers, seeds)
        At the start, in the deepest network: norm of the loss's gradient in what enters the ReLU of
        each hidden layer, from the first to the last.
    """

    depths: tuple[int, ...]
    rates: tuple[float, ...]
    scales: tuple[float, ...]
    accuracy: Array
    gradients: Array

    @property
    def works(self) -> Array:
        """Whether a rate works, of shape (2, depths, rates)."""
        lowest: Array = self.accuracy.min(axis=-1)
        return lowest >= WORKS

    @property
    def growth(self) -> Array:
        """Factor by which the gradient grows per layer on its way down, of shape (2, scales)."""
        norms: Array = np.exp(np.log(self.gradients).mean(axis=-1))
        growth: Array = (norms[..., 0] / norms[..., -1]) ** (1 / (norms.shape[-1] - 1))
        return growth

    @property
    def scale_ratio(self) -> Array:
        """Largest over smallest norm at the first layer among the scales, of shape (2,)."""
        first = self.gradients[:, :, 0]
        ratio: Array = (first.max(axis=1) / first.min(axis=1)).max(axis=-1)
        return ratio

    @property
    def tests(self) -> list[Test]:
        """More rates work, depth by depth."""
        return [
            Test(
                f"Depth {depth}: more learning rates work with batch norm than without",
                f"{self._range(1, d)} with, {self._range(0, d)} without",
                bool(self.works[1, d].sum() > self.works[0, d].sum()),
            )
            for d, depth in enumerate(self.depths)
        ]

    @property
    def findings(self) -> list[str]:
        """What works, and where the gradients of deep networks do worse."""
        where = self.scales.index(1.0)
        without, with_ = self.growth[:, where]
        layers, scale_ratio = self.gradients.shape[2], self.scale_ratio
        counts, depths = self.works.sum(axis=-1), _listed(self.depths)
        low = 100 * np.diff(self.accuracy[:, :, 0].mean(axis=(1, 2)))[0]
        return [
            f"At depths {depths}, {_listed(counts[1])} of {len(self.rates)} learning rates work "
            f"with batch norm, {_listed(counts[0])} without it; the highest that works is "
            f"{_listed(self._highest(1))} with, {_listed(self._highest(0))} without.",
            f"At the lowest rate, {self.rates[0]:g}, networks with batch norm end {abs(low):.0f} "
            f"points {'below' if low < 0 else 'above'} those without, on average.",
            f"Weights between {min(self.scales):g} and {max(self.scales):g} times as large change "
            f"the first layer's gradient at the start {scale_ratio[1]:.2f}-fold with batch norm, "
            f"{scale_ratio[0]:.0e}-fold without.",
            "But batch norm does not keep gradients from exploding: at the start they grow "
            f"{with_:.2f}-fold per layer on their way down, {with_ ** (layers - 1):.0f}-fold over "
            f"{layers} layers (theory: 1.21 per layer); without it, from He's weights, "
            f"{without:.2f}-fold.",
        ]

    @property
    def tables(self) -> list[Table]:
        """Final accuracies, the lowest of the seeds in brackets."""
        rows = []
        for d, depth in enumerate(self.depths):
            for arm, name in enumerate(("without", "with")):
                cells = [f"{percent(a.mean())} ({percent(a.min())})" for a in self.accuracy[arm, d]]
                rows.append((f"{depth} layers, {name}", *cells))
        title = "Final test accuracy by learning rate: mean (lowest) of the seeds"
        return [Table(title, ("Network", *(f"{rate:g}" for rate in self.rates)), rows)]

    def _highest(self, arm: int) -> list[str]:
        return [
            f"{max(rate for rate, good in zip(self.rates, works, strict=True) if good):g}"
            if works.any()
            else "none"
            for works in self.works[arm]
        ]

    def _range(self, arm: int, depth: int) -> str:
        rates = np.array(self.rates)[self.works[arm, depth]]
        return f"{rates.min():g} - {rates.max():g} ({len(rates)})" if len(rates) else "none"


def stability(
    seed: int = 0,
    *,
    depths: tuple[int, ...] = (4, 10, 20),
    rates: tuple[float, ...] = RATES,
    seeds: int = 3,
    steps: int = 300,
    on_progress: OnProgress = silent,
) -> Stability:
    """Train at learning rates over three decades, and look at the gradients at the start.

    Claim
        Batch norm makes training more stable: networks train at more learning rates, and
        at higher ones.
    Method
        Dense networks of several depths learn the 8 x 8 digits by SGD with momentum 0.9 in batches
        of 64, for the same number of steps at each rate. A rate works where the final test accuracy
        is 90 % or more with every seed. With and without batch norm, a seed means the same initial
        weights and the same batches. Beside it, before any training: the norm of the gradient at
        each layer of the deepest network, for initial weights half and twice as large too. Theory
        says that with batch norm and ReLU it grows by √(π/(π-1)) = 1.21 per layer (Yang et al.
        2019, "A mean field theory of batch normalization").
    Rule
        One test for each depth: more rates work with batch norm than without. Supported if all
        hold, refuted if none does, else mixed. The gradients have no say.

    Parameters
    ----------
    seed : int
        Decides weights and batches.
    depths, rates : tuple
        Hidden layers, and learning rates.
    seeds, steps : int
        Trainings of each kind, and their steps.
    on_progress : callable
        Called with the part that is done, from 0 to 1.
    """
    digits = load_digits()
    work = Work(2 * seeds * len(rates) * sum(depths), on_progress)
    accuracy = np.empty((2, len(depths), len(rates), seeds))
    gradients = np.empty((2, len(SCALES), max(depths), seeds))
    with single_threaded():
        for d, r, s, arm in np.ndindex(len(depths), len(rates), seeds, 2):
            weights, order = generators(seed, s)
            network = dense_network(depths[d], (nothing, batch_norm)[arm], weights)
            curve = train(network, digits.train, digits.test, rate=rates[r], steps=steps, rng=order)
            accuracy[arm, d, r, s] = curve.final
            work.done(depths[d])
        for arm, k, s in np.ndindex(2, len(SCALES), seeds):
            weights, _ = generators(seed, s)
            between = (nothing, batch_norm)[arm]
            network = dense_network(max(depths), between, weights, scale=SCALES[k])
            gradients[arm, k, :, s] = gradient_norms(network, digits.train[:256])
    return Stability(depths, rates, SCALES, accuracy, gradients)


def _listed(values: Iterable[object]) -> str:
    *first, last = (str(value) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def gradient_norms(network: Sequential, images: Images) -> list[float]:
    """Return the norm of the loss's gradient in the input of each ReLU, the first layer's first."""
    _, dy = softmax_cross_entropy(network(images.x), images.labels)
    norms = []
    for layer in reversed(network.layers):
        dy = layer.backward(dy)
        if isinstance(layer, ReLU):
            norms.append(float(np.linalg.norm(dy)))
    return norms[::-1]
