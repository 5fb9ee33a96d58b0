"""The two log files of each run of a child: NAME.log for stderr, NAME.out for stdout.

Files and not pipes: a grandchild that holds a pipe open cannot make us hang, and the last words of a dead child are
kept.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from pathlib import Path

from llmsession.system.file_lock import is_used, mark_used

# Old runs are kept while they are few and small: enough to look back, never enough to fill a disk.
KEPT_RUNS = 20
KEPT_BYTES = 50_000_000

# A run that goes on for weeks writes some hundred bytes a request; beyond this its oldest lines go.
LARGEST_LOG = 16_000_000
KEPT_OF_LARGEST = 1_000_000

_numbers = itertools.count(1)

# Only what has a name that we gave: `cache_dir=` may be a folder in which others keep their logs.
_OURS = re.compile(r"(.+-\d{8}-\d{6}-\d+-\d+)\.(?:log|out|log\.1)")


class LogFile:
    """The log of one run. `path` is its stderr, `out_path` its stdout. Both are private to the user."""

    def __init__(self, folder: Path, name: str) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        # The process and a count make it unique: two sessions may start in one second.
        stem = f"{name}-{stamp}-{os.getpid()}-{next(_numbers)}"
        self.path = folder / f"{stem}.log"
        self.out_path = folder / f"{stem}.out"

    def open(self) -> tuple[int, int]:
        """Create both files, and remove old runs. Return descriptors for stdout and stderr, which the caller closes."""
        prune(self.path.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        out = os.open(self.out_path, flags, 0o600)
        try:
            log = os.open(self.path, flags, 0o600)
        except BaseException:
            os.close(out)
            raise
        mark_used(log)
        return out, log

    def read_out(self, offset: int = 0) -> bytes:
        """Return what the child wrote to stdout, from `offset` on."""
        return _read(self.out_path, offset)

    def read_log(self, offset: int = 0) -> bytes:
        """Return what the child wrote to stderr, from `offset` on."""
        return _read(self.path, offset)

    def size(self) -> int:
        """The bytes of stderr so far: any output is a sign of life."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of stderr, for error messages."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    def rotate(self) -> None:
        """If the log has grown too large, keep its end in NAME.log.1 and start over. Otherwise it costs one stat."""
        try:
            if self.path.stat().st_size <= LARGEST_LOG:
                return
            kept = self.path.with_suffix(".log.1")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(os.open(kept, flags, 0o600), "wb") as file:
                file.write(self.read_log(-KEPT_OF_LARGEST))
            os.truncate(self.path, 0)  # the child appends (O_APPEND), so it goes on at the start
        except OSError:
            return  # a full disk must not end a reply; the next one tries again


def prune(folder: Path) -> None:
    """Remove the oldest runs beyond KEPT_RUNS and KEPT_BYTES, but none that is still running."""
    runs: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in folder.iterdir():
        if (ours := _OURS.fullmatch(path.name)) is not None:
            with contextlib.suppress(OSError):
                runs.setdefault(ours.group(1), []).append((path, path.stat()))
    newest_first = sorted(runs.values(), key=lambda run: max(s.st_mtime for _, s in run), reverse=True)
    total = 0
    for number, run in enumerate(newest_first):
        total += sum(stat.st_size for _, stat in run)
        if number >= KEPT_RUNS or total > KEPT_BYTES:
            paths = [path for path, _ in run]
            if not any(is_used(path) for path in paths):
                for path in paths:
                    with contextlib.suppress(OSError):
                        path.unlink()


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            if offset < 0:
                offset = max(0, path.stat().st_size + offset)
            file.seek(offset)
            return file.read()
    except OSError:
        return b""
