"""Copy a memory while programs use it, and check whether a file is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmsession.memory.database import APPLICATION_ID, VERSION, explain
from llmsession.types.errors import StoreError, StoreVersionError, UsageError

# Pages of 4 kB that are copied before writers get their turn.
_PAGES_AT_ONCE = 2_000


class MemoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds. `faults` are SQLite's findings, none for a file that is whole; `size_bytes` with its log."""

    path: str
    users: int
    conversations: int
    turns: int
    size_bytes: int
    faults: tuple[str, ...] = ()


def back_up(path: Path, target: Path) -> MemoryReport:
    """Copy the memory at `path` to `target`, also while programs write to it, and check the copy.

    The copy is one file, which holds every turn that was acknowledged before. Raises UsageError if `target` exists,
    and StoreError; then nothing is left at `target`.
    """
    if target.exists():
        raise UsageError(f"{target} exists already: name another file, or remove it first")
    half = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    try:
        with _opened(path) as source, _explained(target):
            os.close(os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with contextlib.closing(sqlite3.connect(half)) as copy:
                source.backup(copy, pages=_PAGES_AT_ONCE)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        report = check(half)
        if report.faults:
            raise StoreError(f"{path} is damaged ({report.faults[0]}): no copy was made; see `llmsession memory check`")
        with _explained(target):
            _give_name(half, target)
        return msgspec.structs.replace(report, path=str(target))
    finally:
        half.unlink(missing_ok=True)


def check(path: Path) -> MemoryReport:
    """Return what the file holds, and what is wrong with it. Nothing is changed. Raises StoreError for another file."""
    with _opened(path) as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
        faults = [] if found == ["ok"] else found
        strays = connection.execute("PRAGMA foreign_key_check").fetchall()
        faults += [f"row {row} of {table} belongs to nothing" for table, row, *_ in strays[:20]]

        def count(sql: str) -> int:
            return int(connection.execute(sql).fetchone()[0])

        return MemoryReport(
            path=str(path),
            users=count("SELECT count(DISTINCT user) FROM conversation"),
            conversations=count("SELECT count(*) FROM conversation"),
            turns=count("SELECT count(*) FROM turn"),
            size_bytes=sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists()),
            faults=tuple(faults),
        )


def _give_name(half: Path, target: Path) -> None:
    """Raise FileExistsError if somebody was faster; a disk without links cannot tell."""
    try:
        os.link(half, target)
    except FileExistsError:
        raise
    except OSError:
        half.replace(target)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise StoreError(f"{path} is not a file: name that of the memory")
    with _explained(path), contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if owner != APPLICATION_ID:
            raise StoreError(f"{path} is not a memory of llmsession's")
        if connection.execute("PRAGMA user_version").fetchone()[0] > VERSION:
            raise StoreVersionError(f"{path} was written by a newer llmsession: upgrade llmsession")
        yield connection


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror})") from error
