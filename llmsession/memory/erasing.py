"""Forgetting a user for good: not a byte of what was said is left in the file, its log, or beside them.

`secure_delete` overwrites what is deleted, the log is emptied.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from llmsession.errors import StoreLockedError

# What reads in the database holds its log; a read takes milliseconds.
_READER_TIMEOUT = 5.0
_LOOK_EVERY = 0.02


def delete_user(connection: sqlite3.Connection, user: str) -> int:
    """In a transaction. Says how many conversations that were."""
    return connection.execute("DELETE FROM conversation WHERE user = ?", (user.encode(),)).rowcount


def empty_log(connection: sqlite3.Connection, path: Path) -> None:
    """Bring all into the file, and cut the log to nothing. Raises StoreLockedError when somebody reads for too long."""
    deadline = time.monotonic() + _READER_TIMEOUT
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            raise StoreLockedError(
                f"all of it was deleted from {path}, but another program has been reading there for more than "
                f"{_READER_TIMEOUT:.0f} s, and until it ends, the log {path.name}-wal keeps the old text: close it "
                "(`fuser` or `lsof` name it), then call forget_user again"
            )
        time.sleep(_LOOK_EVERY)
