"""ConversationLog: the inner side of a Conversation. What is awaited here is on the disk when it returns."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from llmsession.memory.database import damaged
from llmsession.memory.ram_store import RamStore
from llmsession.memory.rows import ConversationRow
from llmsession.memory.store import Store
from llmsession.memory.tree import Change, Tree
from llmsession.memory.turn import Turn, TurnState
from llmsession.types.completion import Completion
from llmsession.types.errors import InvalidMessagesError, StoreError, UsageError
from llmsession.types.message_input import MessageLike, as_message, is_unicode, with_data_urls
from llmsession.types.messages import Message

# Where conversations are kept. Its `guard` is held while what a Conversation knows is changed or read.
Keeper: TypeAlias = Store | RamStore


class ConversationLog:
    """What is known of one conversation, and how it is changed: for Chat and Memory. See `log_of`.

    Several of these, in several processes, may stand for the same conversation: what the others added is seen with each
    call that is awaited. Each may raise StoreError, and ClosedError if the memory was closed.
    """

    __slots__ = ("__weakref__", "_keeper", "_row", "_tree")

    def __init__(self, keeper: Keeper, row: ConversationRow) -> None:
        self._keeper = keeper
        self._row = row
        self._tree: Tree | None = None  # read when it is first looked at: there may be a million of us

    @property
    def id(self) -> int:
        """Its number in the memory, never given to another."""
        return self._row.id

    @property
    def user(self) -> str:
        """Who talks to the model."""
        return self._row.user

    @property
    def channel(self) -> str:
        """Where; empty where there is only one place."""
        return self._row.channel

    @property
    def started(self) -> datetime:
        """Aware, in UTC."""
        return self._row.started

    @property
    def last_update(self) -> datetime:
        """When something was last said. Aware, in UTC; it never goes back."""
        return self._row.last_update

    @property
    def system_prompt(self) -> str | None:
        """As it was given, with `{now}` in it if that was."""
        return self._loaded().system_prompt

    @property
    def rendered_system(self) -> str | None:
        """The system prompt as it was first sent, see `keep_rendered`."""
        rendered = self._loaded().rendered
        return None if rendered is None else rendered[0]

    @property
    def rendered_for(self) -> str | None:
        """The model for which that was."""
        rendered = self._loaded().rendered
        return None if rendered is None else rendered[1]

    @property
    def turns(self) -> list[Turn]:
        """Every turn of the tree, oldest first."""
        with self._keeper.guard:
            return list(self._loaded().turns.values())

    @property
    def path(self) -> list[Turn]:
        """The turns of the active path."""
        with self._keeper.guard:
            tree = self._loaded()
            return tree.path(tree.head)

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if any, and the messages of the active path."""
        with self._keeper.guard:
            tree = self._loaded()
            return tree.messages(tree.head)

    @property
    def summary(self) -> Turn | None:
        """The newest summary of what was said on the active path."""
        with self._keeper.guard:
            return self._loaded().summary()

    def path_to(self, turn_id: int) -> list[Turn]:
        """The turns from the first one to this one, wherever the active path goes."""
        with self._keeper.guard:
            tree = self._loaded()
            return tree.path(tree.turn(turn_id).id)

    def find(self, key: str) -> Turn | None:
        """The user's turn that came with that key."""
        with self._keeper.guard:
            return self._loaded().find(key)

    def reply_to(self, turn_id: int) -> Turn | None:
        """What was answered to a turn, partial or whole: the reply on the active path, else the newest."""
        with self._keeper.guard:
            return self._loaded().reply_to(turn_id)

    # For Chat.

    async def refresh(self) -> None:
        """See what other processes, and other objects of this one, have added."""
        self._refresh()

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Hold the conversation for one turn: in order within this process, one process at a time.

        It may be cancelled while it waits. A process that dies lets go. Not twice by the same task.
        """
        async with self._keeper.answering(self._row.id):
            self._refresh()
            yield

    async def ask(
        self, message: MessageLike, *, key: str | None = None, parent: int | UnsetType | None = UNSET
    ) -> Turn:
        """The user's turn, PENDING, at the end of the active path, or after `parent`.

        Where the path ends in a turn that was never answered, the new one stands beside it, and that one is FAILED
        unless it waits for its key to come again. Raises DuplicateKeyError, InvalidMessagesError.
        """
        read = read_message(message)
        if key is not None:
            check_text(key, "a key")
            if not key:
                raise UsageError("a key is the name of an event, and not empty: leave it out where there is none")
        return await self.add(lambda tree: tree.plan_ask(read, now(), key=key, parent=parent))

    async def ask_again(self, turn_id: int) -> Turn:
        """A user's turn that failed, or was cut, is PENDING again.

        The active path ends in it, or in the part of its reply that there is; unless the path went on without it: then
        that stays, and `path_to` gives what leads to this turn.
        """
        await self.change(lambda tree: tree.plan_ask_again(turn_id))
        with self._keeper.guard:
            return self._loaded().turn(turn_id)

    async def save_reply(
        self,
        asked: int,
        completion: Completion,
        state: TurnState,
        *,
        reply: int | None = None,
        tokens: int | None = None,
        asked_tokens: int | None = None,
    ) -> Turn:
        """What a model said to the turn `asked`: a new reply, or `reply` as it is now. One commit.

        PENDING is a checkpoint: more will come. COMPLETE and INTERRUPTED make the user's turn COMPLETE, unless the
        reply calls a tool; FAILED makes it FAILED. The active path ends in the reply, unless it went on without it.
        """
        if reply is None:
            return await self.add(
                lambda tree: tree.plan_reply(
                    asked, completion, state, now(), reply_id=None, tokens=tokens, asked_tokens=asked_tokens
                )
            )
        await self.change(
            lambda tree: tree.plan_reply(
                asked, completion, state, now(), reply_id=reply, tokens=tokens, asked_tokens=asked_tokens
            )
        )
        with self._keeper.guard:
            return self._loaded().turn(reply)

    async def fail(self, asked: int) -> None:
        """Nothing was said to it: it is FAILED, and the active path ends before it."""
        await self.change(lambda tree: tree.plan_fail(asked))

    async def leave_out(self, turn_ids: Iterable[int], summary: Completion | str | None = None) -> Turn | None:
        """These turns are no longer sent; the summary, if any, stands for them. One commit. Returns its turn."""
        ids = list(turn_ids)
        new_id = await self.change(lambda tree: tree.plan_leave_out(ids, summary, now()))
        with self._keeper.guard:
            return None if new_id is None else self._loaded().turn(new_id)

    async def keep_tokens(self, counts: Mapping[int, int]) -> None:
        """What each turn adds to the prompt, by its id."""
        await self.change(lambda tree: tree.plan_tokens(counts))

    async def keep_rendered(self, text: str, model: str) -> None:
        """The system prompt as that model is told it, from now on."""
        await self.change(
            lambda tree: Change(
                rendered=UNSET if tree.rendered == (text, model) else (text, model),
                is_use=False,
            )
        )

    async def cache_key(self, folder: Path) -> str | None:
        """The name under which an engine may keep in that folder what it has read; None if no memory keeps us.

        It is drawn once; the files go when the conversation is forgotten.
        """
        return await self._keeper.cache_key(self._row.id, folder)

    # For Memory.

    def is_older_than(self, row: ConversationRow) -> bool:
        """Whether more is known there than here."""
        return self._row.version != row.version

    def drop(self) -> None:
        """It was forgotten: so nothing of it stays here."""
        self._tree = Tree()

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON would hold it."""
        with self._keeper.guard:
            tree = self._refresh()
            rendered, model = tree.rendered or (None, None)
            facts = {
                "user": self.user,
                "channel": self.channel,
                "started": self.started,
                "last_update": self.last_update,
                "system_prompt": tree.system_prompt,
                "rendered_system": rendered,
                "rendered_for": model,
                "head": tree.head,
                "turns": list(tree.turns.values()),
            }
        plain: dict[str, Any] = msgspec.to_builtins(facts)
        return plain

    def reload(self) -> None:
        """See what was added."""
        self._refresh()

    # Changing it.

    async def add(self, plan: Callable[[Tree], Change]) -> Turn:
        """Make a change that adds a turn, and return that turn."""
        new_id = await self.change(plan)
        assert new_id is not None  # noqa: S101 - the plans that come here have a new turn
        with self._keeper.guard:
            return self._loaded().turn(new_id)

    async def change(self, plan: Callable[[Tree], Change]) -> int | None:
        """Plan on what is known, and again where somebody else was faster. Returns the id of the new turn, if any."""
        while True:
            with self._keeper.guard:
                tree = self._loaded()
                row = copy(self._row)
                try:
                    change = plan(tree)
                except UsageError:
                    if self._is_news(row):
                        continue
                    raise
                if change.is_empty:
                    if self._is_news(row):
                        continue
                    return None
            # A clock that was set back does not make a conversation older than it was.
            last_update = max(row.last_update, now()) if change.is_use else row.last_update
            applied = await self._keeper.apply(row, change, last_update)
            with self._keeper.guard:
                if applied is None:
                    self._refresh()
                    continue
                if self._row.version == row.version:
                    tree.take(change, applied.new_id)
                    self._row.version = applied.version
                    self._row.last_update = applied.last_update
                elif self._row.version < applied.version:  # no: somebody looked meanwhile, but not far enough
                    self._refresh()
            return applied.new_id

    def _is_news(self, row: ConversationRow) -> bool:
        """Whether more is known now than that."""
        self._refresh()
        return self._row.version != row.version

    def _loaded(self) -> Tree:
        """What is known of it, read if it was not yet."""
        return self._tree if self._tree is not None else self._refresh()

    def _refresh(self) -> Tree:
        with self._keeper.guard:
            version = self._keeper.look(self._row.id)
            tree = self._tree
            if version is not None and tree is not None and version == self._row.version:
                return tree
            found = self._keeper.load(self._row.id, since=0 if tree is None else self._row.version)
            if found is None:
                self._tree = Tree()
                raise StoreError(
                    f"the conversation of {self.user!r} in the channel {self.channel!r} was forgotten: "
                    "`await memory.get(…)` gives a new one"
                )
            row, turns = found
            tree = tree or Tree()
            for turn in turns:
                tree.put(turn)
            tree.head, tree.system_prompt, tree.rendered = row.head, row.system_prompt, row.rendered
            if (missing := tree.missing(turns)) is not None:
                raise damaged(self._keeper.path, f"turn {missing} of conversation {row.id} is not there")
            self._row, self._tree = row, tree
            return tree


def now() -> datetime:
    """The time, aware and in UTC."""
    return datetime.now(UTC)


def read_message(message: MessageLike) -> Message:
    """With its images read: what is kept does not depend on files."""
    return with_data_urls([as_message(message)])[0]


def check_text(text: object, what: str) -> None:
    """Raise UsageError or InvalidMessagesError unless it is a text that can be stored."""
    if not isinstance(text, str):
        raise UsageError(f"{what} is a str, not {type(text).__name__}")
    if not is_unicode(text):
        raise InvalidMessagesError(f"{what} holds a lone surrogate, which no UTF-8 text can")


def check_system_prompt(text: str | None) -> str | None:
    """None if it is empty."""
    if text is not None:
        check_text(text, "a system prompt")
    return text or None
