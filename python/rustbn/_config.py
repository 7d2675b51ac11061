"""Threads, memory, instruction set, and what this installation is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import numpy as np

from rustbn import _rustbn

__all__ = [
    "config",
    "empty_cache",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
]

empty_cache = _rustbn.empty_cache
get_num_threads = _rustbn.get_num_threads
set_num_threads = _rustbn.set_num_threads


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use up to `n` threads for the calls of this context.

    The number is kept in a context variable: it holds in this thread (or asyncio task) and in what
    it calls, and nowhere else.

    Parameters
    ----------
    n : int
        At least 1; may exceed the number of processors.

    Raises
    ------
    ValueError
        If `n` is not positive.

    Examples
    --------
    >>> import rustbn
    >>> with rustbn.threads(3):
    ...     rustbn.get_num_threads()
    3
    """
    token = _rustbn.context_threads.set(_rustbn.thread_count(n))
    try:
        yield
    finally:
        _rustbn.context_threads.reset(token)


def config() -> dict[str, str]:
    """Facts about this installation, by name, as `show_config` prints them."""
    held, limit = (f"{size / 2**20:.0f} MiB" for size in _rustbn.cache_bytes())
    l2, last = (f"{size / 2**20:.3g} MiB" for size in _rustbn.cpu_caches())
    return {
        "rustbn": _rustbn.__version__,
        "SIMD level": f"{_rustbn.simd_level()} (of {', '.join(_rustbn.simd_levels())})",
        "threads": str(get_num_threads()),
        "caches": f"{l2} a core, {last} shared, as planned for",
        "cache": f"{held} held of at most {limit}",
        "NumPy": np.__version__,
        "Python": sys.version.split()[0],
    }


def show_config(file: TextIO | None = None) -> None:
    """Print version, SIMD level, number of threads, memory kept for outputs and NumPy version.

    Parameters
    ----------
    file : file, optional
        Where to print; standard output if absent.
    """
    for name, value in config().items():
        print(f"{name:<11} {value}", file=file)
