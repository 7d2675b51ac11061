"""Contestants timed in turns: each round runs all of them, in another order each time."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

# A sample lasts at least about so long, in as many calls as that takes.
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Clock:
    """What seconds are read from."""

    name: str
    now: Callable[[], float]


@dataclass(frozen=True)
class Quartiles:
    """Seconds per call: the median of the samples and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int
    calls_per_sample: int


def clock_for(threads: int) -> Clock:
    """Return processor time for one thread, which others on the machine disturb less."""
    if threads == 1:
        return Clock("processor time", time.process_time)
    return Clock("wall clock", time.perf_counter)


def quartiles(samples: Sequence[float], calls: int) -> Quartiles:
    """Summarise seconds of samples of so many calls each."""
    low, median, high = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)) / calls)
    return Quartiles(median, low, high, len(samples), calls)


def interleave(
    timers: Mapping[str, Callable[[int], float]],
    repeats: int,
    sample_seconds: float,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Quartiles]:
    """Time contestants in turns.

    Parameters
    ----------
    timers : mapping of callables
        By name: timer(n) makes n calls and returns their seconds.
    repeats : int
        Number of rounds, each giving one sample of each contestant.
    sample_seconds : float
        How long a sample lasts at least.
    on_round : callable, optional
        Called after each round.

    Returns
    -------
    dict of Quartiles
        By name, in the order of `timers`.
    """
    order = list(timers)
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in order}
    with no_garbage_collection():
        calls = {name: _calls(timer, sample_seconds) for name, timer in timers.items()}
        for _ in range(repeats):
            shuffle(order)
            for name in order:
                samples[name].append(timers[name](calls[name]))
            on_round()
    return {name: quartiles(samples[name], calls[name]) for name in timers}


def timer(call: Callable[[], object], clock: Clock) -> Callable[[int], float]:
    """Return the timer of a function, for `interleave`."""
    now = clock.now

    def seconds(calls: int) -> float:
        start = now()
        for _ in range(calls):
            call()
        return now() - start

    return seconds


def core_rate() -> float:
    """Return float64 square roots per nanosecond, made within the first-level cache.

    Memory has no part in it: it falls where the clock does, and where somebody else computes on the
    other thread of the core, which kernels that are not bound by memory feel likewise.
    """
    values = np.ones(1024)
    into = np.empty_like(values)
    calls = 64

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            np.sqrt(values, out=into)
        return time.perf_counter() - start

    return calls * values.size / min(seconds() for _ in range(5)) * 1e-9


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting garbage within samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _calls(timer: Callable[[int], float], sample_seconds: float) -> int:
    """Return how many calls fill a sample; the first call warms up and counts for nothing."""
    timer(1)
    calls = 1
    while True:
        seconds = timer(calls)
        if seconds >= sample_seconds / 2:
            return max(1, math.ceil(calls * sample_seconds / seconds))
        calls *= 4
