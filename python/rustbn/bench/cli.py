"""The command ``python -m rustbn bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rustbn.bench import tables
from rustbn.bench.peers import PEERS, installed
from rustbn.bench.problem import WrongResultError
from rustbn.bench.progress import progress
from rustbn.bench.report import Report
from rustbn.bench.run import ALL_PASSES, Plan, measure
from rustbn.bench.shapes import DTYPES, LAYOUTS, NOT_IN_ALL, cases, groups

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks and return the exit code.

    0: done; 1: a result was wrong; 2: an argument is wrong or a package missing; 130: interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        _prepare(arguments)
    except (ImportError, OSError) as error:
        print(f"rustbn bench: {error}", file=sys.stderr)
        return 2
    _, missing = installed(arguments.peers)
    for peer in missing:
        print(f"rustbn bench: {peer} is not installed and left out", file=sys.stderr)
    plan = Plan(
        cases(arguments.shapes, arguments.layouts, arguments.dtypes),
        arguments.peers,
        arguments.passes,
        arguments.threads,
        arguments.repeats,
    )
    try:
        with progress(plan.work) as on_work:
            report = measure(plan, on_work)
    except WrongResultError as error:
        print(f"rustbn bench: WRONG: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rustbn bench: interrupted", file=sys.stderr)
        return 130
    print(tables.text(report, arguments.brief))
    _write(report, arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    named = groups()
    parser = argparse.ArgumentParser(
        prog="python -m rustbn bench",
        description="Time batch normalization against a copy of the same bytes, PyTorch and plain "
        "NumPy. Every result is checked before it is timed. Lists are separated by commas.",
    )

    def choice(name: str, choices: Sequence[str], default: str, help_: str) -> None:
        parser.add_argument(
            f"--{name}",
            type=_list(_one_of(choices), name),
            default=default,
            metavar="LIST",
            help=f"{help_}: {', '.join(choices)} (default: %(default)s)",
        )

    parser.add_argument(
        "--shapes",
        type=_list(_one_of([*named, "all"]), "shapes"),
        default="resnet50",
        metavar="LIST",
        help=f"groups of shapes: {', '.join(named)}, or all: all but {', '.join(NOT_IN_ALL)} "
        "(default: %(default)s)",
    )
    choice("peers", [*PEERS, "none"], "torch,numpy", "whom to compare with")
    choice("layouts", LAYOUTS, "nchw,nhwc", "memory layouts")
    choice("dtypes", [*DTYPES], "float32", "of the arrays; calls, fused and masked are float32")
    choice(
        "passes",
        [*ALL_PASSES, "all"],
        "forward,backward,eval,step",
        "what to time; step is a module's forward and backward, network a step of all layers of a "
        "network, calls what calls on tiny arrays cost, fused what residual and ReLU add, masked "
        "what masks and padding cost",
    )
    parser.add_argument(
        "--threads",
        type=_list(_positive, "threads"),
        default="1",
        metavar="LIST",
        help="numbers of threads (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        default=9,
        metavar="N",
        help="samples of each contestant (default: %(default)s)",
    )
    parser.add_argument(
        "--brief", action="store_true", help="show what all shapes of a group come to, not each"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a bar chart (needs matplotlib)"
    )
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    """Resolve ``all`` and ``none``, and refuse now what would fail after minutes."""
    if "all" in arguments.shapes:
        rest = [name for name in arguments.shapes if name != "all"]
        everything = [name for name in groups() if name not in NOT_IN_ALL]
        arguments.shapes = list(dict.fromkeys([*everything, *rest]))
    if "all" in arguments.passes:
        arguments.passes = list(ALL_PASSES)
    if "none" in arguments.peers:
        arguments.peers = []
    if arguments.plot is not None:
        _, missing = installed(["matplotlib"])
        if missing:
            raise ImportError("--plot needs matplotlib: pip install 'rustbn[demo]'")
    if "bfloat16" in arguments.dtypes:
        _, missing = installed(["ml_dtypes"])
        if missing:
            raise ImportError("bfloat16 needs ml_dtypes: pip install 'rustbn[checkpoints]'")
    for path in (arguments.json, arguments.markdown, arguments.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()


def _write(report: Report, arguments: argparse.Namespace) -> None:
    if arguments.json is not None:
        arguments.json.write_text(report.json(), encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text(tables.markdown(report, arguments.brief), encoding="utf-8")
    if arguments.plot is not None and report.measurements:
        from rustbn.bench.figure import figure

        figure(report).savefig(arguments.plot)


def _list(item: Callable[[str], T], name: str) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        return list(dict.fromkeys(item(part.strip()) for part in text.split(",")))

    parse.__name__ = name
    return parse


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"expected {', '.join(choices)}, got {text!r}")
        return text

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
