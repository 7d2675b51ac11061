"""The command ``python -m rustbn demo``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rustbn.demo.catalogue import EXPERIMENTS, Experiment
from rustbn.demo.requirements import PACKAGES, MissingPackageError, require
from rustbn.demo.results import Result

LIMIT = "about 4 minutes on two cores"
QUICK_LIMIT = "about 40 seconds"


def main(argv: list[str]) -> int:
    """Run the demonstration and return the exit code.

    0: done; 2: an argument is wrong or a package missing; 130: interrupted, what was finished kept.
    """
    arguments = parser().parse_args(argv)
    names = list(dict.fromkeys(arguments.names)) or list(EXPERIMENTS)
    try:
        require(*PACKAGES)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (MissingPackageError, OSError) as error:
        print(f"rustbn demo: {error}", file=sys.stderr)
        return 2
    experiments = [EXPERIMENTS[name] for name in names]
    return run(experiments, arguments.out, seed=arguments.seed, quick=arguments.quick)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m rustbn demo",
        description="Measure what batch norm does on real images, and whether the claims made for "
        f"it hold. All of it takes {LIMIT}.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        type=_name,
        help=f"experiments, all unless given: {', '.join(EXPERIMENTS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"fewer seeds and shorter trainings: {QUICK_LIMIT}, and wider intervals",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rustbn-demo"),
        metavar="DIR",
        help="folder for report.html and the figures (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="decides weights, batches and noise (default: %(default)s)",
    )
    return parser


def run(experiments: list[Experiment], out: Path, *, seed: int, quick: bool) -> int:
    """Run the experiments, print a table of each, write figures and report into `out`."""
    from rich.console import Console

    from rustbn.demo.console import progress, summary, verdicts
    from rustbn.demo.report import Finished, write_report

    console = Console()
    start = time.perf_counter()
    limit = QUICK_LIMIT if quick else LIMIT
    console.print(
        f"What batch norm does, measured: {', '.join(e.title.lower() for e in experiments)}.\n"
        f"All experiments together take {limit}. Ctrl-C keeps what is finished.\n"
    )
    seconds = [e.quick_seconds if quick else e.seconds for e in experiments]
    finished: list[Finished] = []
    interrupted = False
    try:
        with progress(console, experiments, seconds) as start_bar:
            for index, experiment in enumerate(experiments):
                since = time.perf_counter()
                arguments = experiment.quick if quick else {}
                result: Result = experiment.run(seed, **arguments, on_progress=start_bar(index))
                console.print(summary(experiment, result), "")
                finished.append(Finished(experiment, result, time.perf_counter() - since))
    except KeyboardInterrupt:
        interrupted = True
    if finished:
        console.print(verdicts((one.experiment, one.result) for one in finished), "")
        report = write_report(finished, out, seed=seed, quick=quick)
        console.print(
            f"Report: {report} ({time.perf_counter() - start:.0f} s in all)",
            soft_wrap=True,
            highlight=False,
        )
    if interrupted:
        print("rustbn demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _name(text: str) -> str:
    name = text.replace("-", "_")
    if name not in EXPERIMENTS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(EXPERIMENTS)}, got {text!r}")
    return name


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)
