"""Steps to a good accuracy and final accuracy, with and without batch norm, at two rates."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rustbn.demo.data import Images, load_digits
from rustbn.demo.layers import Array
from rustbn.demo.network import small_convnet
from rustbn.demo.training import Curve, single_threaded_blas, train

TARGET = 0.95
FAILED = 0.5
"""A network of lower final accuracy has failed; guessing gives 0.1."""

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RATES = (0.03, 0.3)
"""What `choose_rates` returns: the best rate without batch norm, and one that is too high."""


@dataclass(frozen=True)
class Arm:
    """The trainings of one network at one rate, one a seed."""

    batch_norm: bool
    rate: float
    curves: tuple[Curve, ...]

    @property
    def steps_to_target(self) -> Array:
        """The steps to `TARGET` of each seed, infinity where it was never reached."""
        return np.array([curve.steps_to(TARGET) for curve in self.curves])

    @property
    def final(self) -> Array:
        """The final accuracy of each seed."""
        return np.array([curve.final for curve in self.curves])


@dataclass(frozen=True)
class TwoRates:
    """The numbers of `two_rates`: for each rate, an arm without and an arm with batch norm."""

    seeds: tuple[int, ...]
    steps: int
    arms: tuple[Arm, ...]

    @property
    def rates(self) -> list[float]:
        """The learning rates, ascending."""
        return sorted({arm.rate for arm in self.arms})

    def arm(self, rate: float, *, batch_norm: bool) -> Arm:
        """Return the arm of this rate with or without batch norm."""
        return next(a for a in self.arms if (a.rate, a.batch_norm) == (rate, batch_norm))

    def pairs(self, rate: float) -> tuple[int, int]:
        """Return with how many seeds batch norm takes fewer steps to `TARGET`, and more."""
        without, batch_norm = (
            self.arm(rate, batch_norm=on).steps_to_target for on in (False, True)
        )
        return int(np.sum(batch_norm < without)), int(np.sum(batch_norm > without))

    def headline(self) -> str:
        """Say in one sentence what the numbers show; of steps, what most pairs show."""
        low, high = self.rates
        fewer, more = self.pairs(low)
        if fewer > len(self.seeds) / 2:
            steps = "takes fewer steps"
        elif more > len(self.seeds) / 2:
            steps = "takes more steps"
        else:
            steps = "takes about as many steps"

        without_failed = self.arm(high, batch_norm=False).final.max() < FAILED
        batch_norm_trained = self.arm(high, batch_norm=True).final.min() >= TARGET
        if batch_norm_trained and without_failed:
            rate = "and trains at a rate too high without it"
        elif batch_norm_trained:
            rate = "and trains at the high rate"
        else:
            rate = "but does not always train at the high rate"
        return f"Batch norm {steps}, {rate}"


def two_rates(
    seed: int = 0,
    *,
    seeds: int = 5,
    steps: int = 200,
    on_step: Callable[[], object] = lambda: None,
) -> TwoRates:
    """Train two networks, the same but for batch norm, at two learning rates.

    Claim
        Batch norm needs fewer steps, and trains at rates where the network without it fails.
    Method
        A small convolutional network learns the digits with batches of 64. For one seed all its
        trainings start from the same weights and see the same batches. Accuracy is that of the test
        part, measured every 5 steps in evaluation mode. `choose_rates` says where the rates come
        from; the test part had no say in them.

    Parameters
    ----------
    seed : int
        The first seed; the others follow it.
    seeds, steps : int
        The number of seeds, and of steps a training.
    on_step : callable
        Called after each of the ``4 * seeds * steps`` steps.
    """
    digits = load_digits()
    numbers = tuple(range(seed, seed + seeds))
    with single_threaded_blas():
        arms = tuple(
            train_arm(batch_norm, rate, numbers, steps, digits.train, digits.test, on_step)
            for rate in RATES
            for batch_norm in (False, True)
        )
    return TwoRates(numbers, steps, arms)


def choose_rates(
    grid: tuple[float, ...] = GRID, *, seed: int = 1000, seeds: int = 5, steps: int = 200
) -> tuple[float, float]:
    """Choose the two rates on the validation part, by the network *without* batch norm alone.

    The first is its best, the rate of the highest mean final accuracy. The second is the lowest
    rate at which it fails with every seed. The seeds are others than those of `two_rates`.
    """
    digits = load_digits()
    numbers = range(seed, seed + seeds)
    with single_threaded_blas():
        final = {
            rate: train_arm(False, rate, numbers, steps, digits.train, digits.validation).final
            for rate in grid
        }
    best = max(grid, key=lambda rate: final[rate].mean())
    too_high = min(rate for rate in grid if rate > best and final[rate].max() < FAILED)
    return best, too_high


def train_arm(
    batch_norm: bool,
    rate: float,
    seeds: Iterable[int],
    steps: int,
    images: Images,
    held_out: Images,
    on_step: Callable[[], object] = lambda: None,
) -> Arm:
    """Train one network a seed, which decides its first weights and its batches."""
    curves = []
    for seed in seeds:
        weights, order = np.random.default_rng(seed).spawn(2)
        network = small_convnet(batch_norm, weights)
        curves.append(
            train(network, images, held_out, rate=rate, steps=steps, rng=order, on_step=on_step)
        )
    return Arm(batch_norm, rate, tuple(curves))
