"""Where the channels lie: any rank, any axis, any memory, read in place where it is dense."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import rustbn
from conftest import RunPython
from judge import assert_backward, assert_forward, assert_moments, assert_same_bits, present
from numpy.lib.stride_tricks import as_strided
from oracle import Array

both_dtypes = pytest.mark.parametrize("dtype", cases.DTYPES)


def check_moments(x: Array, axis: int, exact: tuple[int, Array, Array], what: str) -> None:
    m = rustbn.moments(x, axis=axis)
    assert m.count == exact[0], what
    assert_moments(m.mean, m.m2, exact, what)


@dataclass(frozen=True)
class Exact:
    """What the oracle makes of a problem, wherever its arrays lie."""

    forward: oracle.Forward
    backward: oracle.Backward
    moments: tuple[int, Array, Array]

    @staticmethod
    def of(p: cases.Problem) -> Exact:
        return Exact(
            oracle.train(p.x, p.weight, p.bias, axis=p.axis),
            oracle.train_backward(p.dy, p.x, p.weight, axis=p.axis),
            oracle.moments(p.x, p.axis, np.longdouble),
        )


def check_everything(p: cases.Problem, exact: Exact, what: str) -> None:
    """Compare every function with the oracle, and the outputs' memory order with NumPy's."""
    y, ctx = rustbn.batch_norm_forward(p.x, weight=p.weight, bias=p.bias, axis=p.axis)
    grads = rustbn.batch_norm_backward(p.dy, ctx)
    assert_forward(y, exact.forward, what)
    assert_backward(grads.dx, grads.dweight, grads.dbias, exact.backward, what)
    check_moments(p.x, p.axis, exact.moments, what)

    native = np.empty_like(p.x, dtype=p.x.dtype.newbyteorder("="))
    for name, output in (("y", y), ("dx", grads.dx)):
        assert present(output).strides == native.strides, f"{name} {what}"
        assert present(output).dtype == native.dtype, f"{name} {what}"


@both_dtypes
@pytest.mark.parametrize("rank", cases.SHAPE_OF_RANK)
def test_every_axis_in_dense_memory_under_every_order_of_the_axes(
    rank: int, dtype: npt.DTypeLike
) -> None:
    for axis in range(rank):
        p = cases.problem(cases.SHAPE_OF_RANK[rank], axis, dtype)
        exact = Exact.of(p)
        x, dy = p.x, p.dy
        for order in permutations(range(rank)):
            p.x, p.dy = cases.in_order(x, order), cases.in_order(dy, order)
            check_everything(p, exact, f"axis {axis}, memory order {order}")


@both_dtypes
@pytest.mark.parametrize("rank", cases.SHAPE_OF_RANK)
def test_every_axis_in_memory_with_gaps_negative_strides_or_no_alignment(
    rank: int, dtype: npt.DTypeLike
) -> None:
    for axis in range(rank):
        p = cases.problem(cases.SHAPE_OF_RANK[rank], axis, dtype)
        exact = Exact.of(p)
        layouts = zip(cases.loose_layouts(p.x), cases.loose_layouts(p.dy), strict=True)
        for (name, p.x), (_, p.dy) in list(layouts):
            check_everything(p, exact, f"axis {axis}, {name}")


@both_dtypes
@pytest.mark.parametrize(("shape", "axis"), cases.ARRANGEMENTS)
def test_sizes_around_every_boundary_of_the_kernels(
    shape: tuple[int, ...], axis: int, dtype: npt.DTypeLike
) -> None:
    p = cases.problem(shape, axis, dtype)
    check_everything(p, Exact.of(p), f"{shape}")
    x, dy = p.x, p.dy
    p.x, p.dy = np.asfortranarray(x), np.asfortranarray(dy)
    check_everything(p, Exact.of(p), f"{shape}, Fortran order")


@both_dtypes
def test_nhwc_memory_seen_as_nchw(dtype: npt.DTypeLike) -> None:
    p = cases.problem((3, 20, 9, 11), 1, dtype)
    exact = Exact.of(p)
    p.x, p.dy = cases.in_order(p.x, (0, 2, 3, 1)), cases.in_order(p.dy, (0, 2, 3, 1))
    check_everything(p, exact, "NHWC memory")
    last = p.x.transpose(0, 2, 3, 1)
    assert last.flags.c_contiguous
    y = rustbn.batch_norm(p.x, training=True)
    y_last = rustbn.batch_norm(last, training=True, axis=-1)
    assert_same_bits(y.transpose(0, 2, 3, 1), y_last)


@both_dtypes
def test_byte_swapped_memory(dtype: npt.DTypeLike) -> None:
    p = cases.problem((4, 5, 6), 1, dtype)
    exact = Exact.of(p)
    p.x, p.dy = cases.byteswapped(p.x), cases.byteswapped(p.dy)
    check_everything(p, exact, "byte-swapped")
    for name in ("weight", "bias"):
        setattr(p, name, cases.byteswapped(getattr(p, name)))
    check_everything(p, exact, "byte-swapped parameters")


@both_dtypes
def test_broadcast_memory_along_any_axes(dtype: npt.DTypeLike) -> None:
    shape = (4, 3, 5, 2)
    whole = cases.problem(shape, 1, dtype)
    for repeated in ((0,), (1,), (2,), (3,), (0, 2), (1, 3), (0, 2, 3), (0, 1, 2, 3)):
        first = tuple(slice(0, 1) if i in repeated else slice(None) for i in range(4))
        p = cases.problem(shape, 1, dtype)
        p.x = np.broadcast_to(whole.x[first], shape)
        p.dy = np.broadcast_to(whole.dy[first], shape)
        y, ctx = rustbn.batch_norm_forward(p.x, weight=p.weight, bias=p.bias)
        grads = rustbn.batch_norm_backward(p.dy, ctx)
        exact = Exact.of(p)
        assert_forward(y, exact.forward, f"repeated along {repeated}")
        assert_backward(grads.dx, grads.dweight, grads.dbias, exact.backward, f"along {repeated}")
        assert y.strides == np.empty_like(p.x).strides
        assert y.flags.writeable


@both_dtypes
def test_axes_of_length_one_may_have_any_stride(dtype: npt.DTypeLike) -> None:
    for shape in ((1, 5, 6), (4, 5, 1), (1, 5, 1, 3), (4, 1, 6), (6, 1)):
        p = cases.problem(shape, 1, dtype)
        exact = Exact.of(p)
        for order in permutations(range(len(shape))):
            x = cases.in_order(p.x, order)
            odd = cases.with_odd_strides_of_length_one(x)
            y = rustbn.batch_norm(odd, None, None, p.weight, p.bias, True)
            assert_forward(y, exact.forward, f"{shape} in order {order}")
            assert y.strides == np.empty_like(odd).strides


@both_dtypes
def test_negative_axes_count_from_the_end(dtype: npt.DTypeLike) -> None:
    p = cases.problem((3, 4, 5, 6), 0, dtype)
    for axis in range(4):
        count_from_front = rustbn.batch_norm(p.x, training=True, axis=axis)
        negative: Any = np.int64(axis - 4)
        count_from_end = rustbn.batch_norm(p.x, training=True, axis=negative)
        assert_same_bits(count_from_end, count_from_front)


@both_dtypes
def test_dy_may_be_ordered_unlike_x(dtype: npt.DTypeLike) -> None:
    p = cases.problem((3, 4, 2, 5), 1, dtype)
    exact = Exact.of(p).backward
    x, dy = p.x, p.dy
    for order in permutations(range(4)):
        _, ctx = rustbn.batch_norm_forward(cases.in_order(x, order), weight=p.weight, bias=p.bias)
        for name, laid in cases.all_layouts(dy):
            dx, dweight, dbias, _ = rustbn.batch_norm_backward(laid, ctx)
            assert_backward(dx, dweight, dbias, exact, f"x in order {order}, dy: {name}")
            assert present(dx).strides == np.empty_like(cases.in_order(x, order)).strides


@both_dtypes
def test_out_in_any_layout_gets_the_same_bits_and_nothing_around_it_is_written(
    dtype: npt.DTypeLike,
) -> None:
    p = cases.problem((3, 4, 2, 5), 1, dtype)
    affine = rustbn.Affine(p.running_mean, p.weight, p.bias)
    for x_name, x in cases.all_layouts(p.x):
        y, ctx = rustbn.batch_norm_forward(x, weight=p.weight, bias=p.bias)
        dx = rustbn.batch_norm_backward(p.dy, ctx).dx
        y_affine = affine(x)
        for out_name, out in cases.all_layouts(np.zeros_like(p.x)):
            what = f"x: {x_name}, out: {out_name}"
            assert rustbn.batch_norm(x, None, None, p.weight, p.bias, True, out=out) is out, what
            assert_same_bits(out, y, what)
            out[...] = 0
            assert rustbn.batch_norm_backward(p.dy, ctx, out=out).dx is out, what
            assert_same_bits(out, dx, what)
            out[...] = 0
            assert affine(x, out=out) is out, what
            assert_same_bits(out, y_affine, what)
            if out_name == "gaps everywhere":
                whole = present(out.base)
                assert np.isnan(whole).sum() == whole.size - out.size, what


@both_dtypes
def test_input_may_be_read_only_and_is_never_written(dtype: npt.DTypeLike) -> None:
    p = cases.problem((3, 4, 5), 1, dtype)
    for name, x in cases.all_layouts(p.x):
        x.flags.writeable = False
        before = x.tobytes()
        y, ctx = rustbn.batch_norm_forward(x)
        dy = p.dy.copy()
        dy.flags.writeable = False
        rustbn.batch_norm_backward(dy, ctx)
        rustbn.moments(x)
        assert x.tobytes() == before, name
        assert dy.tobytes() == p.dy.tobytes(), name
        assert y.flags.writeable, name


@both_dtypes
def test_outputs_are_ordinary_arrays_that_own_their_memory(dtype: npt.DTypeLike) -> None:
    for shape in ((4, 5, 6), (16, 64, 64, 64)):
        x = np.ones(shape, dtype)
        x[0] = 2
        y, ctx = rustbn.batch_norm_forward(x)
        for output in (y, rustbn.batch_norm_backward(x, ctx).dx):
            assert type(output) is np.ndarray
            assert output.base is None
            assert output.flags.owndata
            assert output.flags.writeable
            assert output.flags.aligned


def test_outputs_come_from_the_allocator_of_numpy() -> None:
    x = cases.problem((64, 8, 50), 1).x
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y = rustbn.batch_norm(x, training=True)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert y.nbytes <= grown <= y.nbytes + 4096


@both_dtypes
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (2, 0, 4), (0, 0), (2, 3, 0, 5)])
def test_empty_arrays_of_any_kind(shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    for axis in range(len(shape)):
        for x in (np.empty(shape, dtype), np.empty(shape[::-1], dtype).T):
            channels = shape[axis]
            mean, var = np.full(channels, 3, dtype), np.full(channels, 5, dtype)
            y, ctx = rustbn.batch_norm_forward(x, mean, var, axis=axis)
            dx = present(rustbn.batch_norm_backward(x, ctx).dx)
            y_eval = rustbn.batch_norm(x, mean, var, axis=axis)
            assert y.shape == dx.shape == y_eval.shape == shape
            assert y.dtype == dx.dtype == y_eval.dtype == x.dtype
            m = rustbn.moments(x, axis=axis)
            assert m.mean.shape == (channels,)
            assert m.count == np.prod(np.delete(shape, axis))
            if m.count == 0:
                assert (mean == 3).all()
                assert (var == 5).all()


def test_a_view_of_overlapping_windows_is_read_as_it_looks() -> None:
    signal = cases.problem((1, 60), 1).x[0]
    windows = as_strided(signal, (10, 5, 8), (signal.itemsize * 3, signal.itemsize * 4, 4))
    copy = windows.copy()
    assert_forward(rustbn.batch_norm(windows, training=True), oracle.train(copy))
    check_moments(windows, 1, oracle.moments(copy, 1, np.longdouble), "windows")


@pytest.mark.parametrize("shape", [(2, 3, 1_500_000), (150_000, 60), (4500, 40, 7, 7)])
def test_large_outputs_at_any_alignment_and_nothing_around_them(shape: tuple[int, ...]) -> None:
    # 34 MiB, for which a library may write past the caches, in whole lines of 64 bytes.
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    y, ctx = rustbn.batch_norm_forward(x)
    dx = present(rustbn.batch_norm_backward(x, ctx).dx)
    raw = np.zeros(x.nbytes + 256, np.uint8)
    for offset in (0, 4, 20, 60, 64, 1):  # the last one is no multiple of an element
        raw[:] = 0xA5
        out = raw[64 + offset : 64 + offset + x.nbytes].view(np.float32).reshape(shape)
        rustbn.batch_norm(x, training=True, out=out)
        assert np.array_equal(out, y), f"y, {offset} bytes on"
        rustbn.batch_norm_backward(x, ctx, out=out)
        assert np.array_equal(out, dx), f"dx, {offset} bytes on"
        assert (raw[: 64 + offset] == 0xA5).all()
        assert (raw[64 + offset + x.nbytes :] == 0xA5).all()
        out[...] = x
        rustbn.batch_norm(out, training=True, out=out)
        assert np.array_equal(out, y), f"y in place, {offset} bytes on"


# Resident memory that a call needs for a while beyond what is there, in a process of its own.
EXTRA_MEMORY = """
import json
from itertools import permutations
import numpy as np
import rustbn

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def extra(work):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before

def verbs(x, axis):
    m = rustbn.moments(x, axis=axis)
    affine = rustbn.Affine.from_moments(m)
    affine(x, axis=axis, out=spare)
    rustbn.batch_norm(x, training=True, axis=axis, out=spare)
    _, ctx = rustbn.batch_norm_forward(x, m.mean, m.var(), training=False, axis=axis, out=spare)
    rustbn.batch_norm_backward(spare, ctx, out=spare)
    _, ctx = rustbn.batch_norm_forward(x, axis=axis, out=spare)
    dx = rustbn.batch_norm_backward(spare, ctx, out=spare).dx
    rustbn.backward_reduce(dx, x, m, axis=axis)

base = np.random.default_rng(0).standard_normal((16, 32, 128, 64), dtype=np.float32)
half, spare = base[..., ::2], np.empty_like(base[:1])
verbs(base[:1], 1)  # whatever is allocated once
found = {"size": base.nbytes, "dense": {}}
for order in permutations(range(4)):
    x = base.transpose(order)
    spare = np.ones_like(x)
    for axis in range(4):
        found["dense"][f"{order} axis {axis}"] = extra(lambda: verbs(x, axis))
found["gapped"] = extra(lambda: rustbn.moments(half))
found["a copy"] = extra(lambda: half.copy().sum())
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dense_memory_is_never_copied_and_other_memory_once(run_python: RunPython) -> None:
    # With a fixed threshold the C library returns every large block at once, and hides none.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "RUSTBN_NUM_THREADS": "2"}
    found = json.loads(run_python(EXTRA_MEMORY, **environment).stdout)
    half = found["size"] / 2
    assert 0.9 * half <= found["a copy"] <= 1.1 * half  # the meter works
    assert found["gapped"] <= 1.1 * half
    copied = {name: extra for name, extra in found["dense"].items() if extra > found["size"] / 8}
    assert not copied
