"""Batch norm makes training faster: steps and seconds to an accuracy."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Digits, Images, load_digits, load_mnist
from rustbn.demo.layers import Array
from rustbn.demo.network import Between, batch_norm, conv_network, dense_network, nothing
from rustbn.demo.results import (
    TUNING,
    Interval,
    OnProgress,
    Table,
    Test,
    Work,
    generators,
    ratio_interval,
    silent,
    spread,
)
from rustbn.demo.sequential import Sequential
from rustbn.demo.training import accuracy, single_threaded, train

TARGET = 0.95
RATES = (0.01, 0.03, 0.1)
LAG_STEPS = (1, 2, 3, 4, 5, 7, 10, 13, 16, 20, 25, 30, 40, 50, 60, 80)
QUICK = {"names": ("3 dense layers", "10 dense layers"), "seeds": 4, "tuning_seeds": 1}


@dataclass(frozen=True)
class Contest:
    """A network to train: how to make it, what it learns, and at most how many steps."""

    name: str
    make: Callable[[Between, np.random.Generator], Sequential]
    load: Callable[[], Digits]
    steps: int
    cost: float
    """Of a step, about, in milliseconds; for the progress alone."""


CONTESTS = (
    Contest("3 dense layers", lambda b, rng: dense_network(3, b, rng), load_digits, 300, 0.5),
    Contest("10 dense layers", lambda b, rng: dense_network(10, b, rng), load_digits, 400, 1.1),
    Contest("2 convolutions", conv_network, load_mnist, 250, 20),
)
NAMES = tuple(contest.name for contest in CONTESTS)


@dataclass(frozen=True)
class Speed:
    """The numbers of `speed`. The axis of length 2 is without and with batch norm.

    Attributes
    ----------
    names : tuple of str
        The networks.
    limits : tuple of int
        The most steps that each is given.
    rates : array, shape (networks, 2)
        The tuned learning rates.
    steps : array, shape (networks, 2, seeds)
        Steps to 95 % test accuracy; infinity where the limit came first.
    step_seconds : array, shape (networks, 2, seeds)
        Processor seconds a step: the only numbers that another run does not repeat.
    lag_steps : array, shape (measurements,)
        Steps after which the running statistics were judged, in the first network.
    lag_accuracy : array, shape (2, measurements, seeds)
        Test accuracy there, with running and with exact statistics.
    """

    names: tuple[str, ...]
    limits: tuple[int, ...]
    rates: Array
    steps: Array
    step_seconds: Array
    lag_steps: Array
    lag_accuracy: Array

    @property
    def censored(self) -> Array:
        """The steps, with the limit where it came first."""
        steps: Array = np.minimum(self.steps, np.array(self.limits)[:, None, None])
        return steps

    @property
    def seconds(self) -> Array:
        """Steps times what a step takes, the least of the seeds: noise only adds to it."""
        seconds: Array = self.censored * self.step_seconds.min(axis=-1, keepdims=True)
        return seconds

    @property
    def step_ratio(self) -> list[Interval]:
        """For each network: steps without batch norm over steps with it."""
        return [ratio_interval(without / with_) for without, with_ in self.censored]

    @property
    def seconds_ratio(self) -> list[Interval]:
        """For each network: seconds without batch norm over seconds with it."""
        return [ratio_interval(without / with_) for without, with_ in self.seconds]

    @property
    def tests(self) -> list[Test]:
        """Steps, and seconds, fall for each network."""
        return [
            Test(
                f"{name}: fewer {unit} to 95 % with batch norm",
                f"without it {ratio.mean:.1f} times as many ({ratio.low:.1f} to {ratio.high:.1f})",
                ratio.low > 1,
            )
            for n, name in enumerate(self.names)
            for unit, ratio in (("steps", self.step_ratio[n]), ("seconds", self.seconds_ratio[n]))
        ]

    @property
    def findings(self) -> list[str]:
        """The ratios, and how far running statistics lag."""
        running, exact = self.lag_accuracy.mean(axis=-1)
        worst = int(np.argmax(exact - running))
        return [
            "Batch norm reaches 95 % in fewer steps by a factor of "
            + ", ".join(
                f"{r.mean:.1f} ({name})"
                for r, name in zip(self.step_ratio, self.names, strict=True)
            )
            + "; in less time by "
            + ", ".join(f"{r.mean:.1f}" for r in self.seconds_ratio)
            + ", since its steps cost more.",
            "Part of its steps is waiting: running statistics lag behind the weights. After "
            f"{self.lag_steps[worst]} steps the {self.names[0]} score "
            f"{100 * running[worst]:.0f} % with them and {100 * exact[worst]:.0f} % with the exact "
            "statistics of the training images.",
        ]

    @property
    def tables(self) -> list[Table]:
        """Rates, steps and seconds."""
        rows = []
        for n, name in enumerate(self.names):
            for arm, which in enumerate(("without", "with")):
                steps = self.steps[n, arm]
                never = int(np.sum(~np.isfinite(steps)))
                rows.append(
                    (
                        f"{name}, {which}",
                        f"{self.rates[n, arm]:g}",
                        spread(self.censored[n, arm], digits=0),
                        f"{never} of {len(steps)}" if never else "none",
                        spread(self.step_seconds[n, arm], 1e3, 2),
                        spread(self.seconds[n, arm], digits=3),
                    )
                )
        columns = ("Network", "Tuned rate", "Steps", "Never", "Milliseconds a step", "Seconds")
        title = "Steps and seconds to 95 % test accuracy: mean ± standard deviation over seeds"
        return [Table(title, columns, rows)]


def speed(
    seed: int = 0,
    *,
    names: tuple[str, ...] = NAMES,
    rates: tuple[float, ...] = RATES,
    seeds: int = 6,
    tuning_seeds: int = 2,
    on_progress: OnProgress = silent,
) -> Speed:
    """Count steps and seconds to 95 %, each network at the learning rate that suits it best.

    Claim
        Batch norm makes training faster.
    Method
        Dense networks learn the 8 x 8 digits and a convolutional one the 28 x 28 digits of MNIST,
        by SGD with momentum 0.9 in batches of 64. Each, with and without batch norm, has the
        learning rate at which it was fastest to 95 % of the *validation* images, with other seeds.
        Then, every 5 steps, test accuracy is measured, until it reaches 95 %; a network that never
        does counts with its limit of steps. Seconds are steps times the processor time of a step on
        one thread, the least of the seeds, measurements of accuracy not counted. With and without
        batch norm, a seed means the same initial weights and the same batches. The interval is
        Student's, 95 %, of the logarithm of the ratios of the pairs. Beside it, how running
        statistics lag: test accuracy with them and with the exact statistics of all training
        images, in the first steps.
    Rule
        Two tests for each network: the ratio of steps, and the ratio of seconds, without over with
        batch norm, have intervals above 1. Supported if all hold, refuted if none does, else mixed.

    Parameters
    ----------
    seed : int
        Decides weights and batches.
    names : tuple of str
        Which of the networks of `CONTESTS` to train.
    rates : tuple of float
        The learning rates to choose from.
    seeds, tuning_seeds : int
        Pairs of trainings to measure with, and trainings for each rate to choose it by.
    on_progress : callable
        Called with the part that is done, from 0 to 1.

    Raises
    ------
    ValueError
        If one of the names is none of them.
    """
    if not set(names) <= set(NAMES):
        raise ValueError(f"names: expected some of {NAMES}, got {names}")
    contests = [contest for contest in CONTESTS if contest.name in names]
    chosen = np.empty((len(contests), 2))
    steps = np.empty((len(contests), 2, seeds))
    step_seconds = np.empty_like(steps)
    trainings = 2 * (len(rates) * tuning_seeds + seeds)
    work = Work(sum(trainings * c.steps * c.cost for c in contests), on_progress)

    def run(
        contest: Contest, arm: int, number: int, rate: float, held_out: Images
    ) -> tuple[float, float]:
        weights, order = generators(seed, number)
        network = contest.make((nothing, batch_norm)[arm], weights)
        curve = train(
            network, contest.load().train, held_out,
            rate=rate, steps=contest.steps, rng=order, every=5, until=TARGET,
        )  # fmt: skip
        work.done(contest.steps * contest.cost)
        return curve.steps_to(TARGET), curve.step_seconds

    def steps_on_validation(contest: Contest, arm: int, rate: float) -> float:
        numbers = range(TUNING, TUNING + tuning_seeds)
        validation = contest.load().validation
        counts = [run(contest, arm, number, rate, validation)[0] for number in numbers]
        return float(np.minimum(counts, contest.steps).mean())

    with single_threaded():
        for n, contest in enumerate(contests):
            for arm in range(2):
                tuned = [steps_on_validation(contest, arm, rate) for rate in rates]
                chosen[n, arm] = rates[int(np.argmin(tuned))]
            for s in range(seeds):  # in pairs, so that what else the machine does meets both
                for arm in range(2):
                    steps[n, arm, s], step_seconds[n, arm, s] = run(
                        contest, arm, s, chosen[n, arm], contest.load().test
                    )
        lags = [follow_lag(contests[0], (seed, s), chosen[0, 1]) for s in range(seeds)]
    return Speed(
        tuple(contest.name for contest in contests),
        tuple(contest.steps for contest in contests),
        chosen,
        steps,
        step_seconds,
        np.array(LAG_STEPS),
        np.stack(lags, axis=-1),
    )


def follow_lag(contest: Contest, seed: tuple[int, int], rate: float) -> Array:
    """Return the test accuracies, after `LAG_STEPS`, with running and with exact statistics."""
    digits = contest.load()
    weights, order = generators(*seed)
    network = contest.make(batch_norm, weights)
    accuracies = []

    def after_step(step: int) -> None:
        if step in LAG_STEPS:
            exact = copy.deepcopy(network)
            for layer in exact.layers:
                if isinstance(layer, rustbn.BatchNorm):
                    layer.momentum = 1.0  # its running statistics are those of the latest batch,
            exact.train()(digits.train.x)  # and that is all the training images
            accuracies.append((accuracy(network, digits.test), accuracy(exact, digits.test)))

    train(
        network, digits.train, digits.test,
        rate=rate, steps=max(LAG_STEPS), rng=order, after_step=after_step,
    )  # fmt: skip
    return np.array(accuracies).T
