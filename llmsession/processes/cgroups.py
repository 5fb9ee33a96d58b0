"""What a container or a service leaves of the memory, and how often the kernel killed for lack of it. Linux only.

Both versions of control groups. A limit may stand at any level above us, so all of them are looked at.
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec


class _Names(msgspec.Struct, frozen=True):
    """Where a version keeps its numbers. The caches of files are given back when memory is short: they are free."""

    controller: str
    mount: str
    limit: str
    used: str
    caches: tuple[bytes, ...]
    kills: str


_V2 = _Names("", "", "memory.max", "memory.current", (b"active_file", b"inactive_file"), "memory.events")
_V1 = _Names(
    "memory",
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    (b"total_active_file", b"total_inactive_file"),
    "memory.oom_control",
)


def read_free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the tightest limit leaves; None where there is no limit. `root` is that of the file system."""
    free: int | None = None
    for names, folder in _folders(root):
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
    """How many processes the kernel has killed for lack of memory in our group, else on the machine; None: unknown."""
    for names, folder in _folders(root):
        if (count := _read_counts(folder / names.kills).get(b"oom_kill")) is not None:
            return count
    return _read_counts(root / "proc/vmstat").get(b"oom_kill")


def _folders(root: Path) -> Iterator[tuple[_Names, Path]]:
    """Our group's, then those above it. Inside of a container the mount may begin at our own group."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for names in (_V2, _V1):
            if (number == "0") != (names is _V2) or names.controller not in controllers.split(","):
                continue
            mount = root / "sys/fs/cgroup" / names.mount
            group = mount / path.strip("/")
            if ".." in group.parts or not group.is_dir():
                group = mount
            while True:
                yield names, group
                if group == mount:
                    break
                group = group.parent


def _read_number(path: Path) -> int | None:
    """None for `max`, and where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_bytes())
    return None


def _read_counts(path: Path) -> dict[bytes, int]:
    """Lines of a name and a number."""
    with contextlib.suppress(OSError, ValueError):
        return {name: int(count) for name, count in (line.split() for line in path.read_bytes().splitlines())}
    return {}
