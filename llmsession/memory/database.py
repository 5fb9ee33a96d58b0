"""Opens, creates and migrates the database file, and explains SQLite's errors.

Only SQLite opens the file: when a process closes any descriptor of it, the kernel drops all locks that the process has
on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any, Final

from llmsession.types.errors import LLMSessionError, StoreError, StoreLockedError, StoreVersionError

# "llms": whose database it is (PRAGMA application_id).
APPLICATION_ID: Final = 0x6C6C6D73
# A commit takes milliseconds, a VACUUM seconds: whoever holds the file longer has stopped in the middle.
LOCK_TIMEOUT: Final = 30.0
# Between two looks; longer ones would let a busy process keep a quiet one out.
_LOOK_EVERY: Final = 0.002
# The log does not stay as long as it once had to be.
_WAL_LIMIT: Final = 16 * 2**20

# One page of the least size that there is.
_SMALLEST: Final = 512
_NOT_OURS: Final = "{} is not a database of llmsession's: name another file, this one was left as it is"
_READ_ONLY: Final = "{} cannot be written: allow it for the file and for its folder, or name another"

# Each brings the file from the version of its index to the next. None is ever changed, only added to.
_MIGRATIONS: Final = (
    """
    CREATE TABLE conversation (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user BLOB NOT NULL,
        channel BLOB NOT NULL,
        started INTEGER NOT NULL,      -- microseconds since 1970, as all moments
        last_update INTEGER NOT NULL,
        last_hour INTEGER NOT NULL,    -- of last_update: an index on it seldom has to follow
        version INTEGER NOT NULL,      -- one more with each change
        head INTEGER,                  -- the turn in which the active path ends
        system_prompt BLOB,
        rendered_system BLOB,
        rendered_for BLOB,
        UNIQUE (user, channel)
    );
    CREATE INDEX conversation_by_use ON conversation (last_hour);
    CREATE TABLE copy (                -- where engines keep what they have read of it
        conversation INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
        folder BLOB NOT NULL,
        name BLOB NOT NULL,
        PRIMARY KEY (conversation, folder)
    );
    CREATE TABLE turn (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        parent INTEGER,
        role TEXT NOT NULL,
        message BLOB NOT NULL,         -- JSON, without the role
        state TEXT NOT NULL,
        created INTEGER NOT NULL,
        key BLOB,
        pinned INTEGER NOT NULL,
        left_out INTEGER NOT NULL,
        summary INTEGER NOT NULL,
        tokens INTEGER,
        completion BLOB,               -- JSON, without what stands in the message
        conversation INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
        version INTEGER NOT NULL       -- of the conversation, when this was last changed
    );
    CREATE INDEX turn_by_change ON turn (conversation, version);
    CREATE UNIQUE INDEX turn_by_key ON turn (conversation, key) WHERE key IS NOT NULL;
    CREATE INDEX turn_unfinished ON turn (id)
        WHERE role = 'user' AND (state = 'pending' OR (key IS NOT NULL AND state NOT IN ('delivered', 'failed')));
    """,
)
VERSION: Final = len(_MIGRATIONS)


def connect(path: Path | None) -> sqlite3.Connection:
    """Return a connection to the file, created if missing, or to a database in RAM. Raises StoreError."""
    if path is None:
        connection = _connect(":memory:")
        _migrate(connection)
        return connection
    _check_place(path)
    try:
        connection = _connect(str(path))
    except sqlite3.Error as error:
        raise explain(error, path) from error
    try:
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise explain(error, path) from error
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return another connection to an open database. It never waits for a writer."""
    connection = _connect(str(path))
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT * 1000:.0f}")  # recovery after a crash, in another process
    return connection


def execute_patiently(connection: sqlite3.Connection, sql: str) -> Any:
    """Execute a statement that needs the write lock; return the first column of the first row, if any."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            row = connection.execute(sql).fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_EVERY)
        else:
            return row[0] if row else None


def is_busy(error: BaseException) -> bool:
    """Return whether another connection holds the lock."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: sqlite3.Error, path: Path | None) -> LLMSessionError:
    """Return SQLite's error as ours, with the file and the next step."""
    where = "the memory" if path is None else str(path)
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreLockedError(
                f"{where} is held by another program for more than {LOCK_TIMEOUT:.0f} s: "
                "close whatever has it open (`fuser` or `lsof` tell), then try again"
            )
        case sqlite3.SQLITE_FULL:
            return StoreError(f"{where} cannot grow, the disk is full: nothing of this was kept; free some space")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreError(_READ_ONLY.format(where))
        case sqlite3.SQLITE_CANTOPEN:
            return StoreError(f"{where} cannot be opened: is its folder there, and may this user read and write in it?")
        case sqlite3.SQLITE_NOTADB:
            return StoreError(_NOT_OURS.format(where))
        case sqlite3.SQLITE_CORRUPT:
            return damaged(path, str(error))
    return StoreError(f"{where} could not be read or written ({error}): is its disk in order?")


def damaged(path: Path | None, how: str) -> StoreError:
    """Return the error for content that makes no sense."""
    return StoreError(
        f"{path or 'the memory'} is damaged ({how}): restore a copy, or save what is left with sqlite3's .recover; it "
        "was left as it is"
    )


def _code(error: BaseException) -> int:
    """Return the primary result code: extended codes carry it in their last byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a folder: name a file in it, such as {path / 'memory.db'}")
    if not path.parent.is_dir():
        raise StoreError(f"{path} cannot be made, there is no folder {path.parent}: make it first")
    with contextlib.suppress(FileNotFoundError):
        if 0 < path.stat().st_size < _SMALLEST:  # SQLite takes a file of one byte for an empty one
            raise StoreError(_NOT_OURS.format(path))
        # SQLite would find out with the first write, and leave its side files behind.
        if not os.access(path, os.W_OK):
            raise StoreError(_READ_ONLY.format(path))
    if not os.access(path.parent, os.W_OK):
        raise StoreError(_READ_ONLY.format(path))
    if _is_mounted(path):
        warnings.warn(
            f"{path} is mounted by itself: the newest turns are for a moment in {path.name}-wal beside it, which ends "
            "with the container; mount the folder instead",
            stacklevel=6,
        )
    # What people said is theirs alone. Where the file is there already, it is not touched.
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _is_mounted(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Return whether the file itself is a mount point, as a container's volume of one file is. Linux only."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    points = {line.split(" ")[4] for line in lines if line.count(" ") > 4}
    name = os.path.realpath(path)
    return "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in name) in points


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the database is ours and of this version, and make commits durable."""
    execute_patiently(
        connection, "PRAGMA application_id"
    )  # one who makes it, or closes it as the last, keeps others out
    _check_owner(connection, path)
    mode = execute_patiently(connection, "PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise StoreError(f"{path} lies where SQLite cannot share it between connections: put it on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    _migrate(connection)


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if owner != APPLICATION_ID and (owner or version or tables):
        raise StoreError(f"{path} is the database of another program: name another file, this one was left as it is")
    if version > VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer llmsession (its format is {version}, this one knows {VERSION}): "
            "upgrade llmsession; the file was left as it is"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == VERSION:
        return
    execute_patiently(connection, "BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been faster
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {max(version, VERSION)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
