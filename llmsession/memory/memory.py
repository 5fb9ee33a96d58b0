"""Memory: every user's conversations, in one file or in RAM."""

from __future__ import annotations

import os
import sqlite3
import warnings
import weakref
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio.lowlevel
import anyio.to_thread
import msgspec

from llmsession.memory.conversation import Conversation, log_of
from llmsession.memory.erase import delete_conversations, erase_traces
from llmsession.memory.go_format import FormatNote, read_json, write_json
from llmsession.memory.log import ConversationLog, check_system_prompt
from llmsession.memory.rows import (
    CONVERSATION_COLUMNS,
    ConversationRow,
    as_blob,
    as_hour,
    as_microseconds,
    read_conversation,
)
from llmsession.memory.store import Store, check_not_there, insert_told
from llmsession.memory.tree import Tree
from llmsession.memory.turn import Turn
from llmsession.types.errors import ConfigError, UsageError
from llmsession.types.message_input import is_unicode

# Of a million conversations, so many are made before others may run.
_AT_ONCE = 1000


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """A turn to continue after a restart: it has no reply, or its reply was not marked as delivered."""

    conversation: Conversation
    turn: Turn
    reply: Turn | None


class Memory:
    """Stores conversations by user and channel. Open it with `Memory.open`; close it with `async with` or `aclose()`.

    Any event loop may use it, and several processes may share a file. Without a path it is kept in RAM.
    """

    def __init__(self, store: Store, max_age: timedelta | None) -> None:
        """Use `Memory.open`."""
        self._store = store
        self._max_age = max_age
        self._held: weakref.WeakValueDictionary[int, Conversation] = weakref.WeakValueDictionary()
        self._is_closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, max_age: float | timedelta | None = None) -> Opening:
        """`async with Memory.open("bot.db") as memory:` or `memory = await Memory.open("bot.db")`.

        Conversations unused for `max_age` (seconds, or a timedelta) are forgotten, now and with each `forget()`. Raises
        StoreError if the file is not a memory, StoreVersionError if a newer llmsession wrote it, and StoreLockedError.
        """
        return Opening(_check_path(path), _check_age(max_age))

    def __repr__(self) -> str:
        return f"<Memory {self.path or 'in RAM'}>"

    @property
    def path(self) -> Path | None:
        """The file; None in RAM."""
        return self._store.path

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._is_closed and self.path is not None:
            warnings.warn(f"{self!r} was never closed: use `async with`", ResourceWarning, stacklevel=1, source=self)

    async def aclose(self) -> None:
        """Write what waits and close the file. Conversations stay readable; changes raise ClosedError."""
        self._is_closed = True
        with anyio.CancelScope(shield=True):  # bounded by the writer: see Writer.aclose
            await self._store.aclose()

    async def get(self, user: str, channel: str = "", *, system_prompt: str | None = None) -> Conversation:
        """The conversation of `user` in `channel`, or a new one with the system prompt.

        While the program holds a conversation, this returns the same object. A conversation that was not used for
        `max_age` is forgotten and a new one returned. Raises UsageError for a name or prompt that cannot be stored,
        StoreError if the file cannot be read or written, ClosedError.
        """
        _check_name(user, "user")
        _check_name(channel, "channel")
        prompt = check_system_prompt(system_prompt)
        row = self._store.find(user, channel)
        now = _now()
        if row is None or self._is_old(row, now):
            oldest = self._oldest(now)
            names = (user.encode(), channel.encode())
            row = await self._store.write(lambda connection: _find_or_create(connection, names, prompt, now, oldest))
        return self._adopt(row)

    async def conversations(self, user: str | None = None) -> list[Conversation]:
        """All conversations, or one user's, last used first. Turns are read on first access.

        Raises UsageError, StoreError and ClosedError.
        """
        select, order = f"SELECT {CONVERSATION_COLUMNS} FROM conversation", "ORDER BY last_update DESC, id DESC"
        if user is not None:
            _check_name(user, "user")
            rows = self._store.read(f"{select} WHERE user = ? {order}", (user.encode(),))
            return [self._adopt(read_conversation(row)) for row in rows]
        found = []
        for index, row in enumerate(await self._store.read_apart(f"{select} {order}")):
            found.append(self._adopt(read_conversation(row)))
            if index % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        return found

    async def forget(self) -> int:
        """Delete the conversations that were not used for `max_age`, and return their number. 0 without a `max_age`.

        Raises StoreError and ClosedError.
        """
        oldest = self._oldest(_now())
        if oldest is None:
            return 0
        old, values = "last_hour <= ? AND last_update < ?", (as_hour(oldest), oldest)
        if not self._store.read(f"SELECT 1 FROM conversation WHERE {old} LIMIT 1", values):
            return 0
        return await self._store.write(lambda connection: delete_conversations(connection, old, values))

    async def forget_user(self, user: str) -> int:
        """Delete everything of this user, and return the number of conversations.

        When it returns, no byte is left in the file, beside it, or in the files in which engines of Chats keep prompts.
        The file is rewritten: that takes as long, and other writers wait. Raises StoreLockedError if another program
        reads for too long, StoreError on a full disk: the data is then deleted, and its traces go with the next call.
        """
        _check_name(user, "user")
        name = (user.encode(),)
        count = await self._store.write(lambda connection: delete_conversations(connection, "user = ?", name))
        with self._store.guard:
            for conversation in list(self._held.values()):
                if conversation.user == user:
                    log_of(conversation).drop()
        if (path := self.path) is not None:
            await self._store.write(lambda connection: erase_traces(connection, path), alone=True)
        return count

    async def export(self, user: str) -> dict[str, Any]:
        """Return all that is stored of a user, as JSON values. Raises UsageError, StoreError and ClosedError."""
        _check_name(user, "user")
        return {
            "user": user,
            "conversations": [log_of(conversation).to_dict() for conversation in await self.conversations(user)],
        }

    async def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write all conversations, each with its active path, in the Go package's format: all or nothing.

        The format has no other branches, keys, states or images; they are left out. Raises StoreError if the file
        cannot be written.
        """
        images = await anyio.to_thread.run_sync(write_json, Path(path).absolute(), self._tell())
        if images:
            warnings.warn(f"{path}: {images} images were not written: this format has none", stacklevel=2)

    async def load_json(self, path: str | os.PathLike[str]) -> int:
        """Import what the Go package saved, all or nothing; return the number of conversations.

        Raises StoreError with the place of the fault, StoreVersionError, and UsageError if a conversation exists
        already.
        """
        told, lists_of_tools = await anyio.to_thread.run_sync(read_json, Path(path).absolute())

        def insert(connection: sqlite3.Connection) -> None:
            for conversation in told:
                check_not_there(connection, conversation)
            for conversation in told:
                insert_told(connection, conversation)

        await self._store.write(insert)
        if lists_of_tools:
            warnings.warn(
                f"{path}: {lists_of_tools} lists of available tools were not kept: tools are given to a Chat",
                stacklevel=2,
            )
        return len(told)

    async def unfinished(self) -> list[Unfinished]:
        """The turns that a restarted bot should continue with, oldest first.

        These are users' turns without a reply (except FAILED ones), and turns with a key whose reply was not marked
        with `mark_delivered`. Raises StoreError and ClosedError.
        """
        rows = await self._store.read_apart(
            f"SELECT turn.id, {', '.join('conversation.' + name for name in CONVERSATION_COLUMNS.split(', '))} "
            "FROM turn INDEXED BY turn_unfinished JOIN conversation ON conversation.id = turn.conversation "
            "WHERE role = 'user' AND (state = 'pending' OR (key IS NOT NULL AND state NOT IN ('delivered', 'failed'))) "
            "ORDER BY turn.id"
        )
        found = []
        for turn_id, *row in rows:
            conversation = self._adopt(read_conversation(row))
            log = log_of(conversation)
            turn = log.path_to(turn_id)[-1]
            found.append(Unfinished(conversation=conversation, turn=turn, reply=log.reply_to(turn_id)))
        return found

    def _tell(self) -> Iterator[FormatNote]:
        for (number,) in self._store.read("SELECT id FROM conversation ORDER BY last_update DESC, id DESC"):
            if (found := self._store.load(number, since=0)) is None:
                continue
            row, turns = found
            yield FormatNote(
                user=row.user,
                channel=row.channel,
                started=row.started,
                last_update=row.last_update,
                system_prompt=row.system_prompt,
                turns=Tree(turns).path(row.head),
                head=row.head,
            )

    def _adopt(self, row: ConversationRow) -> Conversation:
        """Return the object for a row, which may have changed."""
        with self._store.guard:
            held = self._held.get(row.id)
            if held is None:
                self._held[row.id] = held = Conversation(ConversationLog(self._store, row))
            elif log_of(held).is_older_than(row):
                log_of(held).reload()
            return held

    def _oldest(self, now: datetime) -> int | None:
        return None if self._max_age is None else as_microseconds(now - self._max_age)

    def _is_old(self, row: ConversationRow, now: datetime) -> bool:
        return self._max_age is not None and row.last_update < now - self._max_age


class Opening:
    """A memory about to be opened: await it, or enter it."""

    def __init__(self, path: Path | None, max_age: timedelta | None) -> None:
        self._path = path
        self._max_age = max_age
        self._memory: Memory | None = None

    def __await__(self) -> Generator[Any, Any, Memory]:
        return self._open().__await__()

    async def __aenter__(self) -> Memory:
        self._memory = await self._open()
        return self._memory

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._memory is not None:
            await self._memory.aclose()

    async def _open(self) -> Memory:
        if self._path is None:
            return Memory(Store(None), self._max_age)
        memory = Memory(await anyio.to_thread.run_sync(Store, self._path), self._max_age)
        try:
            await memory.forget()
        except BaseException:
            await memory.aclose()
            raise
        return memory


def _now() -> datetime:
    return datetime.now(UTC)


def _find_or_create(
    connection: sqlite3.Connection, names: tuple[bytes, bytes], prompt: str | None, now: datetime, oldest: int | None
) -> ConversationRow:
    moment = as_microseconds(now)
    if oldest is not None:
        delete_conversations(connection, "user = ? AND channel = ? AND last_update < ?", (*names, oldest))
    connection.execute(
        "INSERT OR IGNORE INTO conversation (user, channel, started, last_update, last_hour, version, system_prompt) "
        "VALUES (?, ?, ?, ?, ?, 0, ?)",
        (*names, moment, moment, as_hour(moment), as_blob(prompt)),
    )
    sql = f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE user = ? AND channel = ?"
    return read_conversation(connection.execute(sql, names).fetchone())


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str):
        raise UsageError(f"a {what} is a str, not {type(name).__name__}: str({name!r}) would do")
    if not is_unicode(name):
        raise UsageError(f"the {what} {name!r} holds a lone surrogate, which no UTF-8 text can")


def _check_path(path: str | os.PathLike[str] | None) -> Path | None:
    """Return the path with links resolved, so that all processes use the same files beside it."""
    if path is None or path == ":memory:":
        return None
    if "\0" in os.fspath(path):
        raise ConfigError(f"{path!r} is not a path: it holds a NUL")
    return Path(os.path.realpath(path))


def _check_age(max_age: float | timedelta | None) -> timedelta | None:
    if max_age is None or isinstance(max_age, timedelta):
        age = max_age
    else:
        try:
            age = timedelta(seconds=max_age)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"max_age is a number of seconds or a timedelta, not {max_age!r}") from None
    if age is not None and age <= timedelta(0):
        raise ConfigError(f"max_age is more than 0 seconds, or None to keep everything; not {max_age!r}")
    return age
