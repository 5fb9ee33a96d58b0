"""Conversation: a tree of turns with one active path. Changes are durable when the call returns."""

from __future__ import annotations

from copy import copy
from datetime import datetime

from llmsession.memory.log import ConversationLog, check_system_prompt, check_text, now, read_message
from llmsession.memory.ram_store import RamStore
from llmsession.memory.rows import ConversationRow
from llmsession.memory.turn import Turn
from llmsession.types.message_input import MessageLike
from llmsession.types.messages import Message


class Conversation:
    """What one user and a model said in one channel. Made by `Memory.get`, or by `Conversation.in_ram`.

    Several of these, in several processes, may stand for the same conversation: what the others added is seen with each
    call that is awaited.

    Raises: StoreError from each call, and ClosedError if the memory was closed.
    """

    __slots__ = ("__weakref__", "_log")

    def __init__(self, log: ConversationLog) -> None:
        self._log = log

    @classmethod
    def in_ram(cls, system_prompt: str | None = None) -> Conversation:
        """A conversation that no memory keeps. There is nothing to close."""
        moment = now()
        text = check_system_prompt(system_prompt)
        row = ConversationRow(id=1, user="", channel="", started=moment, last_update=moment, system_prompt=text)
        return cls(ConversationLog(RamStore(row), copy(row)))

    def __repr__(self) -> str:
        return f"<Conversation user={self.user!r} channel={self.channel!r}>"

    # Reading it.

    @property
    def id(self) -> int:
        """The number in the memory; it is never reused."""
        return self._log.id

    @property
    def user(self) -> str:
        """The user's name."""
        return self._log.user

    @property
    def channel(self) -> str:
        """The channel; empty if there is only one."""
        return self._log.channel

    @property
    def started(self) -> datetime:
        """The time of creation, as an aware datetime in UTC."""
        return self._log.started

    @property
    def last_update(self) -> datetime:
        """The time of the newest turn, as an aware datetime in UTC. It never decreases."""
        return self._log.last_update

    @property
    def system_prompt(self) -> str | None:
        """The system prompt as it was given, with `{now}` in it if it has that."""
        return self._log.system_prompt

    @property
    def turns(self) -> list[Turn]:
        """All turns of the tree, oldest first."""
        return self._log.turns

    @property
    def path(self) -> list[Turn]:
        """The turns of the active path."""
        return self._log.path

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if any, and the messages of the active path."""
        return self._log.messages

    def as_text(self) -> str:
        """The active path as text for people: who said what, with an empty line between two turns."""
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.messages)

    # Changing it.

    async def add(self, message: MessageLike) -> Turn:
        """Add the next turn of the active path.

        Raises: InvalidMessagesError if it cannot come next, with the index; StoreError.
        """
        read = read_message(message)
        return await self._log.add(lambda tree: tree.plan_add(read, now()))

    async def set_system_prompt(self, text: str | None) -> None:
        """Use this system prompt from the next reply on. The turns stay.

        Raises: UsageError, StoreError.
        """
        prompt = check_system_prompt(text)
        await self._log.change(lambda tree: tree.plan_system_prompt(prompt))

    async def edit(self, turn_id: int, text: str) -> Turn:
        """Add another version of a turn as its sibling, and end the active path there.

        What followed the old version stays in the tree.

        Raises: UsageError, StoreError.
        """
        check_text(text, "the text")
        return await self._log.add(lambda tree: tree.plan_edit(turn_id, text, now()))

    async def pin(self, turn_id: int, pinned: bool = True) -> None:  # noqa: FBT001, FBT002 - `pin(7, False)` reads well
        """Keep the turn in the prompt, however long the conversation becomes.

        Raises: UsageError, StoreError.
        """
        await self._log.change(lambda tree: tree.plan_pin(turn_id, pinned=pinned))

    async def mark_delivered(self, turn_id: int) -> None:
        """Record that the reply, named by its own turn or the user's, has reached the user: it is not `unfinished`.

        Raises: UsageError, StoreError.
        """
        await self._log.change(lambda tree: tree.plan_delivered(turn_id))

    async def branch(self, turn_id: int) -> None:
        """End the active path at that turn; new turns continue from there.

        Raises: UsageError, StoreError.
        """
        await self._log.change(lambda tree: tree.plan_branch(turn_id))

    async def rewind(self, n: int = 1) -> None:
        """Go back n exchanges: the active path ends before the user's turn that began them.

        Raises: UsageError, StoreError.
        """
        await self._log.change(lambda tree: tree.plan_rewind(n))

    async def clear(self) -> None:
        """Start over with the same system prompt. The turns stay in the tree.

        Raises: StoreError.
        """
        await self._log.change(lambda tree: tree.plan_clear())


def log_of(conversation: Conversation) -> ConversationLog:
    """Return the internal side of a conversation, for Chat and Memory."""
    return conversation._log  # noqa: SLF001 - the one way in
