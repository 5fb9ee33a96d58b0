"""What this machine has to offer an engine: cores and memory, less what it shares."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil

from llmsession.processes.cgroups import read_free_memory

# The part of free memory that the engine may use to keep prompts of idle conversations, and the most it is good for.
CACHE_SHARE = 0.1
LARGEST_CACHE_MIB = 8192
# What an engine takes of its address space beside what it computes with: code, stacks, arenas (measured: 400 MB).
ADDRESS_SPACE = 500_000_000


def default_threads() -> int:
    """Physical cores that we may use, less one for everything else: the last core buys little and costs most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical, _cgroup_cores(usable)) - 1)


def describe_machine() -> str:
    """For people: `2 cores, 23.4 GiB of memory, 21.0 GiB of it free`."""
    total, free = psutil.virtual_memory().total / 2**30, free_memory() / 2**30
    return f"{os.cpu_count()} cores, {total:.1f} GiB of memory, {free:.1f} GiB of it free"


def free_memory() -> int:
    """Bytes that a process of ours may still take: of the machine, the container and the user's limit, the least."""
    free = [psutil.virtual_memory().available]
    if (left := read_free_memory()) is not None:
        free.append(left)
    if sys.platform != "win32":
        import resource

        space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if space != resource.RLIM_INFINITY:
            free.append(max(0, space - ADDRESS_SPACE))
    return min(free)


def may_have_gpu() -> bool:
    """Whether something here may be one with memory of its own. Apple's use that of the machine."""
    if sys.platform != "linux":
        return sys.platform != "darwin"
    devices = Path("/dev")
    return any((devices / name).exists() for name in ("nvidiactl", "kfd", "dxg")) or any(devices.glob("dri/render*"))


def cache_ram_mib() -> int:
    """A budget for the engine's cache of prompts, in MiB."""
    return int(min(LARGEST_CACHE_MIB, free_memory() * CACHE_SHARE / 2**20))


def _cgroup_cores(otherwise: int) -> int:
    """What the container's quota allows (cgroup v2)."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    return otherwise
