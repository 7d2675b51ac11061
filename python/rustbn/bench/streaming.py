"""A copy and an addition of float32 arrays with streaming stores, where that can be had.

An ordinary store to memory that is not in the cache first reads the line that it overwrites; a
streaming store does not. `np.copyto` and `np.add` use ordinary ones, so they move a third to a half
more bytes than needed and are no true limit. NumPy has nothing else and C extensions need a
compiler, so the two loops are here as the few bytes of x86-64 code they are.

What the hardware can do is all they show; they are part of no other code.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from rustbn.bench.problem import Array

Loop: TypeAlias = Callable[..., None]

# Bytes of a cache line: what a turn of the loops handles, and what the output is aligned to.
LINE = 64

COPY = bytes.fromhex(
    "0f1006"  # 1: movups xmm0, [rsi]
    "0f104e10"  # movups xmm1, [rsi+16]
    "0f105620"  # movups xmm2, [rsi+32]
    "0f105e30"  # movups xmm3, [rsi+48]
    "0f2b07"  # movntps [rdi], xmm0
    "0f2b4f10"  # movntps [rdi+16], xmm1
    "0f2b5720"  # movntps [rdi+32], xmm2
    "0f2b5f30"  # movntps [rdi+48], xmm3
    "4883c640"  # add rsi, 64
    "4883c740"  # add rdi, 64
    "4883ea40"  # sub rdx, 64
    "75d4"  # jnz 1b
    "0faef8"  # sfence
    "c3"  # ret
)
ADD = bytes.fromhex(
    "0f1006"  # 1: movups xmm0, [rsi]
    "0f104e10"  # movups xmm1, [rsi+16]
    "0f105620"  # movups xmm2, [rsi+32]
    "0f105e30"  # movups xmm3, [rsi+48]
    "0f1022"  # movups xmm4, [rdx]
    "0f106a10"  # movups xmm5, [rdx+16]
    "0f107220"  # movups xmm6, [rdx+32]
    "0f107a30"  # movups xmm7, [rdx+48]
    "0f58c4"  # addps xmm0, xmm4
    "0f58cd"  # addps xmm1, xmm5
    "0f58d6"  # addps xmm2, xmm6
    "0f58df"  # addps xmm3, xmm7
    "0f2b07"  # movntps [rdi], xmm0
    "0f2b4f10"  # movntps [rdi+16], xmm1
    "0f2b5720"  # movntps [rdi+32], xmm2
    "0f2b5f30"  # movntps [rdi+48], xmm3
    "4883c640"  # add rsi, 64
    "4883c240"  # add rdx, 64
    "4883c740"  # add rdi, 64
    "4883e940"  # sub rcx, 64
    "75b5"  # jnz 1b
    "0faef8"  # sfence
    "c3"  # ret
)


@cache
def loops() -> tuple[Loop, Loop] | None:
    """Return (copy, add), or None where the processor or the system refuses them."""
    if platform.machine() not in ("x86_64", "AMD64") or not sys.platform.startswith("linux"):
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened system
        return None
    page.write(COPY + ADD)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))  # keeps the page alive and in place
    _pages.append(page)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    copy = ctypes.CFUNCTYPE(None, pointer, pointer, size)(start)
    add = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, size)(start + len(COPY))
    return copy, add


_pages: list[Any] = []


def streaming_copy(x: Array, out: Array) -> None:
    """Copy dense 1-D float32 `x` to `out`."""
    copy, _ = _available()
    head, body = _lines(out)
    np.copyto(out[:head], x[:head])
    if body:
        copy(_address(out, head), _address(x, head), 4 * body)
    np.copyto(out[head + body :], x[head + body :])


def streaming_add(x: Array, y: Array, out: Array) -> None:
    """Add dense 1-D float32 `x` and `y` into `out`."""
    _, add = _available()
    head, body = _lines(out)
    np.add(x[:head], y[:head], out=out[:head])
    if body:
        add(_address(out, head), _address(x, head), _address(y, head), 4 * body)
    np.add(x[head + body :], y[head + body :], out=out[head + body :])


def _available() -> tuple[Loop, Loop]:
    found = loops()
    if found is None:
        raise RuntimeError("no streaming stores here")
    return found


def _lines(out: Array) -> tuple[int, int]:
    """Return how many elements come before the first line of `out`, and how many are in lines."""
    head = min(out.size, -out.ctypes.data % LINE // 4)
    return head, (out.size - head) // (LINE // 4) * (LINE // 4)


def _address(array: Array, at: int) -> int:
    return array.ctypes.data + 4 * at
