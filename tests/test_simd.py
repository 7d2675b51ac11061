"""Instruction sets: one logical vector, the same bits from each of them, clear errors."""

from __future__ import annotations

import json

import pytest
from conftest import RunPython
from rustbn import _rustbn

DIGESTS = "import cases, json; print(json.dumps(cases.digests()))"


def test_levels_are_named_and_the_portable_one_is_always_there() -> None:
    levels = _rustbn.simd_levels()
    assert "scalar" in levels
    assert len(set(levels)) == len(levels)
    assert set(levels) <= {"scalar", "avx2", "avx512", "neon"}
    assert _rustbn.simd_level() in levels


def test_every_level_gives_the_same_bits(run_python: RunPython) -> None:
    digests = {
        level: json.loads(run_python(DIGESTS, RUSTBN_SIMD=level, RUSTBN_NUM_THREADS="1").stdout)
        for level in _rustbn.simd_levels()
    }
    expected = digests["scalar"]
    assert len(expected) > 1000
    for level, found in digests.items():
        assert found.keys() == expected.keys()
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, f"{level} differs from scalar in {len(different)}: {different[:10]}"


def test_any_sizes_of_the_caches_give_the_same_bits(run_python: RunPython) -> None:
    code = DIGESTS + "; from rustbn import _rustbn; print(_rustbn.cpu_caches())"
    found = {}
    for sizes in ((256 << 10, 2 << 20), (4 << 20, 32 << 20)):
        environment = {"RUSTBN_CPU_CACHES": "{},{}".format(*sizes), "RUSTBN_NUM_THREADS": "2"}
        digests, caches = run_python(code, **environment).stdout.splitlines()
        assert caches == str(sizes)
        found[sizes] = json.loads(digests)
    small, large = found.values()
    assert small == large


def test_the_environment_chooses_the_level(run_python: RunPython) -> None:
    code = "from rustbn import _rustbn; print(_rustbn.simd_level())"
    for level in _rustbn.simd_levels():
        assert run_python(code, RUSTBN_SIMD=level).stdout.strip() == level
    # Without a word the fastest is chosen; levels are listed from the slowest.
    assert run_python(code).stdout.strip() == _rustbn.simd_levels()[-1]


CALLS = """
import numpy as np
import rustbn
x = np.arange(12, dtype=np.float32).reshape(4, 3)
out, mean, var = np.zeros_like(x), np.zeros(3), np.ones(3)
m = rustbn.Moments(4, np.zeros(3), np.ones(3))
calls = {
    "batch_norm": lambda: rustbn.batch_norm(x, mean, var, training=True, out=out),
    "batch_norm_forward": lambda: rustbn.batch_norm_forward(x, mean, var, out=out),
    "moments": lambda: rustbn.moments(x),
    "Affine": lambda: rustbn.Affine(mean, var, var)(x, out=out),
    "backward_reduce": lambda: rustbn.backward_reduce(x, x, m),
    "backward_apply": lambda: rustbn.backward_apply(x, x, m, rustbn.GradSums(mean, var), out=out),
}
for name, call in calls.items():
    for attempt in range(2):
        try:
            call()
        except ValueError as error:
            assert error.kind == "Simd", error.kind
            print(error)
        else:
            raise AssertionError(f"{name} accepted the level")
    assert not out.any() and not mean.any() and (var == 1).all(), name
"""


@pytest.mark.parametrize("level", ["sse9", "AVX2", "avx512,avx2", "neon", "avx512"])
def test_a_level_that_is_not_there_is_an_error_that_says_which_are(
    level: str, run_python: RunPython
) -> None:
    if level in _rustbn.simd_levels():
        pytest.skip("this machine has it")
    done = run_python(CALLS, RUSTBN_SIMD=level)
    messages = done.stdout.splitlines()
    assert len(messages) == 12
    for message in messages:
        assert "RUSTBN_SIMD" in message
        assert level in message
        for supported in _rustbn.simd_levels():
            assert supported in message
    assert "panicked" not in done.stderr
