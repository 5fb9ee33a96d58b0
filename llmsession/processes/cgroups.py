"""What a container or a service leaves of memory and cores, and how often the kernel killed for lack of memory.

Linux only, both versions of control groups. A limit may be set at any level above this process, so all are checked.
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec


class _Names(msgspec.Struct, frozen=True):
    """Where a version of control groups keeps its numbers. File caches count as free: the kernel reclaims them."""

    limit: str
    used: str
    caches: tuple[bytes, ...]
    kills: str


_NAMES = {
    2: _Names("memory.max", "memory.current", (b"active_file", b"inactive_file"), "memory.events"),
    1: _Names(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        (b"total_active_file", b"total_inactive_file"),
        "memory.oom_control",
    ),
}


def read_free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that the tightest limit leaves; None if there is none. `root`: of the file system."""
    free: int | None = None
    for version, folder in _groups(root, "memory"):
        names = _NAMES[version]
        limit = _read_number(folder / names.limit)
        # Version 1 writes "no limit" as a number that no machine has.
        if limit is None or limit >= 1 << 60:
            continue
        used, counts = _read_number(folder / names.used), _read_counts(folder / "memory.stat")
        if used is not None:
            left = max(0, limit - max(0, used - sum(counts.get(name, 0) for name in names.caches)))
            free = left if free is None else min(free, left)
    return free


def count_memory_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes the kernel has killed for lack of memory in this group, else on the machine.

    None if it is unknown.
    """
    for version, folder in _groups(root, "memory"):
        if (count := _read_counts(folder / _NAMES[version].kills).get(b"oom_kill")) is not None:
            return count
    return _read_counts(root / "proc/vmstat").get(b"oom_kill")


def allowed_cores(root: Path = Path("/")) -> int | None:
    """Return the smallest quota in whole cores, at least 1; None if there is none."""
    quotas = [quota for _, folder in _groups(root, "cpu") if (quota := _read_quota(folder)) is not None]
    return max(1, int(min(quotas))) if quotas else None


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield the folder of this process's group, with its version, then those above it.

    In a container the mount may start at the process's own group.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, mount = 2, mounts
        elif controller in controllers.split(","):
            joined = mounts / controllers  # as in cpu,cpuacct
            version, mount = 1, joined if joined.is_dir() else mounts / controller
        else:
            continue
        group = mount / path.strip("/")
        if ".." in group.parts or not group.is_dir():
            group = mount
        while True:
            yield version, group
            if group == mount:
                break
            group = group.parent


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None for `max`, or if there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_bytes())
    return None


def _read_counts(path: Path) -> dict[bytes, int]:
    """Return the counts in a file of lines with a name and a number."""
    with contextlib.suppress(OSError, ValueError):
        return {name: int(count) for name, count in (line.split() for line in path.read_bytes().splitlines())}
    return {}


def _read_quota(folder: Path) -> float | None:
    """Return the quota in cores, which may be a fraction."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        spent = int((folder / "cpu.cfs_quota_us").read_text())
        return spent / int((folder / "cpu.cfs_period_us").read_text()) if spent > 0 else None
    return None
