from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Affine",
    "Context",
    "GradSums",
    "Gradients",
    "Moments",
    "__version__",
    "backward_apply",
    "backward_reduce",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "cache_bytes",
    "check_activation",
    "check_renorm",
    "context_threads",
    "cpu_caches",
    "empty_cache",
    "error_kinds",
    "get_num_threads",
    "module_forward",
    "module_inference",
    "moments",
    "part_backward",
    "part_forward",
    "set_num_threads",
    "simd_level",
    "simd_levels",
    "thread_count",
]
__version__: str
context_threads: ContextVar[int | None]

# Arrays of float16, bfloat16, float32 or float64, or objects with `__array__` that give one.
_Array: TypeAlias = Any
_Float: TypeAlias = SupportsFloat | SupportsIndex
# A name, or a name and its parameter.
_Activation: TypeAlias = str | tuple[str, float]

class Gradients(NamedTuple):
    dx: NDArray[Any] | None
    dweight: NDArray[Any] | None
    dbias: NDArray[Any] | None
    dresidual: NDArray[Any] | None

@final
class Moments:
    def __new__(cls, count: int, mean: _Array, m2: _Array) -> Moments: ...
    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> NDArray[np.float64]: ...
    @property
    def m2(self) -> NDArray[np.float64]: ...
    def merge(self, other: Moments) -> Moments: ...
    def var(self, ddof: _Float = 0) -> NDArray[np.float64]: ...
    def invstd(self, eps: _Float = 1e-5) -> NDArray[np.float64]: ...
    def update_running(
        self, running_mean: _Array, running_var: _Array, momentum: _Float
    ) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class GradSums:
    def __new__(cls, sum_dy: _Array, sum_dy_xmu: _Array) -> GradSums: ...
    @property
    def sum_dy(self) -> NDArray[np.float64]: ...
    @property
    def sum_dy_xmu(self) -> NDArray[np.float64]: ...
    def __add__(self, other: GradSums, /) -> GradSums: ...
    def __radd__(self, other: int, /) -> GradSums: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class Affine:
    def __new__(cls, mean: _Array, scale: _Array, bias: _Array) -> Affine: ...
    @staticmethod
    def from_moments(
        moments: Moments,
        weight: _Array | None = None,
        bias: _Array | None = None,
        eps: _Float = 1e-5,
    ) -> Affine: ...
    @staticmethod
    def from_running(
        running_mean: _Array,
        running_var: _Array,
        weight: _Array | None = None,
        bias: _Array | None = None,
        eps: _Float = 1e-5,
    ) -> Affine: ...
    @property
    def mean(self) -> NDArray[np.float64]: ...
    @property
    def scale(self) -> NDArray[np.float64]: ...
    @property
    def bias(self) -> NDArray[np.float64]: ...
    def __call__(
        self,
        x: _Array,
        *,
        axis: int = 1,
        activation: _Activation | None = None,
        residual: _Array | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]: ...
    def fold_into_linear(
        self, weight: _Array, bias: _Array | None = None, *, axis: int = 0
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    def fold_into_conv(
        self,
        weight: _Array,
        bias: _Array | None = None,
        *,
        transposed: bool = False,
        groups: int = 1,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class Context:
    @property
    def moments(self) -> Moments | None: ...
    @property
    def affine(self) -> Affine | None: ...

def batch_norm(
    x: _Array,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Array | None = None,
    bias: _Array | None = None,
    training: bool = False,
    momentum: _Float = 0.1,
    eps: _Float = 1e-5,
    *,
    axis: int = 1,
    activation: _Activation | None = None,
    residual: _Array | None = None,
    mask: _Array | None = None,
    lengths: _Array | None = None,
    group_size: SupportsIndex | None = None,
    renorm: tuple[_Float, _Float] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def batch_norm_forward(
    x: _Array,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    weight: _Array | None = None,
    bias: _Array | None = None,
    training: bool = True,
    momentum: _Float = 0.1,
    eps: _Float = 1e-5,
    *,
    axis: int = 1,
    activation: _Activation | None = None,
    residual: _Array | None = None,
    mask: _Array | None = None,
    lengths: _Array | None = None,
    group_size: SupportsIndex | None = None,
    renorm: tuple[_Float, _Float] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Context]: ...
def batch_norm_backward(
    dy: _Array,
    ctx: Context,
    *,
    out: NDArray[Any] | None = None,
    needs: Iterable[str] = ("x", "weight", "bias", "residual"),
) -> Gradients: ...
def module_inference(
    x: _Array,
    running_mean: _Array | None,
    running_var: _Array | None,
    weight: _Array | None,
    bias: _Array | None,
    eps: _Float,
    axis: int,
    activation: _Activation | None,
    residual: _Array | None,
    mask: _Array | None,
    lengths: _Array | None,
    out: NDArray[Any] | None,
    /,
) -> NDArray[Any]: ...
def module_forward(
    x: _Array,
    running_mean: _Array | None,
    running_var: _Array | None,
    weight: _Array | None,
    bias: _Array | None,
    momentum: _Float,
    eps: _Float,
    axis: int,
    activation: _Activation | None,
    residual: _Array | None,
    mask: _Array | None,
    lengths: _Array | None,
    renorm: tuple[_Float, _Float] | None,
    out: NDArray[Any] | None,
    training: bool,
    group_size: SupportsIndex | None,
    /,
) -> tuple[NDArray[Any], Context]: ...
def part_forward(
    merge: Callable[[Moments], Moments],
    x: _Array,
    running_mean: _Array | None,
    running_var: _Array | None,
    weight: _Array | None,
    bias: _Array | None,
    momentum: _Float,
    eps: _Float,
    axis: int,
    activation: _Activation | None,
    residual: _Array | None,
    mask: _Array | None,
    lengths: _Array | None,
    renorm: tuple[_Float, _Float] | None,
    out: NDArray[Any] | None,
    /,
) -> tuple[NDArray[Any], Context]: ...
def part_backward(
    add: Callable[[GradSums], GradSums], dy: _Array, ctx: Context, *, out: NDArray[Any] | None
) -> Gradients: ...
def moments(
    x: _Array, *, axis: int = 1, mask: _Array | None = None, lengths: _Array | None = None
) -> Moments: ...
def backward_reduce(
    dy: _Array,
    x: _Array,
    moments: Moments,
    *,
    axis: int = 1,
    mask: _Array | None = None,
    lengths: _Array | None = None,
) -> GradSums: ...
def backward_apply(
    dy: _Array,
    x: _Array,
    moments: Moments,
    grad_sums: GradSums,
    weight: _Array | None = None,
    eps: _Float = 1e-5,
    *,
    axis: int = 1,
    mask: _Array | None = None,
    lengths: _Array | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def thread_count(n: int) -> int: ...
def check_activation(activation: _Activation | None) -> None: ...
def check_renorm(renorm: tuple[_Float, _Float] | None) -> None: ...
def cache_bytes() -> tuple[int, int]: ...
def cpu_caches() -> tuple[int, int]: ...
def empty_cache() -> None: ...
def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def error_kinds() -> list[str]: ...
