"""The named shapes of ``shapes.toml`` as cases: a shape in a memory layout."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

LAYOUTS = ("nchw", "nhwc")
# Each takes gigabytes or minutes, so it has to be asked for by name.
NOT_IN_ALL = ("sizes",)
# Bytes of an element of each dtype.
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """A batch-norm problem: `shape` is N, C and the spatial axes, whatever the memory layout.

    `dtype`, of `DTYPES`, is that of the arrays; vectors are float64 beside float64, else float32.
    """

    group: str
    shape: tuple[int, ...]
    count: int
    layout: str
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements of x."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype]

    @property
    def name(self) -> str:
        """The shape as text: ``32x64x56x56``."""
        return "x".join(map(str, self.shape))

    @property
    def kind(self) -> str:
        """The layout, and the dtype where it is not float32: ``nchw bfloat16``."""
        return kind(self.layout, self.dtype)


def kind(layout: str, dtype: str) -> str:
    """Return `Case.kind` of a layout and a dtype."""
    return layout if dtype == "float32" else f"{layout} {dtype}"


def shapes() -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """Return the shapes and their counts by the name of the group."""
    text = files("rustbn.bench").joinpath("shapes.toml").read_text(encoding="utf-8")
    return {
        group: [(tuple(entry["shape"]), entry["count"]) for entry in entries]
        for group, entries in tomllib.loads(text).items()
    }


def groups() -> list[str]:
    """Return the names of the groups."""
    return list(shapes())


def cases(
    names: Iterable[str], layouts: Iterable[str], dtypes: Iterable[str] = ("float32",)
) -> list[Case]:
    """Return the cases of the named groups, by group, layout, dtype and shape.

    Without spatial axes the layouts are the same memory: such a shape is a case of the first one.
    """
    named = shapes()
    layouts, dtypes = list(layouts), list(dtypes)
    return [
        Case(group, shape, count, layout, dtype)
        for group in names
        for layout in layouts
        for dtype in dtypes
        for shape, count in named[group]
        if len(shape) > 2 or layout == layouts[0]
    ]
