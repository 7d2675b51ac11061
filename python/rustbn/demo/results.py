"""What the experiments share: tests and verdicts, tables of numbers, intervals, progress."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from rustbn.demo.layers import Array
from rustbn.demo.requirements import require

Verdict: TypeAlias = Literal["supported", "mixed", "refuted"]
OnProgress: TypeAlias = Callable[[float], object]
"""Called with the part of an experiment that is done, from 0 to 1."""
TUNING = 1000
"""Added to the number of a seed to make another one, for tuning."""


@dataclass(frozen=True)
class Test:
    """Something a claim says, the numbers it is held against, and whether it holds."""

    says: str
    numbers: str
    holds: bool

    __test__ = False  # the name is not meant for pytest


@dataclass(frozen=True)
class Table:
    """Numbers to read, already formatted; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Result(Protocol):
    """What every experiment returns, besides its numbers.

    Attributes
    ----------
    tests : sequence of Test
        What the claim says, each held against numbers. All hold: the claim is supported; none: it
        is refuted; some: mixed.
    findings : sequence of str
        What the numbers say, a sentence each, the most important one first.
    tables : sequence of Table
    """

    @property
    def tests(self) -> Sequence[Test]: ...  # noqa: D102
    @property
    def findings(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def tables(self) -> Sequence[Table]: ...  # noqa: D102


def verdict(tests: Iterable[Test]) -> Verdict:
    """Return supported where all tests hold, refuted where none does, else mixed."""
    holds = [test.holds for test in tests]
    return "supported" if all(holds) else "mixed" if any(holds) else "refuted"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Array) -> Interval:
    """Return Student's interval for the mean of the values, which is endless for a single one."""
    require("scipy")
    from scipy.special import stdtrit

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(ratios: Array) -> Interval:
    """Return the geometric mean of the ratios with the interval that their logarithms give."""
    log = interval(np.log(ratios))
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(value)) for value in (log.mean, log.low, log.high)))


def generators(*seed: int, count: int = 2) -> list[np.random.Generator]:
    """Return independent generators: for the weights, the batches, and what else is drawn.

    A network with batch norm and one without, given the generators of one seed, start from the same
    weights and see the same batches.
    """
    return np.random.default_rng(seed).spawn(count)


class Work:
    """Adds up what is done, and reports it as a part of the whole."""

    def __init__(self, total: float, on_progress: OnProgress) -> None:
        self.total = total
        self.so_far = 0.0
        self.on_progress = on_progress

    def done(self, amount: float) -> None:
        """Report that so much more is done."""
        self.so_far += amount
        self.on_progress(min(self.so_far / self.total, 1.0))


def silent(part: float) -> None:
    """Report nothing."""


def seeds(count: int) -> str:
    """Say how many seeds."""
    return f"{count} seed" + ("s" if count != 1 else "")


def percent(part: float, digits: int = 1) -> str:
    """Format a part of 1, such as an accuracy."""
    return f"{100 * part:.{digits}f}\N{NO-BREAK SPACE}%"


def spread(values: Array, scale: float = 1.0, digits: int = 1) -> str:
    """Format mean and standard deviation over seeds; of a single value, the value."""
    mean = f"{round(scale * np.mean(values), digits) + 0:.{digits}f}"  # + 0: no "-0.00"
    if len(values) < 2:
        return mean
    return f"{mean} ± {scale * np.std(values, ddof=1):.{digits}f}"


def points(gain: Interval) -> str:
    """Format a difference of accuracies and its interval in points of percent."""
    mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})"
