"""What this machine has to offer an engine: cores and memory, less what it shares."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

# The part of free memory that the engine may use to keep prompts of idle conversations, and the most it is good for.
CACHE_SHARE = 0.1
LARGEST_CACHE_MIB = 8192


def default_threads() -> int:
    """Physical cores that we may use, less one for everything else: the last core buys little and costs most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical, _cgroup_cores(usable)) - 1)


def describe_machine() -> str:
    """For people: `2 cores, 23.4 GiB of memory, 21.0 GiB of it free`."""
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    return f"{os.cpu_count()} cores, {total:.1f} GiB of memory, {free:.1f} GiB of it free"


def cache_ram_mib() -> int:
    """A budget for the engine's cache of prompts, in MiB."""
    return int(min(LARGEST_CACHE_MIB, psutil.virtual_memory().available * CACHE_SHARE / 2**20))


def _cgroup_cores(otherwise: int) -> int:
    """What the container's quota allows (cgroup v2)."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    return otherwise
