"""Command line: ``python -m rustbn info``, ``demo`` and ``bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import rustbn


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rustbn", description="Batch normalization for NumPy arrays."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="version, SIMD level, threads, NumPy version")
    commands.add_parser(
        "demo", help="measure what batch normalization does, on real images", add_help=False
    )
    commands.add_parser(
        "bench", help="time it against a copy, PyTorch and plain NumPy", add_help=False
    )
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "demo":
        from rustbn import demo

        return demo.main(rest)
    if arguments.command == "bench":
        from rustbn import bench

        return bench.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    rustbn.show_config()
    return 0


if __name__ == "__main__":
    sys.exit(main())
