"""Which of the peers are here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

PEERS = ("torch", "numpy")


def installed(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split names of peers into those that are installed and those that are missing."""
    present: list[str] = []
    missing: list[str] = []
    for name in names:
        (present if _is_here(name) else missing).append(name)
    return present, missing


def _is_here(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # sys.modules has None for it
        return False
