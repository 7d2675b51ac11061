"""Threads: the same bits from any number of them, and no harm from threads, contexts and forks."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cases
import numpy as np
import pytest
import rustbn
from conftest import RunPython
from judge import assert_same_bits

COUNTS = (1, 2, 3, 5, 8)


@pytest.fixture(autouse=True)
def _restore_the_number_of_threads() -> Iterator[None]:
    before = rustbn.get_num_threads()
    yield
    rustbn.set_num_threads(before)


def test_every_number_of_threads_gives_the_same_bits() -> None:
    expected: dict[str, str] | None = None
    for n in COUNTS:
        with rustbn.threads(n):
            found = cases.digests(large=True)
        expected = expected or found
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, f"{n} threads differ in {len(different)}: {different[:10]}"


def test_one_channel_of_ten_million_values_has_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 10_000_000), dtype=np.float32)
    for batch in (x, x.reshape(-1, 1), x.reshape(10, 1, 1000, 1000)):
        results = []
        for n in (1, 2, 3, 8):
            with rustbn.threads(n):
                y, ctx = rustbn.batch_norm_forward(batch)
                results.append((y, rustbn.batch_norm_backward(batch, ctx).dx, ctx.moments))
        for y, dx, m in results[1:]:
            assert_same_bits(y, results[0][0])
            assert_same_bits(dx, results[0][1])
            assert m == results[0][2]


# How many.


def test_set_num_threads_is_for_the_process() -> None:
    numbers: list[Any] = [*COUNTS, np.int64(4)]
    for n in numbers:
        rustbn.set_num_threads(n)
        assert rustbn.get_num_threads() == n
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(rustbn.get_num_threads).result() == n


def test_threads_is_for_the_block_and_nests() -> None:
    rustbn.set_num_threads(2)
    with rustbn.threads(3):
        assert rustbn.get_num_threads() == 3
        with rustbn.threads(5):
            assert rustbn.get_num_threads() == 5
            rustbn.set_num_threads(4)
            assert rustbn.get_num_threads() == 5
        assert rustbn.get_num_threads() == 3
    assert rustbn.get_num_threads() == 4
    with pytest.raises(KeyError), rustbn.threads(3):
        raise KeyError
    assert rustbn.get_num_threads() == 4


def test_threads_of_one_python_thread_are_not_those_of_another() -> None:
    rustbn.set_num_threads(2)
    inside, seen = threading.Barrier(2, timeout=30), {}

    def worker(name: str, n: int) -> None:
        with rustbn.threads(n):
            inside.wait()
            seen[name] = rustbn.get_num_threads()
            inside.wait()

    workers = [threading.Thread(target=worker, args=(name, n)) for name, n in (("a", 3), ("b", 5))]
    with rustbn.threads(7):
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        assert rustbn.get_num_threads() == 7
    assert seen == {"a": 3, "b": 5}


def test_threads_follows_the_context() -> None:
    rustbn.set_num_threads(2)
    with rustbn.threads(3):
        context = contextvars.copy_context()
    assert rustbn.get_num_threads() == 2
    assert context.run(rustbn.get_num_threads) == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(context.run, rustbn.get_num_threads).result() == 3


def test_threads_of_one_task_are_not_those_of_another() -> None:
    rustbn.set_num_threads(2)

    async def task(n: int) -> list[int]:
        seen = []
        with rustbn.threads(n):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(rustbn.get_num_threads())
        return seen

    async def tasks() -> list[list[int]]:
        return list(await asyncio.gather(task(3), task(5)))

    assert asyncio.run(tasks()) == [[3] * 3, [5] * 3]
    assert rustbn.get_num_threads() == 2


BAD_COUNTS: list[tuple[Any, Any]] = [
    (0, ValueError),
    (-1, ValueError),
    (-(2**70), (ValueError, OverflowError)),
    (2**70, (ValueError, OverflowError)),
    (1.5, TypeError),
    (2.0, TypeError),
    ("2", TypeError),
    (None, TypeError),
]


@pytest.mark.parametrize(("n", "kind"), BAD_COUNTS)
def test_a_number_of_threads_that_makes_no_sense_is_an_error(n: Any, kind: Any) -> None:
    rustbn.set_num_threads(3)
    with pytest.raises(kind, match=r"\bn\b"):
        rustbn.set_num_threads(n)
    with pytest.raises(kind, match=r"\bn\b"), rustbn.threads(n):
        pytest.fail("the block was entered")
    assert rustbn.get_num_threads() == 3


COUNT_THREADS = "import rustbn; print(rustbn.get_num_threads())"


def test_the_environment_sets_the_number(run_python: RunPython) -> None:
    for n in ("1", "3", "64"):
        assert run_python(COUNT_THREADS, RUSTBN_NUM_THREADS=n).stdout.strip() == n


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_cores_this_process_may_run_on_are_the_default(run_python: RunPython) -> None:
    code = """
import os
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
import rustbn
print(rustbn.get_num_threads())
"""
    assert run_python(code).stdout.strip() == "1"
    assert 1 <= int(run_python(COUNT_THREADS).stdout) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", "1 2", "99999999999999999999999"])
def test_a_number_in_the_environment_that_makes_no_sense_is_an_error(
    value: str, run_python: RunPython
) -> None:
    code = """
import numpy as np
import rustbn
x = np.arange(300_000.0).reshape(-1, 3)  # small arrays need no threads
for call in (rustbn.get_num_threads, lambda: rustbn.batch_norm(x, training=True)):
    try:
        call()
    except ValueError as error:
        print(error)
"""
    done = run_python(code, RUSTBN_NUM_THREADS=value)
    messages = done.stdout.splitlines()
    assert len(messages) == 2
    for message in messages:
        assert "RUSTBN_NUM_THREADS" in message
        assert value in message
    assert "panicked" not in done.stderr


# At once.


def test_eight_python_threads_at_once() -> None:
    problems = [
        cases.problem(shape, axis, dtype)
        for dtype in cases.DTYPES
        for shape, axis in (((8, 40, 56, 56), 1), ((20_000, 70), 1), ((64, 5), 1), ((4, 7, 9), 2))
    ]

    def everything(p: cases.Problem) -> tuple[Any, ...]:
        mean, var = p.running_mean.copy(), p.running_var.copy()
        y, ctx = rustbn.batch_norm_forward(p.x, mean, var, p.weight, p.bias, axis=p.axis)
        return y, mean, var, *rustbn.batch_norm_backward(p.dy, ctx)

    rustbn.set_num_threads(2)
    expected = [everything(p) for p in problems]
    start = threading.Barrier(8, timeout=60)

    def worker(index: int) -> None:
        rng = np.random.default_rng(index)
        start.wait()
        with rustbn.threads(COUNTS[index % len(COUNTS)]):
            for i in rng.integers(0, len(problems), 12):
                for part, wanted in zip(everything(problems[i]), expected[i], strict=True):
                    assert_same_bits(part, wanted)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(worker, i) for i in range(8)]:
            done.result(timeout=120)


def test_the_number_may_change_while_others_compute() -> None:
    p = cases.problem((8, 40, 56, 56))
    expected = rustbn.batch_norm(p.x, training=True)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in COUNTS:
                rustbn.set_num_threads(n)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(30):
            assert_same_bits(rustbn.batch_norm(p.x, training=True), expected)
    finally:
        stop.set()
        changer.join()


def bound(call: Callable[[], object]) -> Callable[[], object]:
    """Return `call` bound to this context, whose number of threads it then uses elsewhere."""
    context = contextvars.copy_context()
    return lambda: context.run(call)


def longest_pause_of_another_thread(call: Callable[[], object]) -> tuple[float, float]:
    """Return how long `call` took in a thread, and the longest pause of Python code meanwhile."""
    started, span = threading.Event(), [0.0, 0.0]

    def work() -> None:
        span[0] = time.perf_counter()
        started.set()
        call()
        span[1] = time.perf_counter()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    stamps = [time.perf_counter()]
    while thread.is_alive():
        stamps.append(time.perf_counter())
    thread.join()
    return span[1] - span[0], float(np.diff([span[0], *stamps]).max())


def test_the_interpreter_is_free_during_large_work() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64, 64, 64), dtype=np.float32)
    out = np.empty_like(x)
    mean, var = np.zeros(64), np.ones(64)
    _, ctx = rustbn.batch_norm_forward(x)
    m = rustbn.moments(x)
    sums = rustbn.backward_reduce(x, x, m)
    calls: dict[str, Callable[[], object]] = {
        "batch_norm": lambda: rustbn.batch_norm(x, training=True, out=out),
        "batch_norm_forward": lambda: rustbn.batch_norm_forward(x, mean, var, out=out),
        "batch_norm_backward": lambda: rustbn.batch_norm_backward(x, ctx, out=out),
        "moments": lambda: rustbn.moments(x),
        "Affine": lambda: rustbn.Affine(mean, var, mean)(x, out=out),
        "backward_reduce": lambda: rustbn.backward_reduce(x, x, m),
        "backward_apply": lambda: rustbn.backward_apply(x, x, m, sums, out=out),
    }
    with rustbn.threads(1):
        for name, call in calls.items():
            # A busy machine may pause anyone; an interpreter that is held pauses us every time.
            tries = (longest_pause_of_another_thread(bound(call)) for _ in range(10))
            assert any(pause < duration / 2 for duration, pause in tries), name


# Forks.

FORK = """
import hashlib, json, os, sys, threading, warnings
import numpy as np
import rustbn

warnings.filterwarnings("ignore", category=DeprecationWarning)  # that forking is dangerous
x = np.random.default_rng(0).standard_normal((8, 40, 56, 56), dtype=np.float32)

def digest():
    y, ctx = rustbn.batch_norm_forward(x)
    dx = rustbn.batch_norm_backward(x, ctx).dx
    return hashlib.sha256(y.tobytes() + dx.tobytes()).hexdigest()

def threads_of_this_process():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 3

def in_child(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(write, work().encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    return said

rustbn.set_num_threads(3)
"""

FORKS = {
    "before_any_call": """
found = in_child(digest)
assert found == digest()
""",
    "after_a_parallel_call": """
expected = digest()
assert in_child(digest) == expected
assert digest() == expected
""",
    "in_a_child_of_a_child": """
expected = digest()
assert in_child(lambda: in_child(digest)) == expected
assert in_child(lambda: digest() + in_child(digest)) == expected * 2
""",
    "that_uses_more_threads_than_its_parent": """
expected = digest()
def more():
    rustbn.set_num_threads(5)
    return digest()
assert in_child(more) == expected
assert rustbn.get_num_threads() == 3
""",
    "that_has_threads_of_its_own_again": """
digest()
def count():
    alone = threads_of_this_process()
    digest()
    return json.dumps([alone, threads_of_this_process()])
alone, together = json.loads(in_child(count))
assert alone == 1 or sys.platform != "linux"
assert together >= 3
""",
    "while_another_thread_computes": """
expected = digest()
stop = threading.Event()
def busy():
    while not stop.is_set():
        digest()
thread = threading.Thread(target=busy)
thread.start()
try:
    for _ in range(10):
        assert in_child(digest) == expected
finally:
    stop.set()
    thread.join()
assert digest() == expected
""",
    "of_multiprocessing": """
import multiprocessing
expected = digest()
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = [pool.apply_async(digest) for _ in range(4)]
    assert [f.get(timeout=60) for f in found] == [expected] * 4
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("situation", FORKS)
def test_a_forked_child(situation: str, run_python: RunPython) -> None:
    run_python(FORK + FORKS[situation])


FLUSHED = """
import numpy as np
import torch
import rustbn

rng = np.random.default_rng(0)
tiny = (rng.standard_normal((16, 8, 64, 64)) * 1e-39).astype(np.float32)
least = rng.standard_normal((2, 8, 256, 256)) * 1e-309
x = rng.standard_normal((16, 8, 64, 64)).astype(np.float32)
dy = tiny[::-1] * np.float32(0.01)
small, subnormal = np.full(8, 1e-3, np.float32), np.full(8, 1e-39, np.float32)
wide = subnormal.astype(np.float64)


def results():
    mean, var = subnormal.copy(), subnormal.copy()
    yield rustbn.batch_norm(tiny, weight=small, training=True, eps=1e-10)
    y, ctx = rustbn.batch_norm_forward(tiny, mean, var, subnormal, subnormal, True)
    yield from (y, mean, var)
    yield rustbn.batch_norm(x, np.zeros(8), np.ones(8), subnormal, subnormal)
    yield rustbn.batch_norm(tiny, mean, var, wide)
    yield from rustbn.batch_norm_backward(dy, ctx)[:3]
    y, ctx = rustbn.batch_norm_forward(x, None, None, small, small, True)
    yield from rustbn.batch_norm_backward(dy, ctx)[:3]
    moments = rustbn.moments(least)
    merged = moments.merge(rustbn.moments(least[:1]))
    yield from (moments.mean, moments.m2, merged.mean, merged.var(), merged.invstd(0.0))
    sums = rustbn.backward_reduce(least, least, moments)
    yield from (sums.sum_dy, sums.sum_dy_xmu, (sums + sums).sum_dy)
    yield rustbn.Affine.from_running(mean, var, subnormal, subnormal).scale


def bits():
    return [np.atleast_1d(part).view(f"u{part.itemsize}") for part in results()]


expected = bits()
subnormals = [np.any((part != 0) & (abs(part) < np.finfo(part.dtype).tiny)) for part in results()]
assert sum(subnormals) > 9, subnormals
assert torch.set_flush_denormal(True)
for threads in (1, 2, 3):
    with rustbn.threads(threads):
        for i, (found, wanted) in enumerate(zip(bits(), expected, strict=True)):
            np.testing.assert_array_equal(found, wanted, f"result {i} of {threads} threads")
assert np.float32(1e-39) * np.float32(0.5) == 0, "the mode of the caller is as it was"
"""


def test_a_caller_that_flushes_subnormals_changes_nothing(run_python: RunPython) -> None:
    run_python(FLUSHED)


ONE_POOL = """
import os
import numpy as np
import rustbn

rustbn.set_num_threads(8)
for size in (80_000, 150_000, 2_000_000):  # for two threads, three, and all
    rustbn.moments(np.ones((size // 8, 8), np.float32))
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
helpers = sum(name.startswith("rustbn-") for name in names)
assert 7 <= helpers <= 8, names
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of threads")
def test_calls_of_every_size_share_one_pool(run_python: RunPython) -> None:
    run_python(ONE_POOL)


FORK_DURING_THE_FIRST_CALL = """
import os, threading, time
import numpy as np
import rustbn

x = np.ones((4, 8, 128, 128), np.float32)
caller = threading.Thread(target=lambda: rustbn.batch_norm(x, training=True))
caller.start()
time.sleep({delay})
child = os.fork()
if child == 0:
    rustbn.batch_norm(x, training=True)
    os._exit(0)
caller.join()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("delay", [0.0, 1e-4, 2e-4, 5e-4, 1e-3])
def test_a_child_forked_during_the_first_call_does_not_hang(
    delay: float, run_python: RunPython
) -> None:
    run_python(FORK_DURING_THE_FIRST_CALL.format(delay=delay))
