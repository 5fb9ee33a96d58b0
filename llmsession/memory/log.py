"""ConversationLog: the internal side of a Conversation. Changes are durable when the call returns."""

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
    """The state of one conversation and its changes, for Chat and Memory. See `log_of`.

    Several of these, in several processes, may stand for the same conversation: each awaited call sees what the others
    added. Each may raise StoreError, and ClosedError if the memory was closed.
    """

    __slots__ = ("__weakref__", "_keeper", "_row", "_tree")

    def __init__(self, keeper: Keeper, row: ConversationRow) -> None:
        self._keeper = keeper
        self._row = row
        self._tree: Tree | None = None  # read when it is first looked at: there may be a million of us

    @property
    def id(self) -> int:
        """The number in the memory; it is never reused."""
        return self._row.id

    @property
    def user(self) -> str:
        """The user's name."""
        return self._row.user

    @property
    def channel(self) -> str:
        """The channel; empty if there is only one."""
        return self._row.channel

    @property
    def started(self) -> datetime:
        """The time of creation, as an aware datetime in UTC."""
        return self._row.started

    @property
    def last_update(self) -> datetime:
        """The time of the newest turn, as an aware datetime in UTC. It never decreases."""
        return self._row.last_update

    @property
    def system_prompt(self) -> str | None:
        """The system prompt as given, with `{now}` if it has that."""
        return self._loaded().system_prompt

    @property
    def rendered_system(self) -> str | None:
        """The system prompt as first sent, see `keep_rendered`."""
        rendered = self._loaded().rendered
        return None if rendered is None else rendered[0]

    @property
    def rendered_for(self) -> str | None:
        """The model that `rendered_system` was sent to."""
        rendered = self._loaded().rendered
        return None if rendered is None else rendered[1]

    @property
    def turns(self) -> list[Turn]:
        """All turns of the tree, oldest first."""
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
        """The newest summary on the active path."""
        with self._keeper.guard:
            return self._loaded().summary()

    def path_to(self, turn_id: int) -> list[Turn]:
        """Return the turns from the first one to this one, on any path."""
        with self._keeper.guard:
            tree = self._loaded()
            return tree.path(tree.turn(turn_id).id)

    def find(self, key: str) -> Turn | None:
        """Return the user's turn with that key."""
        with self._keeper.guard:
            return self._loaded().find(key)

    def reply_to(self, turn_id: int) -> Turn | None:
        """Return the reply to a turn, partial or whole: the one on the active path, else the newest."""
        with self._keeper.guard:
            return self._loaded().reply_to(turn_id)

    # For Chat.

    async def refresh(self) -> None:
        """Load what other processes and other objects have added."""
        self._refresh()

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Hold the conversation for one turn: in order within this process, one process at a time.

        May be cancelled while it waits. The lock ends with its process. It is not reentrant.
        """
        async with self._keeper.answering(self._row.id):
            self._refresh()
            yield

    async def ask(
        self, message: MessageLike, *, key: str | None = None, parent: int | UnsetType | None = UNSET
    ) -> Turn:
        """Add the user's turn, PENDING, to the end of the active path, or after `parent`.

        If the path ends in an unanswered turn, the new one becomes its sibling, and the old one FAILED unless it waits
        for its key to come again. Raises DuplicateKeyError, InvalidMessagesError.
        """
        read = read_message(message)
        if key is not None:
            check_text(key, "a key")
            if not key:
                raise UsageError("a key is the name of an event, and not empty: leave it out where there is none")
        return await self.add(lambda tree: tree.plan_ask(read, now(), key=key, parent=parent))

    async def ask_again(self, turn_id: int) -> Turn:
        """Make a failed or interrupted user's turn PENDING again.

        The active path ends in it, or in its partial reply. If the path continued without the turn, it stays as it is,
        and `path_to` gives the messages that lead to this turn.
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
        """Store the reply to the turn `asked`, in one commit: a new turn, or a new state of `reply`.

        PENDING is a checkpoint: more will come. COMPLETE and INTERRUPTED make the user's turn COMPLETE, unless the
        reply calls a tool; FAILED makes it FAILED. The active path ends in the reply, unless it continued without the
        turn.
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
        """Mark the turn as FAILED, without a reply; the active path ends before it."""
        await self.change(lambda tree: tree.plan_fail(asked))

    async def leave_out(self, turn_ids: Iterable[int], summary: Completion | str | None = None) -> Turn | None:
        """Stop sending these turns, in one commit; a summary, if given, is sent instead. Returns its turn."""
        ids = list(turn_ids)
        new_id = await self.change(lambda tree: tree.plan_leave_out(ids, summary, now()))
        with self._keeper.guard:
            return None if new_id is None else self._loaded().turn(new_id)

    async def keep_tokens(self, counts: Mapping[int, int]) -> None:
        """Store how many tokens each turn adds to the prompt, by turn id."""
        await self.change(lambda tree: tree.plan_tokens(counts))

    async def keep_rendered(self, text: str, model: str) -> None:
        """Store the system prompt as it is sent to that model from now on."""
        await self.change(
            lambda tree: Change(
                rendered=UNSET if tree.rendered == (text, model) else (text, model),
                is_use=False,
            )
        )

    async def cache_key(self, folder: Path) -> str | None:
        """Return the file name for an engine's cache of this conversation in that folder; None without a memory.

        It is drawn once. The files are deleted when the conversation is forgotten.
        """
        return await self._keeper.cache_key(self._row.id, folder)

    # For Memory.

    def is_older_than(self, row: ConversationRow) -> bool:
        """Return whether the row is newer than this object."""
        return self._row.version != row.version

    def drop(self) -> None:
        """Remove all content, after the conversation was forgotten."""
        self._tree = Tree()

    def to_dict(self) -> dict[str, Any]:
        """Return the whole conversation as JSON values."""
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
        """Load what was added."""
        self._refresh()

    # Changing it.

    async def add(self, plan: Callable[[Tree], Change]) -> Turn:
        """Apply a change that adds a turn, and return the turn."""
        new_id = await self.change(plan)
        assert new_id is not None  # noqa: S101 - the plans that come here have a new turn
        with self._keeper.guard:
            return self._loaded().turn(new_id)

    async def change(self, plan: Callable[[Tree], Change]) -> int | None:
        """Plan a change and apply it; plan it again if another writer was faster. Returns the new turn's id, if any."""
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
        """Return whether the conversation was changed since the row was read."""
        self._refresh()
        return self._row.version != row.version

    def _loaded(self) -> Tree:
        """Return the tree, read on first use."""
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
    """Return the current time, as an aware datetime in UTC."""
    return datetime.now(UTC)


def read_message(message: MessageLike) -> Message:
    """Return the message with its images read, so that it does not depend on files."""
    return with_data_urls([as_message(message)])[0]


def check_text(text: object, what: str) -> None:
    """Raise UsageError or InvalidMessagesError unless the text can be stored."""
    if not isinstance(text, str):
        raise UsageError(f"{what} is a str, not {type(text).__name__}")
    if not is_unicode(text):
        raise InvalidMessagesError(f"{what} holds a lone surrogate, which no UTF-8 text can")


def check_system_prompt(text: str | None) -> str | None:
    """Check the system prompt and return it; None if it is empty."""
    if text is not None:
        check_text(text, "a system prompt")
    return text or None
