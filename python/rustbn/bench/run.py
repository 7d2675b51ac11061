"""A run: each case's arrays made, its contestants checked, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import rustbn
from rustbn.bench import calls, fused, masked, network, with_numpy, with_torch
from rustbn.bench.contestant import NAMES, PASSES, Contestant
from rustbn.bench.limits import Team, limits, team
from rustbn.bench.machine import machine, versions
from rustbn.bench.ours import ours
from rustbn.bench.peers import installed
from rustbn.bench.problem import Answers, Problem, WrongResultError
from rustbn.bench.report import CallMeasurement, Measurement, NetworkMeasurement, Report
from rustbn.bench.shapes import Case
from rustbn.bench.timing import SAMPLE_SECONDS, clock_for, core_rate, interleave, timer

NETWORK, CALLS, FUSED, MASKED = "network", "calls", "fused", "masked"
ALL_PASSES = (*PASSES, NETWORK, CALLS, FUSED, MASKED)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Parameters
    ----------
    cases : sequence of Case
        From `rustbn.bench.shapes.cases`.
    peers : sequence of str
        Of ``torch`` and ``numpy``. What is not installed is left out and named in the report.
    passes : sequence of str
        Of ``forward``, ``backward``, ``eval``, ``step`` (a module's forward and backward) for each
        case, ``network`` (a step of all layers of a group whose counts are not all 1), and,
        whatever the cases, ``calls`` (tiny arrays), ``fused`` (residual and ReLU, one layer) and
        ``masked`` (masks and padding beside calls without them, four shapes).
    threads : sequence of int
        Numbers of threads, one after the other.
    repeats : int
        Rounds, of one sample a contestant.
    sample_seconds : float
        How long a sample lasts at least.
    """

    cases: Sequence[Case]
    peers: Sequence[str] = ("torch", "numpy")
    passes: Sequence[str] = PASSES
    threads: Sequence[int] = (1,)
    repeats: int = 9
    sample_seconds: float = SAMPLE_SECONDS

    @property
    def work(self) -> int:
        """Return how many units `measure` reports in all: elements times rounds, roughly."""
        own = sum(name in PASSES for name in self.passes)
        units = sum(_units(case) for case in self.cases) * own
        if NETWORK in self.passes:
            units += sum(_network_units(part) for part in _networks(self.cases))
        units = units * len(self.threads) * self.repeats
        units += len(calls.COMPARISONS) * _CALL_UNITS if CALLS in self.passes else 0
        layers = [fused.CASE] if FUSED in self.passes else []
        layers += masked.CASES if MASKED in self.passes else ()
        return units + sum(map(_units, layers)) * self.repeats * len(self.threads)


def measure(plan: Plan, on_work: Callable[[int, str], None] = lambda units, what: None) -> Report:
    """Carry out a plan.

    Parameters
    ----------
    plan : Plan
        What to measure.
    on_work : callable, optional
        on_work(units, what) is called as work is done; the units add up to `plan.work`.

    Raises
    ------
    WrongResultError
        If a contestant's result is not the float64 answer: nothing that is wrong is timed.
    """
    peers, missing = installed(plan.peers)
    report = Report(machine(), versions(peers), _arguments(plan), missing)
    report.core_rates.append(core_rate())
    for case in plan.cases:
        if any(name in PASSES for name in plan.passes):
            _measure_case(case, plan, peers, report, on_work)
            report.core_rates.append(core_rate())
    if NETWORK in plan.passes:
        for part in _networks(plan.cases):
            _measure_network(part, plan, peers, report, on_work)
    if CALLS in plan.passes:
        _measure_calls(plan, peers, report, on_work)
    if FUSED in plan.passes:
        _measure_fused(plan, peers, report, on_work)
    if MASKED in plan.passes:
        _measure_masked(plan, peers, report, on_work)
    report.core_rates.append(core_rate())
    return report


def contestants(problem: Problem, pass_: str, peers: Sequence[str], team: Team) -> list[Contestant]:
    """Return all contestants of a pass, in the order of `NAMES`."""
    found = limits(problem, pass_, team) + ours(problem, pass_)
    if "torch" in peers:
        found += with_torch.contestants(problem, pass_)
    # Nobody calls NumPy so in 16 bits: its arithmetic there is many times slower.
    if "numpy" in peers and problem.case.itemsize > 2:
        found += with_numpy.contestants(problem, pass_)
    return sorted(found, key=lambda contestant: NAMES.index(contestant.name))


def check_contestant(
    contestant: Contestant, problem: Problem, pass_: str, answers: Answers
) -> None:
    """Raise `WrongResultError` unless the contestant computes the answers."""
    if contestant.prepare is not None:
        contestant.prepare()
    returned = contestant.call()
    if contestant.results is None:
        return
    try:
        answers.check(pass_, contestant.results(returned), contestant.tolerance)
    except WrongResultError as error:
        case = problem.case
        what = f"{contestant.name}, {pass_} of {case.name} {case.kind}"
        raise WrongResultError(f"{what}: {error}") from None


# Small cases cost their samples' time all the same.
_LEAST_UNITS = 1_000_000
_CALL_UNITS = 10_000_000


def _units(case: Case) -> int:
    return max(case.size, _LEAST_UNITS)


def _network_units(part: Sequence[Case]) -> int:
    return sum(_units(case) * case.count for case in part)


def _networks(cases: Sequence[Case]) -> list[list[Case]]:
    parts = (list(part) for _, part in groupby(cases, lambda case: (case.group, case.kind)))
    return [part for part in parts if any(case.count > 1 for case in part)]


def _measure_case(
    case: Case,
    plan: Plan,
    peers: Sequence[str],
    report: Report,
    on_work: Callable[[int, str], None],
) -> None:
    problem = Problem.make(case)
    answers = Answers.of(problem)
    for threads in plan.threads:
        clock = clock_for(threads)
        with _threads(threads, peers), team(threads) as share:
            for pass_ in plan.passes:
                if pass_ not in PASSES:
                    continue
                what = f"{pass_} {case.name} {case.kind}, {_count(threads)}"
                entered = contestants(problem, pass_, peers, share)
                for contestant in entered:
                    check_contestant(contestant, problem, pass_, answers)
                results = interleave(
                    {entry.name: timer(entry.call, clock) for entry in entered},
                    plan.repeats,
                    plan.sample_seconds,
                    partial(on_work, _units(case), what),
                )
                report.measurements.append(
                    Measurement(
                        case.group, case.shape, case.count, case.layout, threads, pass_,
                        clock.name, results, case.dtype,
                    )
                )  # fmt: skip


def _measure_network(
    part: Sequence[Case],
    plan: Plan,
    peers: Sequence[str],
    report: Report,
    on_work: Callable[[int, str], None],
) -> None:
    group, layout, dtype = part[0].group, part[0].layout, part[0].dtype
    layers = sum(case.count for case in part)
    problems = [Problem.make(case) for case in part]
    for _ in network.check_layers(problems, peers):
        pass
    for threads in plan.threads:
        clock = clock_for(threads)
        what = f"{layers} layers of {group} {part[0].kind}, {_count(threads)}"
        with _threads(threads, peers), team(threads) as share:
            steps = network.steps(network.networks(problems, peers, share))
            results = interleave(
                {name: timer(step, clock) for name, step in steps.items()},
                plan.repeats,
                plan.sample_seconds,
                partial(on_work, _network_units(part), what),
            )
        report.networks.append(
            NetworkMeasurement(group, layers, layout, threads, clock.name, results, dtype)
        )


def _measure_calls(
    plan: Plan, peers: Sequence[str], report: Report, on_work: Callable[[int, str], None]
) -> None:
    clock = clock_for(1)
    with _threads(1, peers):
        names = calls.namespace(peers)
        for comparison in calls.COMPARISONS:
            results = interleave(
                calls.timers(comparison, clock, names), plan.repeats, plan.sample_seconds
            )
            report.calls.append(
                CallMeasurement(comparison.title, comparison.reference, clock.name, results)
            )
            on_work(_CALL_UNITS, f"small calls: {comparison.title}")


def _measure_fused(
    plan: Plan, peers: Sequence[str], report: Report, on_work: Callable[[int, str], None]
) -> None:
    comparisons = fused.comparisons(peers)
    for threads in plan.threads:
        report.fused += _compared(comparisons, plan, peers, threads)
        on_work(_units(fused.CASE) * plan.repeats, f"residual and ReLU, {_count(threads)}")


def _measure_masked(
    plan: Plan, peers: Sequence[str], report: Report, on_work: Callable[[int, str], None]
) -> None:
    for case in masked.CASES:
        comparisons = masked.comparisons(case)
        for threads in plan.threads:
            report.masked += _compared(comparisons, plan, peers, threads)
            what = f"masks, {case.group} {case.name}, {_count(threads)}"
            on_work(_units(case) * plan.repeats, what)


def _compared(
    comparisons: Sequence[fused.Comparison], plan: Plan, peers: Sequence[str], threads: int
) -> list[CallMeasurement]:
    clock = clock_for(threads)
    found = []
    with _threads(threads, peers):
        for comparison in comparisons:
            results = interleave(
                {name: timer(call, clock) for name, call in comparison.calls.items()},
                plan.repeats,
                plan.sample_seconds,
            )
            title = f"{comparison.title}, {_count(threads)}"
            found.append(CallMeasurement(title, comparison.reference, clock.name, results))
    return found


@contextmanager
def _threads(threads: int, peers: Sequence[str]) -> Iterator[None]:
    before = with_torch.set_threads(threads) if "torch" in peers else 0
    try:
        with rustbn.threads(threads):
            yield
    finally:
        if "torch" in peers:
            with_torch.set_threads(before)


def _count(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def _arguments(plan: Plan) -> dict[str, Any]:
    return {
        "groups": list(dict.fromkeys(case.group for case in plan.cases)),
        "layouts": list(dict.fromkeys(case.layout for case in plan.cases)),
        "dtypes": list(dict.fromkeys(case.dtype for case in plan.cases)),
        "peers": list(plan.peers),
        "passes": list(plan.passes),
        "threads": list(plan.threads),
        "repeats": plan.repeats,
        "sample_seconds": plan.sample_seconds,
    }
