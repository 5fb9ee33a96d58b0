"""Store: the SQL of a memory. Reads are short and run in place; writes go through the writer."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from llmsession.memory.database import connect, connect_reader, damaged, explain
from llmsession.memory.file_guard import FileGuard
from llmsession.memory.go_format import FormatNote
from llmsession.memory.rows import (
    CONVERSATION_COLUMNS,
    TURN_COLUMNS,
    ConversationRow,
    as_blob,
    as_hour,
    as_microseconds,
    read_conversation,
    read_turn,
    write_turn,
)
from llmsession.memory.tree import NEW, Change
from llmsession.memory.turn import Turn
from llmsession.memory.turn_lock import Queues, TurnLocks
from llmsession.memory.writer import Work, Writer
from llmsession.types.errors import ClosedError, StoreError, UsageError

T = TypeVar("T")

_INSERT_TURN = (
    "INSERT INTO turn (parent, role, message, state, created, key, pinned, left_out, summary, tokens, completion, "
    "conversation, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE_TURN = (
    "UPDATE turn SET parent = ?, role = ?, message = ?, state = ?, created = ?, key = ?, pinned = ?, left_out = ?, "
    "summary = ?, tokens = ?, completion = ?, conversation = ?, version = ? WHERE id = ?"
)


_COPY = "SELECT name FROM copy WHERE conversation = ? AND folder = ?"
# None for a conversation that was forgotten.
_INSERT_COPY = (
    "INSERT OR IGNORE INTO copy (name, conversation, folder) SELECT ?1, id, ?3 FROM conversation WHERE id = ?2"
)

# What the next row will be numbered (https://www.sqlite.org/autoinc.html).
_NEXT_TURN = "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'turn'"


class Applied(msgspec.Struct, frozen=True):
    """The result of a change."""

    version: int
    last_update: datetime
    new_id: int | None


class Store:
    """One database, in a file or in RAM (`path=None`). Any thread and any event loop may use it."""

    def __init__(self, path: Path | None) -> None:
        """Open the database. This may take a moment: another process's log may have to be read."""
        self.path = path
        # Whatever is read and whatever a Conversation holds changes under it; nobody waits in it.
        self.guard = threading.RLock()
        self._pid = os.getpid()
        self._turns: Queues | TurnLocks = Queues()
        self._writer: Writer | None = None
        self._is_closed = True
        self._reader = connect(path)
        if path is not None:
            self._share(path)
        self._is_closed = False
        _STORES.add(self)

    def _share(self, path: Path) -> None:
        """Open a second connection for reading, and leave the first to the writer's thread."""
        with contextlib.ExitStack() as undo:
            writing = self._reader
            undo.callback(writing.close)
            self._turns = locks = TurnLocks.open(path)
            undo.callback(locks.close)
            try:
                self._reader = connect_reader(path)
                undo.callback(self._reader.close)
                self._reader.execute("SELECT count(*) FROM sqlite_master").fetchall()  # from now on its log is there
            except sqlite3.Error as error:
                raise explain(error, path) from error
            self._writer = Writer(writing, FileGuard(path))
            undo.pop_all()

    # Reads.

    def look(self, conversation: int) -> int | None:
        """Return the number of changes; None if the conversation was forgotten."""
        rows = self.read("SELECT version FROM conversation WHERE id = ?", (conversation,))
        return rows[0][0] if rows else None

    def find(self, user: str, channel: str) -> ConversationRow | None:
        """Return the conversation's row by user and channel."""
        sql = f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE user = ? AND channel = ?"
        rows = self.read(sql, (user.encode(), channel.encode()))
        return read_conversation(rows[0]) if rows else None

    def load(self, conversation: int, *, since: int) -> tuple[ConversationRow, list[Turn]] | None:
        """Return what changed after the version; None if the conversation was forgotten."""
        with self.guard:
            rows = self.read(f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE id = ?", (conversation,))
            if not rows:
                return None
            # What is changed between the two is read twice: now, and with the next look.
            turns = self.read(
                f"SELECT {TURN_COLUMNS} FROM turn WHERE conversation = ? AND version > ? ORDER BY id",
                (conversation, since),
            )
            try:
                return read_conversation(rows[0]), [read_turn(turn) for turn in turns]
            except ValueError as error:
                raise damaged(self.path, f"conversation {conversation}: {error}") from error

    def read(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        """Return the rows. Raises StoreError and ClosedError."""
        with self.guard:
            self._check_open()
            try:
                return self._reader.execute(sql, tuple(values)).fetchall()
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    async def read_apart(self, sql: str) -> list[Any]:
        """Return the rows of a long query, run in a thread on its own connection."""
        if self.path is None:
            return self.read(sql)
        self._check_open()
        return await anyio.to_thread.run_sync(_read_apart, self.path, sql)

    # Writes.

    async def apply(self, row: ConversationRow, change: Change, last_update: datetime) -> Applied | None:
        """Apply a change durably; return None if the row is out of date, so that the change must be planned again."""
        return await self.write(lambda connection: apply_change(connection, row, change, last_update))

    async def write(self, work: Work[T], *, alone: bool = False) -> T:
        """Run `work` in a transaction and return when it is durable. With `alone`, run it outside any transaction."""
        if self._writer is not None:
            self._check_open()
            return await self._writer.do(work, alone=alone)
        with self.guard:
            self._check_open()
            try:
                if alone:
                    return work(self._reader)
                with self._reader:
                    self._reader.execute("BEGIN")
                    return work(self._reader)
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    async def cache_key(self, conversation: int, folder: Path) -> str | None:
        """Return the file name for an engine's cache of the conversation in that folder; None in RAM.

        It is forgotten with the conversation.
        """
        if self.path is None:
            return None
        key = (conversation, os.fsencode(folder))
        if not (rows := self.read(_COPY, key)):
            name = secrets.token_hex(16).encode()
            await self.write(lambda connection: connection.execute(_INSERT_COPY, (name, *key)))
            rows = self.read(_COPY, key)
        return rows[0][0].decode() if rows else None

    # One answer at a time.

    def answering(self, conversation: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait for the conversation's lock, then hold it."""
        return self._turns.turn(conversation)

    # The end.

    async def aclose(self) -> None:
        """Write what waits and close."""
        if self._pid != os.getpid():
            return
        self._close_reader()
        if self._writer is not None:
            await self._writer.aclose()

    def __del__(self) -> None:
        # Neither the memory nor a conversation of it is held any more: nobody waits.
        if self._pid != os.getpid():
            return
        self._close_reader()
        if self._writer is not None:
            self._writer.stop()

    def _close_reader(self) -> None:
        with self.guard:
            if not self._is_closed:
                self._is_closed = True
                self._reader.close()
                if isinstance(self._turns, TurnLocks):
                    self._turns.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the memory was closed: open it again")
        if self._pid != os.getpid():
            raise StoreError(
                "this memory was opened before the process was forked, and belongs to the original: open one here"
            )


def _read_apart(path: Path, sql: str) -> list[Any]:
    try:
        with contextlib.closing(connect_reader(path)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise explain(error, path) from error


def apply_change(
    connection: sqlite3.Connection, row: ConversationRow, change: Change, last_update: datetime
) -> Applied | None:
    """Apply a change within a transaction. The first statement decides; the rest follow."""
    version = row.version + 1
    values: dict[str, Any] = {"version": version}
    if last_update != row.last_update:
        moment = as_microseconds(last_update)
        values |= {"last_update": moment, "last_hour": as_hour(moment)}
    if change.system_prompt is not UNSET:
        values["system_prompt"] = as_blob(change.system_prompt)
    if change.rendered is not UNSET:
        text, model = change.rendered or (None, None)
        values |= {"rendered_system": as_blob(text), "rendered_for": as_blob(model)}
    columns = ", ".join(f"{name} = ?" for name in values)
    if change.head == NEW:
        columns += f", head = ({_NEXT_TURN})"
    elif change.head is not UNSET:
        columns += ", head = ?"
        values["head"] = change.head
    done = connection.execute(
        f"UPDATE conversation SET {columns} WHERE id = ? AND version = ?",
        (*values.values(), row.id, row.version),
    )
    if done.rowcount == 0:
        return None
    new_id = None
    if change.new is not None:
        new_id = connection.execute(_INSERT_TURN, (*write_turn(change.new), row.id, version)).lastrowid
    for turn in change.changed:
        connection.execute(_UPDATE_TURN, (*write_turn(turn), row.id, version, turn.id))
    return Applied(version, last_update, new_id)


def check_not_there(connection: sqlite3.Connection, told: FormatNote) -> None:
    """Raise UsageError if the conversation already has turns."""
    found = connection.execute(
        "SELECT 1 FROM conversation JOIN turn ON turn.conversation = conversation.id WHERE user = ? AND channel = ?",
        (told.user.encode(), told.channel.encode()),
    ).fetchone()
    if found is not None:
        raise UsageError(
            f"there is a conversation of {told.user!r} in the channel {told.channel!r} already: nothing was loaded; "
            "load into an empty memory, or forget that user first"
        )


def insert_told(connection: sqlite3.Connection, told: FormatNote) -> None:
    """Insert a whole conversation, replacing an empty one."""
    names = (told.user.encode(), told.channel.encode())
    connection.execute("DELETE FROM conversation WHERE user = ? AND channel = ?", names)
    last_update = as_microseconds(told.last_update)
    moments = (as_microseconds(told.started), last_update, as_hour(last_update))
    number = connection.execute(
        "INSERT INTO conversation (user, channel, started, last_update, last_hour, version, system_prompt) "
        "VALUES (?, ?, ?, ?, ?, 1, ?)",
        (*names, *moments, as_blob(told.system_prompt)),
    ).lastrowid
    ids: dict[int | None, int | None] = {None: None}
    for turn in told.turns:
        placed = replace(turn, parent=ids[turn.parent])
        ids[turn.id] = connection.execute(_INSERT_TURN, (*write_turn(placed), number, 1)).lastrowid
    connection.execute("UPDATE conversation SET head = ? WHERE id = ?", (ids[told.head], number))


# Connections must not be used, nor closed, in a forked copy of the process (https://www.sqlite.org/howtocorrupt.html,
# 2.6): there they are kept until it ends.
_STORES: weakref.WeakSet[Store] = weakref.WeakSet()
_NOT_CLOSED: list[Any] = []


def _after_fork() -> None:
    for store in list(_STORES):
        _NOT_CLOSED.append(vars(store).copy())
        store.guard = threading.RLock()  # a thread that is not here may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
