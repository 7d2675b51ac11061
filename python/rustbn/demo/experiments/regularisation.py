"""Batch norm regularises: what networks with it make of wrong labels."""

from dataclasses import dataclass

import numpy as np

import rustbn
from rustbn.demo.data import Images, load_digits
from rustbn.demo.layers import Array, Dropout
from rustbn.demo.network import Between, dense_network, nothing
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
    silent,
    spread,
)
from rustbn.demo.training import accuracy, single_threaded, train

BATCH = 64
GROUPS = (64, 16, 8, 4)
DROPOUT = (0.1, 0.2, 0.3, 0.5)
RATE = 0.01
EVERY = 50
"""Steps between two measurements."""
WRONG = 0.2
QUICK = {"groups": (64, 8, 4), "dropout": (0.3,), "seeds": 3, "tuning_seeds": 1, "steps": 700}


@dataclass(frozen=True)
class Regularisation:
    """The numbers of `regularisation`.

    Attributes
    ----------
    names : tuple of str
        The networks: without batch norm, with dropout, with batch norm over groups.
    groups : tuple of int
        The sizes of the groups, in the order of the last networks.
    dropout : float
        Its probability, chosen on validation images.
    steps : array, shape (measurements,)
    validation, test : array, shape (networks, measurements, seeds)
        Accuracy on images with the right labels.
    memorised : array, shape (networks, seeds)
        The part of the wrong training labels that the network gives in the end.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    dropout: float
    steps: Array
    validation: Array
    test: Array
    memorised: Array

    @property
    def final(self) -> Array:
        """Test accuracy after the last step, of shape (networks, seeds)."""
        return self.test[:, -1]

    @property
    def stopped_early(self) -> Array:
        """Test accuracy at the step of the best validation accuracy, of shape (networks, seeds)."""
        best = self.validation.argmax(axis=1)
        return np.take_along_axis(self.test, best[:, None], axis=1)[:, 0]

    @property
    def gains(self) -> list[Interval]:
        """For each network but the first: its final test accuracy less that of the first."""
        return [interval(accuracies - self.final[0]) for accuracies in self.final[1:]]

    @property
    def by_noise(self) -> bool:
        """Whether the smallest groups gain and the largest do not."""
        largest, smallest = self.gains[1], self.gains[-1]
        return smallest.low > 0 >= largest.low

    @property
    def tests(self) -> list[Test]:
        """Each size of group gains."""
        tests = []
        for group, gain in zip(self.groups, self.gains[1:], strict=True):
            whole = ", the whole batch" if group == BATCH else ""
            tests.append(
                Test(
                    f"Statistics of {group} images{whole}: higher test accuracy than without",
                    points(gain),
                    gain.low > 0,
                )
            )
        return tests

    @property
    def findings(self) -> list[str]:
        """The gains, and what they say about the noise."""
        dropout, *groups = self.gains
        memorised = self.memorised.mean(axis=-1)
        early = interval(self.stopped_early[0] - self.final[0])
        return [
            "Against no batch norm, statistics of "
            + ", ".join(
                f"{group} images gain {gain.mean * 100:+.1f} points"
                for group, gain in zip(self.groups, groups, strict=True)
            )
            + f"; dropout of {self.dropout:g} gains {100 * dropout.mean:+.1f}, and stopping the "
            f"network without batch norm early gains {100 * early.mean:+.1f}.",
            f"Networks without batch norm memorise {100 * memorised[0]:.0f} % of the wrong labels, "
            f"with groups of {self.groups[0]} {100 * memorised[2]:.0f} %, "
            f"with groups of {self.groups[-1]} {100 * memorised[-1]:.0f} %"
            + (
                ". Only the size of the groups differs: it is the noise of their statistics that "
                "regularises, not the normalising."
                if self.by_noise
                else "."
            ),
        ]

    @property
    def tables(self) -> list[Table]:
        """Accuracies, gains, and what was memorised."""
        gains = ["", *(points(gain) for gain in self.gains)]
        rows = [
            (name, spread(final, 100), gain, spread(early, 100), spread(memorised, 100))
            for name, final, gain, early, memorised in zip(
                self.names, self.final, gains, self.stopped_early, self.memorised, strict=True
            )
        ]
        columns = (
            "Network",
            "Final test accuracy, %",
            "Gain (95 % interval)",
            "Stopped early, %",
            "Wrong labels learnt, %",
        )
        title = f"{100 * WRONG:.0f} % wrong labels, learning rate {RATE:g} for all: mean ± "
        return [Table(title + "standard deviation over seeds", columns, rows)]


def regularisation(
    seed: int = 0,
    *,
    groups: tuple[int, ...] = GROUPS,
    dropout: tuple[float, ...] = DROPOUT,
    seeds: int = 6,
    tuning_seeds: int = 2,
    steps: int = 1000,
    on_progress: OnProgress = silent,
) -> Regularisation:
    """Train on labels of which a fifth is wrong, with batch norm over groups of several sizes.

    Claim
        Batch norm acts as a regularizer.
    Method
        Dense networks of 3 hidden layers learn 1024 of the 8 x 8 digits, 20 % of them with a wrong
        label, for so long that the one without batch norm learns wrong ones by heart; the labels of
        validation and test images are right. All take SGD steps with momentum 0.9, learning rate
        0.01 and batches of 64. Only the group of images whose statistics normalise varies: the
        whole batch, or parts of it, one after another (`group_size` of `rustbn.BatchNorm`; Hoffer,
        Hubara & Soudry 2017). The running statistics, which evaluation uses, follow those of the
        whole batch in all. Dropout stands beside it, its probability the best on validation images,
        with other seeds; and so does stopping early, where validation accuracy is highest. A seed
        means the same weights, the same wrong labels and the same batches for all. The interval is
        Student's, 95 %, of the differences of the pairs.
    Rule
        One test for each size of group, the whole batch among them: the gain in final test accuracy
        over no batch norm has an interval above 0. Supported if all hold, refuted if none does,
        else mixed. Dropout and stopping early have no say.

    Parameters
    ----------
    seed : int
        Decides weights, labels and batches.
    groups : tuple of int
        Sizes of the groups, divisors of 64.
    dropout : tuple of float
        Probabilities to choose from.
    seeds, tuning_seeds : int
        Trainings of each kind to measure with, and to choose by.
    steps : int
        The steps of a training.
    on_progress : callable
        Called with the part that is done, from 0 to 1.
    """
    digits = load_digits()
    names = ("without", "dropout", *(f"batch norm, groups of {group}" for group in groups))
    work = Work(len(dropout) * tuning_seeds + len(names) * seeds, on_progress)

    def run(kind: Between | float, number: int) -> tuple[Array, Array, float]:
        weights, order, labels, drops = generators(seed, number, count=4)
        between = kind if callable(kind) else dropping(kind, drops)
        network = dense_network(3, between, weights)
        images, wrong = with_wrong_labels(digits.train, labels)
        test = []

        def after_step(step: int) -> None:
            if step % EVERY == 0:
                test.append(accuracy(network, digits.test))

        curve = train(
            network, images, digits.validation, rate=RATE, steps=steps, rng=order, batch=BATCH,
            every=EVERY, after_step=after_step,
        )  # fmt: skip
        work.done(1)
        return curve.accuracy, np.array(test), accuracy(network, images[wrong])

    def on_validation(p: float) -> float:
        numbers = range(TUNING, TUNING + tuning_seeds)
        return float(np.mean([run(p, number)[0][-1] for number in numbers]))

    with single_threaded():
        p = max(dropout, key=on_validation)
        kinds: tuple[Between | float, ...] = (nothing, p, *(ghost(group) for group in groups))
        runs = [[run(kind, s) for s in range(seeds)] for kind in kinds]
    validation, test, memorised = (
        np.array([[one[i] for one in row] for row in runs]) for i in range(3)
    )
    return Regularisation(
        names,
        groups,
        p,
        EVERY * np.arange(1, validation.shape[-1] + 1),
        validation.swapaxes(1, 2),
        test.swapaxes(1, 2),
        memorised,
    )


def dropping(p: float, rng: np.random.Generator) -> Between:
    """Return what puts dropout before each ReLU, where it does the same as after it."""
    return lambda features: [Dropout(p, rng)]


def ghost(group: int) -> Between:
    """Return what puts batch norm over groups of so many images before each ReLU."""
    return lambda features: [rustbn.BatchNorm(features, group_size=group)]


def with_wrong_labels(
    images: Images, rng: np.random.Generator, count: int = 1024
) -> tuple[Images, Array]:
    """Return some of the images, a fifth of them with another label, and which these are."""
    some = images[rng.permutation(len(images))[:count]]
    wrong = rng.permutation(count)[: round(WRONG * count)]
    labels = some.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return Images(some.x, labels), wrong
