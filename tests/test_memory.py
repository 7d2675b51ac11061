"""Memory of large outputs: recycled, bounded, returned on demand, and in arrays like any other."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import rustbn
from conftest import RunPython
from outputs import LARGE, MiB, churn, full, handler, umath
from rustbn import _rustbn

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's accounts of memory")


@pytest.fixture
def large() -> np.ndarray[Any, Any]:
    """Return an output of 1 MiB of sevens."""
    return full((4, 8, 64, 128), 7.0)


# Which arrays.


def every_output(x: np.ndarray[Any, Any]) -> dict[str, Any]:
    y, ctx = rustbn.batch_norm_forward(x)
    moments, affine = ctx.moments, ctx.affine
    assert moments is not None
    assert affine is not None
    sums = rustbn.backward_reduce(x, x, moments)
    return {
        "batch_norm": rustbn.batch_norm(x, training=True),
        "forward": y,
        "backward": rustbn.batch_norm_backward(x, ctx).dx,
        "apply": rustbn.backward_apply(x, x, moments, sums),
        "affine": affine(x),
        "module": rustbn.BatchNorm(x.shape[1])(x),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_outputs_live_in_recycled_memory_and_others_do_not(dtype: str) -> None:
    channels = 4
    rows = LARGE // np.dtype(dtype).itemsize // channels
    for n, name in ((rows, "rustbn"), (rows - 1, "default_allocator")):
        x = np.arange(n * channels, dtype=dtype).reshape(n, channels)
        for verb, y in every_output(x).items():
            assert handler(y) == name, verb
            assert y.flags.owndata, verb
            assert y.base is None, verb
            assert y.ctypes.data % (64 if name == "rustbn" else 16) == 0, verb
        assert handler() == "default_allocator"


def test_huge_outputs_start_at_huge_pages() -> None:
    if sys.platform == "linux":
        y = full((2, 1, 1024, 1024), 1.0)
        assert y.ctypes.data % (2 * MiB) == 0


def test_memory_comes_back_and_is_counted() -> None:
    rustbn.empty_cache()
    y = full((1, 1, 1024, 1024), 1.0)
    place = y.ctypes.data
    assert _rustbn.cache_bytes()[0] == 0
    del y
    assert _rustbn.cache_bytes()[0] == 4 * MiB
    text = rustbn._config.config()["cache"]
    assert text.startswith("4 MiB held of at most ")
    y = full((1, 1, 1024, 1024), 2.0)
    assert y.ctypes.data == place
    assert _rustbn.cache_bytes()[0] == 0
    del y
    rustbn.empty_cache()
    assert _rustbn.cache_bytes()[0] == 0


def test_a_failed_call_leaves_numpy_as_it_was() -> None:
    x = np.broadcast_to(np.float32(0), (2**20, 4, 2**25))
    with pytest.raises(MemoryError):
        rustbn.moments(x)
    assert handler() == "default_allocator"


def test_the_handler_of_somebody_else_stays() -> None:
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    table = api.PyCapsule_GetPointer(umath._ARRAY_API, None)
    slots = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))
    swap = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(slots[304] or 0)
    current = ctypes.PYFUNCTYPE(ctypes.py_object)(slots[305] or 0)
    # NumPy's own functions under another name: 127 bytes of it, then version and functions.
    name = ctypes.create_string_buffer(b"theirs", 127)
    own = ctypes.string_at(api.PyCapsule_GetPointer(current(), b"mem_handler"), 168)
    memory = ctypes.create_string_buffer(name.raw + own[127:], 168)
    before = swap(api.PyCapsule_New(ctypes.addressof(memory), b"mem_handler", None))
    try:
        y = full((4, 8, 64, 128), 1.0)
        assert handler() == handler(y) == "theirs"
        del y
    finally:
        swap(before)
    assert handler() == "default_allocator"


# Arrays like any other.


def test_resize(large: np.ndarray[Any, Any]) -> None:
    size = large.size
    for wanted in (size - 5, size // 2, 10, 10 * size, 3 * size, 0, size):
        kept = min(large.size, wanted)
        sevens = int((large.ravel()[:kept] == 7).sum())
        large.resize((wanted,), refcheck=False)
        assert large.flags.owndata
        assert int((large[:sevens] == 7).sum()) == sevens
        assert not large[kept:].any()
        large[:] = 7
    assert handler(large) == "rustbn"


def test_copy_pickle_and_views(large: np.ndarray[Any, Any]) -> None:
    for other in (large.copy(), pickle.loads(pickle.dumps(large)), np.array(large)):
        np.testing.assert_array_equal(other, large)
    state: Any = np.arange(5.0).__reduce__()[2]
    large.__setstate__(state)  # gives its memory up
    np.testing.assert_array_equal(large, np.arange(5.0))
    view = full((4, 8, 64, 128), 3.0)[1:].view(np.uint8)
    bits = view.copy()
    others = [full((4, 8, 64, 128), 4.0) for _ in range(3)]
    np.testing.assert_array_equal(view, bits)
    del others


def test_tracemalloc_sees_it() -> None:
    tracemalloc.start()
    try:
        y = full((4, 8, 64, 128), 1.0)
        with_it = tracemalloc.get_traced_memory()[0]
        del y
        assert with_it - tracemalloc.get_traced_memory()[0] >= MiB
    finally:
        tracemalloc.stop()


def test_freed_in_another_thread(large: np.ndarray[Any, Any]) -> None:
    rustbn.empty_cache()
    place, arrays = large.ctypes.data, [full((4, 8, 64, 128), 1.0)]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert _rustbn.cache_bytes()[0] == MiB
    again = full((4, 8, 64, 128), 2.0)
    assert again.ctypes.data != place
    assert _rustbn.cache_bytes()[0] == 0
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(full, (4, 8, 64, 128), 3.0).result()
    assert float(made.min()) == float(made.max()) == 3.0
    assert handler(made) == "rustbn"


def test_freed_at_exit(run_python: RunPython) -> None:
    code = """
import atexit, builtins, sys, threading
import numpy as np, rustbn
x = np.ones((4, 8, 64, 128), np.float32)
class Cycle:
    def __init__(self): self.me, self.y = self, rustbn.batch_norm(x, training=True)
    def __del__(self): self.y = None
y = rustbn.batch_norm(x, training=True)
builtins.kept = sys.kept = [rustbn.batch_norm(x, training=True) for _ in range(3)]
cycle = Cycle()
atexit.register(lambda y: y.sum(), rustbn.batch_norm(x, training=True))
local = threading.local()
local.y = rustbn.batch_norm(x, training=True)
def work():
    for _ in range(10**6): rustbn.batch_norm(x, training=True)
threading.Thread(target=work, daemon=True).start()
"""
    done = run_python(code)
    assert not done.stderr


# No block twice, no more than the limit.


def test_no_block_is_handed_out_twice() -> None:
    problems: list[str] = []
    stop = threading.Event()

    def empty() -> None:
        while not stop.wait(0.005):
            rustbn.empty_cache()

    workers = [threading.Thread(target=churn, args=(n, 300, problems)) for n in range(6)]
    emptier = threading.Thread(target=empty)
    for thread in (*workers, emptier):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    emptier.join()
    assert not problems


PROCESS = """
import os, threading, resource
import numpy as np, rustbn
from rustbn import _rustbn
from outputs import MiB, churn, full, handler

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""


@linux_only
def test_memory_returns(run_python: RunPython) -> None:
    code = """
full((1, 1, 1024, 1024), 1.0)
rustbn.empty_cache()
before = resident()
for shape in ((8, 1, 1024, 1024), (1, 1, 64, 1024)):  # 32 MiB, 256 KiB
    arrays = [full(shape, 1.0) for _ in range(4 * 8 * 1024 * 1024 // (shape[0] * shape[2] * 1024))]
    with_arrays = resident()
    arrays.clear()
    kept, held = resident(), _rustbn.cache_bytes()[0]
    rustbn.empty_cache()
    after = resident()
    assert with_arrays - before > 120 * MiB
    assert kept - before > 120 * MiB and held >= 128 * MiB
    assert after - before < 16 * MiB, (after - before) / MiB
"""
    run_python(PROCESS + code)


@linux_only
def test_no_more_is_kept_than_the_limit(run_python: RunPython) -> None:
    code = """
full((1, 1, 1024, 1024), 1.0)
rustbn.empty_cache()
before, problems = resident(), []
threads = [threading.Thread(target=churn, args=(n, 100, problems, 20)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
held, limit = _rustbn.cache_bytes()
assert not problems
assert limit == 8 * MiB and 0 < held <= limit
assert resident() - before < limit + 16 * MiB  # the rest is Python's
full((16, 1, 1024, 1024), 1.0)  # is larger than the limit
assert 0 < _rustbn.cache_bytes()[0] <= held
"""
    run_python(PROCESS + code, RUSTBN_CACHE_BYTES=str(8 * MiB))


@linux_only
def test_the_second_call_touches_no_new_pages(run_python: RunPython) -> None:
    code = """
x = np.random.default_rng(0).standard_normal((16, 64, 56, 56), dtype=np.float32)
def step():
    y, ctx = rustbn.batch_norm_forward(x)
    dx = rustbn.batch_norm_backward(x, ctx).dx
    return [y, dx, *(full((1, 1, 64, 1024), 1.0) for _ in range(9))]
with rustbn.threads(1):
    step(), step()
    before = faults()
    for _ in range(4):
        step()
    assert faults() - before < 100, faults() - before  # x has 3136 pages
"""
    run_python(PROCESS + code)


# How much.


def test_a_quarter_of_memory_is_the_default(run_python: RunPython) -> None:
    code = "from rustbn import _rustbn; print(*_rustbn.cache_bytes())"
    held, limit = map(int, run_python(code).stdout.split())
    assert held == 0
    assert limit > 0
    if sys.platform == "linux":
        assert limit <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def test_nothing_may_be_kept(run_python: RunPython) -> None:
    code = """
y = full((16, 1, 1024, 1024), 1.0)
assert handler(y) == "default_allocator"
del y
assert _rustbn.cache_bytes() == (0, 0)
rustbn.empty_cache()
assert "0 MiB held of at most 0 MiB" in rustbn._config.config()["cache"]
"""
    run_python(PROCESS + code, RUSTBN_CACHE_BYTES="0")


@pytest.mark.parametrize("value", ["-1", "much", "1.5", "1G", "99999999999999999999999"])
def test_a_limit_that_makes_no_sense_is_an_error(value: str, run_python: RunPython) -> None:
    code = """
import numpy as np
import rustbn
from rustbn import _rustbn
x = np.arange(300_000.0).reshape(-1, 3)
rustbn.batch_norm(x[:9], training=True)  # small arrays need none
rustbn.batch_norm(x, training=True, out=np.empty_like(x))
rustbn.empty_cache()
for call in (_rustbn.cache_bytes, rustbn.show_config, lambda: rustbn.batch_norm(x, training=True)):
    try:
        call()
    except ValueError as error:
        print(error.kind, error)
"""
    done = run_python(code, RUSTBN_CACHE_BYTES=value)
    messages = done.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert message.startswith("Range RUSTBN_CACHE_BYTES must be a whole number of bytes")
        assert value in message


# After a fork.

FORK = """
import faulthandler, traceback, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # that forking is dangerous

def in_child(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.dump_traceback_later(20, exit=True)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child

def joined(child):
    assert os.waitpid(child, 0)[1] == 0

def work():
    problems = []
    churn(os.getpid(), 30, problems)
    assert not problems, problems
    rustbn.empty_cache()
    assert _rustbn.cache_bytes()[0] == 0
"""

FORKS = {
    "with_arrays_and_kept_blocks_of_its_parent": """
kept = full((4, 1, 1024, 1024), 5.0)
del kept
y = full((2, 1, 1024, 1024), 6.0)
def child():
    global y
    again = full((4, 1, 1024, 1024), 7.0)
    assert (y == 6).all()
    y += 1
    del y
    work()
    assert (again == 7).all()
children = [in_child(child) for _ in range(3)]
again = full((4, 1, 1024, 1024), 8.0)
for child in children:
    joined(child)
assert (y == 6).all() and (again == 8).all()
""",
    "while_other_threads_allocate": """
work()
stop, problems = threading.Event(), []
def go(n):
    while not stop.is_set():
        churn(n, 20, problems)
threads = [threading.Thread(target=go, args=(n,)) for n in range(3)]
for thread in threads:
    thread.start()
for _ in range(15):
    joined(in_child(work))
stop.set()
for thread in threads:
    thread.join()
assert not problems
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("situation", FORKS)
def test_a_forked_child(situation: str, run_python: RunPython) -> None:
    run_python(PROCESS + FORK + FORKS[situation])


PEAK = """
import resource
import numpy as np
import rustbn

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

shape, nhwc = (32, 128, 56, 56), {nhwc}
rng = np.random.default_rng(0)
x, dy, y, dx = (rng.standard_normal(shape, np.float32) for _ in range(4))
if nhwc:
    x, dy, y, dx = (a.reshape(32, 56, 56, 128).transpose(0, 3, 1, 2) for a in (x, dy, y, dx))
weight = np.ones(128, np.float32)
rustbn.batch_norm_forward(x[:2], weight=weight)
before = peak()
_, ctx = rustbn.batch_norm_forward(x, weight=weight, out=y)
rustbn.batch_norm_backward(dy, ctx, out=dx)
print(peak() - before)
"""


@linux_only
@pytest.mark.parametrize("nhwc", [False, True])
def test_forward_and_backward_need_no_memory_to_speak_of(nhwc: bool, run_python: RunPython) -> None:
    grown = int(run_python(PEAK.format(nhwc=nhwc), RUSTBN_NUM_THREADS="2").stdout)
    assert grown < 4 << 10, f"the peak grew by {grown} KiB; the arrays have 50176 each"
