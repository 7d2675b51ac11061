"""The command ``python -m rustbn demo``."""

import argparse
import sys
import time
from pathlib import Path

from rustbn.demo.experiments.checks import checks
from rustbn.demo.experiments.two_rates import two_rates
from rustbn.demo.requirements import PACKAGES, MissingPackageError, require

SEEDS = 5
QUICK_SEEDS = 2
STEPS = 200


def main(argv: list[str]) -> int:
    """Run the demonstration and return the exit code.

    0: done; 1: a check failed; 2: an argument is wrong or a package missing; 130: interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        require(*PACKAGES)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (MissingPackageError, OSError) as error:
        print(f"rustbn demo: {error}", file=sys.stderr)
        return 2
    try:
        return run(arguments.out, arguments.seed, QUICK_SEEDS if arguments.quick else SEEDS)
    except KeyboardInterrupt:
        print("rustbn demo: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m rustbn demo",
        description="Train a small convolutional network on images of digits with and without "
        "batch norm, and compare. Takes about half a minute.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rustbn-demo"),
        metavar="DIR",
        help="folder for the figure (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="first of the seeds of weights and batches (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SEEDS} seeds in place of {SEEDS}"
    )
    return parser


def run(out: Path, seed: int, seeds: int) -> int:
    """Train, print the tables, save the figure in `out`, and return the exit code."""
    from rich.console import Console
    from rich.progress import Progress

    from rustbn.demo.figures import two_rates_figure
    from rustbn.demo.report import checks_table, two_rates_table

    console = Console()
    start = time.perf_counter()
    console.print(
        f"Training {4 * seeds} networks on 1077 images of digits: with and without batch norm, "
        f"2 learning rates, {seeds} seeds"
    )
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Training", total=(4 * seeds + 1) * STEPS)

        def on_step() -> None:
            progress.advance(task)

        result = two_rates(seed, seeds=seeds, steps=STEPS, on_step=on_step)
        checked = checks(seed, steps=STEPS, on_step=on_step)

    console.print(two_rates_table(result))
    console.print()
    console.print(checks_table(checked))
    figure = out / "two-rates.png"
    two_rates_figure(result).savefig(figure)
    seconds = time.perf_counter() - start
    console.print(f"\nFigure: {figure} ({seconds:.0f} s in all)", soft_wrap=True, highlight=False)
    return 0 if checked.passed else 1


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)
