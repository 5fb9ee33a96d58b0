"""Deletes users for good: no byte of what was said stays in the file, in its log, or beside them."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from llmsession.memory.database import LOCK_TIMEOUT, execute_patiently, is_busy
from llmsession.system.named_files import forget_copies
from llmsession.types.errors import StoreError, StoreLockedError

# What reads in the database holds its log; a read takes milliseconds.
_READER_TIMEOUT = 5.0
_LOOK_EVERY = 0.02


def delete_conversations(connection: sqlite3.Connection, which: str, values: Sequence[object]) -> int:
    """Delete the conversations that match the SQL condition, and the engines' files of them; return their number.

    Runs in a transaction. The files go first: a kill in between costs an engine some reading and leaves no deleted
    text.
    """
    sql = f"SELECT folder, name FROM copy JOIN conversation ON conversation.id = copy.conversation WHERE {which}"
    for folder, name in connection.execute(sql, values).fetchall():
        forget_copies(Path(os.fsdecode(folder)), name.decode())
    return connection.execute(f"DELETE FROM conversation WHERE {which}", values).rowcount


def erase_traces(connection: sqlite3.Connection, path: Path) -> None:
    """Rewrite the file without deleted data. Raises StoreError; after StoreLockedError, call it again.

    `secure_delete` overwrites deleted rows in place. It does not overwrite the copies that SQLite leaves in the free
    space of a page when it moves rows to another page (seen with 3.40, for one user in twenty).
    """
    deleted = f"all of it was deleted from {path}, but traces of it are left in the file"
    try:
        execute_patiently(connection, "VACUUM")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise StoreLockedError(
                f"{deleted}: another program has been writing there for more than {LOCK_TIMEOUT:.0f} s; close it "
                "(`fuser` or `lsof` name it), then call forget_user again"
            ) from error
        raise StoreError(
            f"{deleted} ({error}): make room on the disk and in the folder for temporary files for once more the "
            "file's size, then call forget_user again"
        ) from error
    deadline = time.monotonic() + _READER_TIMEOUT
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            raise StoreLockedError(
                f"{deleted} and its log {path.name}-wal: another program has been reading there for more than "
                f"{_READER_TIMEOUT:.0f} s; close it (`fuser` or `lsof` name it), then call forget_user again"
            )
        time.sleep(_LOOK_EVERY)
