"""The limits: the bytes of a pass moved, and nothing else.

A forward pass reads x and writes y, as a copy does. A backward pass reads x and dy and writes dx,
as an addition does. With several threads each moves its share. Numbers of 16 bits are added as
integers: NumPy's additions of float16 and bfloat16 are bound by their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from rustbn.bench import streaming
from rustbn.bench.contestant import LIMIT, LIMIT_FRESH, STREAMING, Contestant
from rustbn.bench.problem import Array, Problem, flat

Job: TypeAlias = Callable[[], object]

# Bytes from which an array is worth streaming (smaller ones stay in the cache) and worth sharing
# (smaller ones are copied before another Python thread has begun).
LARGE = 4 << 20


class Team:
    """Threads that share the elements of an array, the caller's thread among them."""

    def __init__(self, threads: int, pool: Executor) -> None:
        self.threads = threads
        self.pool = pool

    def split(self, x: Array, job: Callable[[slice], Job]) -> Job:
        """Return one job of the jobs that `job` gives for each thread's part of `x`."""
        threads = 1 if self._is_alone(x) else self.threads
        bounds = [x.size * i // threads for i in range(threads + 1)]
        first, *others = (job(slice(*pair)) for pair in pairwise(bounds))
        if not others:
            return first

        def all_parts() -> None:
            futures = [self.pool.submit(other) for other in others]
            first()
            for future in futures:
                future.result()

        return all_parts

    def _is_alone(self, x: Array) -> bool:
        """Tell whether the caller's thread does all of `x`."""
        return self.threads == 1 or x.nbytes < LARGE

    def copy(self, x: Array, out: Array) -> Job:
        """Return the job of copying."""
        return self.split(x, lambda part: partial(np.copyto, out[part], x[part]))

    def add(self, x: Array, dy: Array, out: Array) -> Job:
        """Return the job of adding."""
        return self.split(x, lambda part: partial(np.add, x[part], dy[part], out[part]))

    def fresh_copy(self, x: Array) -> Array:
        """Return a copy."""
        if self._is_alone(x):
            return x.copy()
        out = np.empty_like(x)
        self.copy(x, out)()
        return out

    def fresh_sum(self, x: Array, dy: Array) -> Array:
        """Return the sum."""
        if self._is_alone(x):
            total: Array = x + dy
            return total
        out = np.empty_like(x)
        self.add(x, dy, out)()
        return out


@contextmanager
def team(threads: int) -> Iterator[Team]:
    """Give a `Team` of so many threads."""
    with ThreadPoolExecutor(max(1, threads - 1)) as pool:
        yield Team(threads, pool)


def limits(problem: Problem, pass_: str, team: Team) -> list[Contestant]:
    """Return the limits of a pass: existing outputs, fresh ones, streaming stores."""
    x, dy, out = moved(problem)
    existing: Job
    fresh: Job
    if pass_ == "backward":
        existing, fresh = team.add(x, dy, out), partial(team.fresh_sum, x, dy)
        streamed = team.split(x, lambda p: partial(streaming.streaming_add, x[p], dy[p], out[p]))
    else:
        existing, fresh = team.copy(x, out), partial(team.fresh_copy, x)
        streamed = team.split(x, lambda p: partial(streaming.streaming_copy, x[p], out[p]))
    calls: dict[str, Job] = {LIMIT: existing, LIMIT_FRESH: fresh}
    if x.dtype == np.float32 and x.nbytes >= LARGE and streaming.loops() is not None:
        calls[STREAMING] = streamed
    if pass_ == "step":
        backward = {entry.name: entry.call for entry in limits(problem, "backward", team)}
        calls = {name: _both(call, backward[name]) for name, call in calls.items()}
    return [Contestant(name, call, None) for name, call in calls.items()]


def moved(problem: Problem) -> tuple[Array, Array, Array]:
    """Return x, dy and out along one axis, as what the limits take them for."""
    x, dy, out = (flat(array) for array in (problem.x, problem.dy, problem.out))
    if x.dtype.itemsize == 2:
        x, dy, out = (array.view(np.uint16) for array in (x, dy, out))
    return x, dy, out


def _both(forward: Job, backward: Job) -> Job:
    # What forward returns lives until backward is done, as in training.
    return lambda: (forward(), backward())
