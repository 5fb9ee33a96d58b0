"""What this machine can offer an engine: cores and memory that are free and allowed."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

import psutil

from llmsession.processes.cgroups import allowed_cores, read_free_memory
from llmsession.types.device import Device
from llmsession.types.units import MIB

# The fraction of free memory that the engine may use to keep prompts of idle conversations, and its upper limit in MiB.
CACHE_SHARE = 0.1
LARGEST_CACHEMIB = 8192
# What an engine takes of its address space beside what it computes with: code, stacks, arenas (measured: 400 MB).
ADDRESS_SPACE = 500_000_000


def default_threads() -> int:
    """Return the number of physical cores that this process may use, less one for the program itself; at least 1.

    Not what is idle now: the engine keeps the number for its whole life.
    """
    usable = _usable_cores()
    return max(1, min(usable, allowed_cores() or usable) - 1)


def _usable_cores() -> int:
    """Return the number of physical cores among those that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores: set[str] = set()
    for number in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(number))
    return len(cores)


def describe_machine() -> str:
    """Return a description such as `2 cores, 23.4 GiB of memory, 21.0 GiB of it free`."""
    total, free = psutil.virtual_memory().total / 2**30, free_memory() / 2**30
    return f"{os.cpu_count()} cores, {total:.1f} GiB of memory, {free:.1f} GiB of it free"


def free_memory() -> int:
    """Return the bytes that a child process may still use, within what the machine, container and user limit allow."""
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
    """Whether there may be a GPU with its own memory. Apple's GPUs use that of the machine."""
    if sys.platform != "linux":
        return sys.platform != "darwin"
    devices = Path("/dev")
    return any((devices / name).exists() for name in ("nvidiactl", "kfd", "dxg")) or any(devices.glob("dri/render*"))


def cache_ram_mib() -> int:
    """Return the budget for the engine's cache of prompts, in MiB."""
    return int(min(LARGEST_CACHEMIB, free_memory() * CACHE_SHARE / MIB))


def describe_cpu() -> Device:
    """Return the CPU as a Device, with the memory of the machine."""
    memory = psutil.virtual_memory()
    return Device(id="cpu", name=_name_cpu(), kind="cpu", memory_bytes=memory.total, free_bytes=memory.available)


def _name_cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
