"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rustbn import _config

CPU = Path("/sys/devices/system/cpu/cpu0")


def machine() -> dict[str, Any]:
    """Return the processor, its caches as the first core sees them, and the cores to be had."""
    return {
        "cpu": _model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(peers: Iterable[str]) -> dict[str, str]:
    """Return the versions of rustbn, its instruction set, Python, and of NumPy and the peers."""
    config = _config.config()
    found = {
        "rustbn": config["rustbn"],
        "SIMD level": config["SIMD level"],
        "Python": sys.version.split()[0],
        "numpy": np.__version__,
    }
    return found | {peer: version(peer) for peer in peers if peer != "numpy"}


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model')})"
    return name


def _caches() -> dict[str, str]:
    """Return the size of each cache by its name, such as ``L2``."""
    found = {}
    for index in sorted(CPU.glob("cache/index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="utf-8").strip()
                for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}" + ("d" if kind == "Data" else "")] = size
    return found
