"""What is wrong with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CheckpointError", "naming", "shown"]


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged or cut short, or holds what is refused."""


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Put the name of the file before the message of a `CheckpointError`."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def shown(value: Any, limit: int = 80) -> str:
    """Return `value` for a message, where a file may have made it large or deep."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, str | bytes | int | float | None):
        text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
        return text if len(text) <= limit else f"{text[:limit]}..."
    return f"a {type(value).__name__}"
