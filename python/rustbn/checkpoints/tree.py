"""Nested containers as one mapping of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rustbn.checkpoints.errors import CheckpointError, shown

__all__ = ["flatten"]

_DEEPEST = 100
_MOST_LEAVES = 1_000_000


def flatten(tree: Any, is_leaf: Callable[[Any], bool], separator: str) -> dict[str, Any]:
    """Return the leaves of nested mappings, lists and tuples by their names on the way.

    What is neither container nor leaf is left out. The number of leaves is limited, since
    containers that share their parts can hold exponentially many.

    Raises
    ------
    CheckpointError
        If two leaves have the same name, or there are too many, or too deep ones.
    """
    leaves: dict[str, Any] = {}
    barren: set[int] = set()  # containers without leaves, so that none is searched twice

    def visit(value: Any, name: str, depth: int) -> bool:
        if is_leaf(value):
            if name in leaves:
                raise CheckpointError(f"holds two entries named {shown(name)}")
            if len(leaves) == _MOST_LEAVES:
                raise CheckpointError(f"holds more than {_MOST_LEAVES} entries")
            leaves[name] = value
            return True
        if isinstance(value, Mapping):
            items = list(value.items())
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        else:
            return False
        if id(value) in barren:
            return False
        if depth == _DEEPEST:
            raise CheckpointError(f"nests containers deeper than {_DEEPEST}")
        found = False
        for key, part in items:
            part_name = key if isinstance(key, str) else shown(key)
            inner = f"{name}{separator}{part_name}" if name else part_name
            found |= visit(part, inner, depth + 1)
        if not found:
            barren.add(id(value))
        return found

    visit(tree, "", 0)
    return leaves
