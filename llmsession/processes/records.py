"""A small file for each running child, so that a later run can clear up what a lost one left.

The last defence against orphans: it matters only if this process was killed in the one instant that the others miss. A
process is ours only if its id *and* its start time match the record, because ids are reused.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from llmsession.processes.lifetime import kill_stray
from llmsession.system.atomic_file import remove_abandoned, write_atomically

_log = logging.getLogger("llmsession.processes")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Which process runs, since when, and for whom. Times are seconds since the epoch, as psutil reports them.

    `note` is for other programs of this user, such as where the server listens.
    """

    pid: int
    started: float
    owner_pid: int
    owner_started: float
    name: str
    log: str
    note: dict[str, str] = {}

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return _is_alive(self.pid, self.started)


def write_record(folder: Path, pid: int, *, name: str, log: Path, note: Mapping[str, str] | None = None) -> Path | None:
    """Write the record, readable by this user only. None if the process is gone or the folder cannot be written."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):  # ValueError: a path that is not UTF-8
        record = Record(
            pid=pid,
            started=psutil.Process(pid).create_time(),
            owner_pid=os.getpid(),
            owner_started=psutil.Process().create_time(),
            name=name,
            log=str(log),
            note=dict(note or {}),
        )
        path = folder / f"{pid}.json"
        write_atomically(path, msgspec.json.encode(record))
        return path
    return None


def read_records(folder: Path) -> dict[Path, Record]:
    """Return all records that can be read."""
    records = {}
    for path in folder.glob("*.json"):
        try:
            records[path] = msgspec.json.decode(path.read_bytes(), type=Record)
        except FileNotFoundError:
            continue  # its owner was quicker
        except (OSError, ValueError) as error:  # ValueError: a damaged file, bytes that are not UTF-8
            _log.warning("the record %r cannot be read and is skipped: %s", str(path), error)
    return records


def clear_leftovers(folder: Path) -> list[int]:
    """Kill the children of owners that are gone, and remove their records. Return the process ids that were killed."""
    ended = []
    for path, record in read_records(folder).items():
        if _is_alive(record.owner_pid, record.owner_started):
            continue
        if _is_alive(record.pid, record.started):
            kill_stray(record.pid)
            ended.append(record.pid)
        with contextlib.suppress(OSError):
            path.unlink()
    remove_abandoned(folder, psutil.pid_exists)
    return ended


def _is_alive(pid: int, started: float) -> bool:
    with contextlib.suppress(psutil.Error, ValueError):  # ValueError: no process can have such a number
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    return False
