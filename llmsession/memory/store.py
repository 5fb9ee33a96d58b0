"""The store: what is asked of the database, in SQL. Reads are short and made in place; writes go through the writer."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from llmsession.errors import ClosedError, StoreError, UsageError
from llmsession.memory.interchange import Told
from llmsession.memory.rows import (
    CONVERSATION_COLUMNS,
    TURN_COLUMNS,
    ConversationRow,
    as_blob,
    as_microseconds,
    as_moment,
    read_conversation,
    read_turn,
    write_turn,
)
from llmsession.memory.sqlite import connect, connect_reader, explain
from llmsession.memory.tree import NEW, Change
from llmsession.memory.turn import Turn
from llmsession.memory.turn_lock import Queues, TurnLocks
from llmsession.memory.watched import Watched
from llmsession.memory.writer import Work, Writer

T = TypeVar("T")

_INSERT_TURN = (
    "INSERT INTO turn (parent, role, message, state, created, key, pinned, left_out, summary, tokens, completion, "
    "conversation, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE_TURN = (
    "UPDATE turn SET parent = ?, role = ?, message = ?, state = ?, created = ?, key = ?, pinned = ?, left_out = ?, "
    "summary = ?, tokens = ?, completion = ?, conversation = ?, version = ? WHERE id = ?"
)


class Applied(msgspec.Struct, frozen=True):
    """What came of a change."""

    version: int
    last_update: datetime
    new_id: int | None


class Store:
    """One database, in a file or in RAM (`path=None`). Any thread and any event loop may use it."""

    def __init__(self, path: Path | None) -> None:
        """Open it, which may take a moment: a log of another process may have to be read."""
        self.path = path
        # Whatever is read and whatever a Conversation holds changes under it; nobody waits in it.
        self.guard = threading.RLock()
        self._pid = os.getpid()
        self._is_closed = False
        self._turns: Queues | TurnLocks = Queues()
        self._writer: Writer | None = None
        self._reader = connect(path)
        if path is not None:
            self._share(path)
        _STORES.add(self)

    def _share(self, path: Path) -> None:
        """Read on a connection of its own, and write in a thread."""
        with contextlib.ExitStack() as undo:
            writing = self._reader
            undo.callback(writing.close)
            self._turns = locks = TurnLocks.open(path)
            undo.callback(locks.close)
            try:
                self._reader = connect_reader(path)
                undo.callback(self._reader.close)
                self._reader.execute("SELECT count(*) FROM chore").fetchall()  # from now on its log is there
            except sqlite3.Error as error:
                raise explain(error, path) from error
            self._writer = Writer(writing, Watched(path))
            undo.pop_all()

    # Reads.

    def look(self, conversation: int) -> int | None:
        """How often it was changed; None where it was forgotten."""
        rows = self.read("SELECT version FROM conversation WHERE id = ?", (conversation,))
        return rows[0][0] if rows else None

    def find(self, user: str, channel: str) -> ConversationRow | None:
        """By its names."""
        sql = f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE user = ? AND channel = ?"  # noqa: S608
        rows = self.read(sql, (user.encode(), channel.encode()))
        return read_conversation(rows[0]) if rows else None

    def load(self, conversation: int, *, since: int) -> tuple[ConversationRow, list[Turn]] | None:
        """All of it that was changed after that version; None where it was forgotten."""
        with self.guard:
            rows = self.read(f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE id = ?", (conversation,))  # noqa: S608
            if not rows:
                return None
            row = read_conversation(rows[0])
            # No later than the row: what comes in between is seen the next time.
            turns = self.read(
                f"SELECT {TURN_COLUMNS} FROM turn WHERE conversation = ? AND version > ? ORDER BY id",  # noqa: S608
                (conversation, since),
            )
            return row, [read_turn(turn) for turn in turns]

    def read(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        """The rows. Raises StoreError and its kinds, ClosedError."""
        with self.guard:
            self._check_open()
            try:
                return self._reader.execute(sql, tuple(values)).fetchall()
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    # Writes.

    async def apply(self, conversation: int, version: int, change: Change, moment: datetime) -> Applied | None:
        """The change is on the disk. None where the conversation is no longer at that version: plan it anew."""
        return await self.write(lambda connection: _apply(connection, conversation, version, change, moment))

    async def write(self, work: Work[T], *, alone: bool = False) -> T:
        """Run it in a transaction, and return when that is on the disk; `alone`: outside of any."""
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

    # One answer at a time.

    def answering(self, conversation: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait for one's turn in that conversation, then hold it."""
        return self._turns.turn(conversation)

    # The end.

    async def aclose(self) -> None:
        """When all that waits is written."""
        if self._pid != os.getpid():
            return
        self._close_reader()
        if self._writer is not None:
            await self._writer.aclose()

    def abandon(self) -> None:
        """The same for an owner that is gone: nobody waits."""
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


def _apply(
    connection: sqlite3.Connection, conversation: int, version: int, change: Change, moment: datetime
) -> Applied | None:
    found = connection.execute("SELECT version, last_update FROM conversation WHERE id = ?", (conversation,)).fetchone()
    if found is None or found[0] != version:
        return None
    after = version + 1
    new_id = None
    if change.new is not None:
        new_id = connection.execute(_INSERT_TURN, (*write_turn(change.new), conversation, after)).lastrowid
    for turn in change.changed:
        connection.execute(_UPDATE_TURN, (*write_turn(turn), conversation, after, turn.id))
    values: dict[str, Any] = {"version": after}
    # A clock that was set back does not make a conversation older than it was.
    last_update = max(found[1], as_microseconds(moment)) if change.is_use else found[1]
    if last_update != found[1]:
        values["last_update"] = last_update
    if change.head is not UNSET:
        values["head"] = new_id if change.head == NEW else change.head
    if change.system_prompt is not UNSET:
        values["system_prompt"] = as_blob(change.system_prompt)
    if change.rendered is not UNSET:
        text, model = change.rendered or (None, None)
        values |= {"rendered_system": as_blob(text), "rendered_for": as_blob(model)}
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE conversation SET {columns} WHERE id = ?", (*values.values(), conversation))  # noqa: S608
    return Applied(after, as_moment(last_update), new_id)


def check_not_there(connection: sqlite3.Connection, told: Told) -> None:
    """Raise UsageError where something was said in that conversation already."""
    found = connection.execute(
        "SELECT 1 FROM conversation JOIN turn ON turn.conversation = conversation.id WHERE user = ? AND channel = ?",
        (told.user.encode(), told.channel.encode()),
    ).fetchone()
    if found is not None:
        raise UsageError(
            f"there is a conversation of {told.user!r} in the channel {told.channel!r} already: nothing was loaded; "
            "load into an empty memory, or forget that user first"
        )


def insert_told(connection: sqlite3.Connection, told: Told) -> None:
    """A whole conversation; in place of an empty one."""
    names = (told.user.encode(), told.channel.encode())
    connection.execute("DELETE FROM conversation WHERE user = ? AND channel = ?", names)
    moments = (as_microseconds(told.started), as_microseconds(told.last_update))
    number = connection.execute(
        "INSERT INTO conversation (user, channel, started, last_update, version, system_prompt) "
        "VALUES (?, ?, ?, ?, 1, ?)",
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
