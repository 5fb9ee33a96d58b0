"""How many cores the container, or any group around this process, may use: cgroups of version 1 and 2.

https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def allowed_cores(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> int | None:
    """The smallest quota of them all, in whole cores and at least 1; None where there is none."""
    quotas = [quota for folder in _folders(mount, membership) if (quota := _read_quota(folder)) is not None]
    return max(1, int(min(quotas))) if quotas else None


def _folders(mount: Path, membership: Path) -> Iterator[Path]:
    """Our group's and all around it; in a container those above are not there, and its own is the mount itself."""
    lines = []
    with contextlib.suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in ("0::/", "1:cpu:/", *lines):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = mount
        elif "cpu" in controllers.split(","):
            base = mount / controllers if (mount / controllers).is_dir() else mount / "cpu"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for part in (inside, *inside.parents):
            yield base / part


def _read_quota(folder: Path) -> float | None:
    """In cores, with a fraction."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        spent = int((folder / "cpu.cfs_quota_us").read_text())
        return spent / int((folder / "cpu.cfs_period_us").read_text()) if spent > 0 else None
    return None
