"""Batch norm works by reducing internal covariate shift: three measurements."""

import copy
from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Digits, Images, load_digits
from rustbn.demo.layers import Array, Dense, Layer, Module
from rustbn.demo.network import Between, batch_norm, dense_network, nothing
from rustbn.demo.optim import SGD
from rustbn.demo.results import (
    TUNING,
    Interval,
    OnProgress,
    Table,
    Test,
    Work,
    generators,
    interval,
    points,
    ratio_interval,
    silent,
    spread,
)
from rustbn.demo.sequential import Sequential, activations
from rustbn.demo.training import accuracy, backpropagate, batches, single_threaded, train

ARMS = ("without", "batch norm, same rate", "batch norm", "batch norm and noise")
WITHOUT, SAME_RATE, WITH, NOISY = range(4)
RATES = (0.01, 0.03, 0.1, 0.3)
EVERY = 5
"""Steps between two measurements."""
QUICK = {"rates": (0.03, 0.1), "seeds": 3, "tuning_seeds": 1, "steps": 100}


@dataclass(frozen=True)
class CovariateShift:
    """The numbers of `covariate_shift`. The axis of length 4 is `ARMS`.

    Attributes
    ----------
    rates : array, shape (4,)
        The learning rates.
    steps : array, shape (measurements,)
    accuracy : array, shape (4, measurements, seeds)
        On the test images.
    drift : array, shape (4, seeds)
        How far the mean of a layer's feature moves in 5 steps, before it is normalised, in standard
        deviations of the feature; mean over features, layers and steps.
    change, cosine : array, shape (4, seeds)
        Of a layer's gradient before and after the layers below took their step: norm of the
        difference over norm, and cosine; mean over layers and steps. NaN for the noisy network,
        whose gradient changes from one forward to the next all the same.
    """

    rates: Array
    steps: Array
    accuracy: Array
    drift: Array
    change: Array
    cosine: Array

    def drift_ratio(self, arm: int) -> Interval:
        """Return drift over that without batch norm."""
        return ratio_interval(self.drift[arm] / self.drift[WITHOUT])

    def change_ratio(self, arm: int) -> Interval:
        """Return the change of the gradient over that without batch norm."""
        return ratio_interval(self.change[arm] / self.change[WITHOUT])

    def benefit(self, arm: int) -> Interval:
        """Return the mean accuracy during training, less that without batch norm."""
        mean = self.accuracy.mean(axis=1)
        return interval(mean[arm] - mean[WITHOUT])

    @property
    def more_than_half(self) -> Interval:
        """The benefit that stays with noise, less half of that without noise."""
        mean = self.accuracy.mean(axis=1)
        return interval(mean[NOISY] - (mean[WITHOUT] + mean[WITH]) / 2)

    @property
    def kept(self) -> float:
        """The part of the benefit that stays with noise."""
        return self.benefit(NOISY).mean / self.benefit(WITH).mean

    @property
    def tests(self) -> list[Test]:
        """Less drift, steadier gradients, and less benefit where the drift is restored."""
        drift, noisy, benefit = self.drift_ratio(WITH), self.drift_ratio(NOISY), self.benefit(NOISY)
        steadier = [
            Test(
                f"A layer's gradient changes less when the layers below take a step, at {which}",
                _ratio(self.change_ratio(arm)),
                self.change_ratio(arm).high < 1,
            )
            for arm, which in ((SAME_RATE, "the same rate"), (WITH, "each network's best rate"))
        ]
        return [
            Test("Layer inputs drift less with batch norm", _ratio(drift), drift.high < 1),
            *steadier,
            Test(
                "Noise that restores the drift takes more than half of the benefit away",
                f"drift {_ratio(noisy)}; the benefit is {points(benefit)}, without noise "
                f"{points(self.benefit(WITH))}",
                self.more_than_half.high < 0,
            ),
        ]

    @property
    def findings(self) -> list[str]:
        """The three measurements, and what they say together."""
        drift, noisy = self.drift_ratio(WITH), self.drift_ratio(NOISY)
        cosine = self.cosine.mean(axis=-1)
        conclusion = (
            ": that part does not come from less drift."
            if noisy.mean >= 1 and self.benefit(NOISY).low > 0
            else "."
        )
        return [
            f"Batch norm divides the drift of layer inputs by {1 / drift.mean:.0f}. Noise after it "
            f"brings the drift to {noisy.mean:.1f} times that without batch norm, and "
            f"{100 * self.kept:.0f} % of the benefit stays" + conclusion,
            "When the layers below take their step, a layer's gradient changes "
            f"{self.change_ratio(SAME_RATE).mean:.2f} times as much as without batch norm at the "
            f"same learning rate (cosine {cosine[SAME_RATE]:.2f} against {cosine[WITHOUT]:.2f}), "
            f"{self.change_ratio(WITH).mean:.2f} times at its own best rate.",
        ]

    @property
    def tables(self) -> list[Table]:
        """All measurements."""
        mean = self.accuracy.mean(axis=1)
        rows = [
            (
                name,
                f"{self.rates[arm]:g}",
                spread(self.drift[arm], digits=3),
                spread(self.change[arm], digits=2) if arm != NOISY else "",
                spread(self.cosine[arm], digits=2) if arm != NOISY else "",
                spread(mean[arm], 100),
            )
            for arm, name in enumerate(ARMS)
        ]
        columns = (
            "Network",
            "Learning rate",
            "Drift in 5 steps, standard deviations",
            "Gradient change",
            "Gradient cosine",
            "Mean accuracy in training, %",
        )
        return [Table("Mean ± standard deviation over seeds", columns, rows)]


def covariate_shift(
    seed: int = 0,
    *,
    rates: tuple[float, ...] = RATES,
    depth: int = 6,
    seeds: int = 8,
    tuning_seeds: int = 2,
    steps: int = 150,
    on_progress: OnProgress = silent,
) -> CovariateShift:
    """Measure the shift of layer inputs and of gradients, and restore the first by noise.

    Claim
        Batch norm works by reducing internal covariate shift: the layers below a layer change its
        inputs less, and that is why networks with batch norm train faster (Ioffe & Szegedy 2015).
    Method
        A dense network of 6 hidden layers learns the 8 x 8 digits, without batch norm, with it, and
        with batch norm followed by noise: a random scale in 0.5-1.5 and a random shift of standard
        deviation 0.3 for each feature, new at each step, which moves what the next layer sees
        (Santurkar et al. 2018). Each has its best learning rate, that of the highest mean accuracy
        during training on *validation* images, with other seeds; batch norm is measured at the best
        rate of the network without it too. 1. Drift: how far the means of features, before they are
        normalised, move in 5 steps, over validation images. 2. Gradients: how much a layer's
        gradient changes when the layers below it take their step and nothing else changes
        (Santurkar et al. 2018, definition 2.1). 3. Benefit: mean test accuracy during training. A
        seed means the same weights and batches for all; intervals are Student's, 95 %, of pairs.
    Rule
        Tests: the ratio of the drifts with and without batch norm has an interval below 1; so has
        that of the gradient changes, at the same rate, and at each network's best rate; and of
        the benefit less than half is left with noise (the interval of the difference from half of
        it is below 0). Supported if all hold, refuted if none does, else mixed.

    Parameters
    ----------
    seed : int
        Decides weights, batches and noise.
    rates : tuple of float
        The learning rates to choose from.
    depth : int
        Hidden layers.
    seeds, tuning_seeds : int
        Trainings of each kind to measure with, and to choose by.
    steps : int
        The steps of a training.
    on_progress : callable
        Called with the part that is done, from 0 to 1.
    """
    digits = load_digits()
    shape = (len(ARMS), seeds)
    drift, change, cosine = np.empty(shape), np.full(shape, np.nan), np.full(shape, np.nan)
    accuracies = np.empty((len(ARMS), steps // EVERY, seeds))
    work = Work(3 * len(rates) * tuning_seeds + 3 * len(ARMS) * seeds, on_progress)

    def start(arm: int, number: int) -> tuple[Sequential, np.random.Generator]:
        weights, order, noise = generators(seed, number, count=3)
        between = (nothing, batch_norm, batch_norm, batch_norm_and_noise(noise))[arm]
        return dense_network(depth, between, weights), order

    def on_validation(arm: int, rate: float) -> float:
        curves = []
        for number in range(TUNING, TUNING + tuning_seeds):
            network, order = start(arm, number)
            curve = train(
                network, digits.train, digits.validation,
                rate=rate, steps=steps, rng=order, every=EVERY,
            )  # fmt: skip
            curves.append(curve.accuracy)
            work.done(1)
        return float(np.mean(curves))

    def best_rate(arm: int) -> float:
        return max(rates, key=lambda rate: on_validation(arm, rate))

    with single_threaded():
        without, with_, noisy = (best_rate(arm) for arm in (WITHOUT, WITH, NOISY))
        best = np.array([without, without, with_, noisy])
        for arm, s in np.ndindex(shape):
            network, order = start(arm, s)
            accuracies[arm, :, s], drift[arm, s], shifts = train_and_measure(
                network, digits, float(best[arm]), steps, order, gradients=arm != NOISY
            )
            if arm != NOISY:
                change[arm, s], cosine[arm, s] = np.mean(shifts, axis=0)
            work.done(3)
    number = EVERY * np.arange(1, accuracies.shape[1] + 1)
    return CovariateShift(best, number, accuracies, drift, change, cosine)


class RandomScaleShift(Layer):
    """y = a · x + b in training, a and b drawn anew for each feature at each step.

    a is uniform in 0.5-1.5, b normal with standard deviation 0.3: features have in each batch
    another mean and variance. In evaluation y = x.
    """

    def __init__(self, features: int, rng: np.random.Generator) -> None:
        self.features = features
        self.rng = rng

    def __call__(self, x: Array, /) -> Array:  # noqa: D102
        if not self.training:
            return x
        self.a = self.rng.uniform(0.5, 1.5, self.features).astype(x.dtype)
        y: Array = self.a * x + self.rng.normal(0, 0.3, self.features).astype(x.dtype)
        return y

    def backward(self, dy: Array, /) -> Array:  # noqa: D102
        dx: Array = self.a * dy
        return dx


def batch_norm_and_noise(rng: np.random.Generator) -> Between:
    """Return what puts batch norm, and noise after it, before each ReLU."""

    def between(features: int) -> list[Module]:
        return [rustbn.BatchNorm(features), RandomScaleShift(features, rng)]

    return between


def train_and_measure(
    network: Sequential,
    digits: Digits,
    rate: float,
    steps: int,
    order: np.random.Generator,
    *,
    gradients: bool,
) -> tuple[list[float], float, list[tuple[float, float]]]:
    """Train, and return test accuracies, the mean drift and, if asked for, `gradient_shifts`.

    It is `train` with looks at the network before a step and after it, every 5 steps. Drift
    compares one look with the next.
    """
    # The first dense layer's input is the images, which do not shift; the last is no hidden layer.
    dense = [i for i, layer in enumerate(network.layers) if isinstance(layer, Dense)][1:-1]
    optimiser = SGD(network, rate)
    before: list[rustbn.Moments] = []
    accuracies, drifts, shifts = [], [], []
    for step, part in zip(range(1, steps + 1), batches(digits.train, 64, order), strict=False):
        network.train()
        backpropagate(network, part)
        look = step % EVERY == 0
        old = copy.deepcopy(network) if look and gradients else None
        optimiser.step()
        if old is not None:
            shifts += gradient_shifts(old, network, part, dense)
        if look:
            outputs = activations(network, digits.validation.x)
            now = [rustbn.moments(outputs[i]) for i in dense]
            for a, b in zip(before, now, strict=False):
                drifts.append(np.mean(np.abs(b.mean - a.mean) * a.invstd()))
            before = now
            accuracies.append(accuracy(network, digits.test))
    return accuracies, float(np.mean(drifts)), shifts


def gradient_shifts(
    old: Sequential, new: Sequential, images: Images, layers: list[int]
) -> list[tuple[float, float]]:
    """Return how a layer's gradient in `old` changes once the layers below are those of `new`.

    For each of `layers`: the norm of the difference over the norm, and the cosine. `old` holds its
    gradients for the images, and is `new` in the end but for its last layers.
    """
    gradients = {name: grad.copy() for name, grad in old.named_grads()}
    parameters = dict(new.named_parameters())
    shifts = []
    for i, layer in enumerate(old.layers[: max(layers) + 1]):
        if i in layers:
            backpropagate(old, images)
            now = dict(layer.named_grads())["weight"]
            was = gradients[f"{i}.weight"]
            norm = np.linalg.norm(was)
            cosine = np.sum(was * now) / (norm * np.linalg.norm(now))
            shifts.append((float(np.linalg.norm(now - was) / norm), float(cosine)))
        for name, parameter in layer.named_parameters():
            parameter[...] = parameters[f"{i}.{name}"]
    return shifts


def _ratio(ratio: Interval) -> str:
    return f"{ratio.mean:.2f} times that without ({ratio.low:.2f} to {ratio.high:.2f})"
