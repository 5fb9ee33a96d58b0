"""TurnRecord: stores a user's turn and its reply in the conversation, while this call has the turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import anyio

from llmsession.chat.broadcast import Broadcast, begin_running, end_running
from llmsession.memory.conversation import Conversation, log_of
from llmsession.memory.turn import Turn, TurnState
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import DuplicateKeyError, StoreError, UsageError
from llmsession.types.messages import Role

if TYPE_CHECKING:
    from llmsession.types.messages import Message

# Seconds. A commit takes milliseconds, but another process may hold the lock for as long as SQLite waits for it (30 s).
SAVED_WITHIN = 35.0


class TurnRecord:
    """One user's turn and its reply, as they are stored.

    `message`: None if the last turn is answered again. `begun`: the stored part of a reply that ended early.
    """

    def __init__(self, conversation: Conversation, message: Message | None, key: str | None) -> None:
        self.broadcast: Broadcast | None = None
        self.begun: Completion | None = None
        self._conversation = conversation
        self._log = log_of(conversation)
        self._message = message
        self._key = key
        self._lock: AbstractAsyncContextManager[None] | None = None
        self._asked: Turn | None = None
        self._reply: Turn | None = None

    @property
    def path(self) -> list[Turn]:
        """The turns from the first to the one that is to be answered."""
        return self._log.path_to(self._found.id)

    @property
    def _found(self) -> Turn:
        assert self._asked is not None  # noqa: S101 - set before anything is answered
        return self._asked

    def check_same(self, message: Message) -> None:
        """Raise DuplicateKeyError if the key was used with another message before."""
        if self._message != message:
            raise DuplicateKeyError(
                f"the key {self._key!r} was given before, with another text: a key is for one event",
                key=self._key or "",
            )

    async def take_turn(self) -> Completion | None:
        """Wait until no other call, in any process, is answering a turn of this conversation.

        Returns the stored reply to the key if it has ended. Raises DuplicateKeyError.
        """
        lock = self._log.answering()
        await lock.__aenter__()
        self._lock = lock
        asked = self._log.find(self._key) if self._key is not None else None
        if asked is None:
            return None
        self.check_same(asked.message)
        reply = self._log.reply_to(asked.id)
        if reply is not None and reply.completion is not None:
            if reply.state not in (TurnState.PENDING, TurnState.FAILED):
                return reply.completion
            self._reply, self.begun = reply, reply.completion
        self._asked = asked
        return None

    async def begin(self) -> None:
        """Save the user's turn, before the model is prompted."""
        conversation = self._conversation
        if self._asked is not None:
            asked = await self._log.ask_again(self._asked.id)
        elif self._message is None:
            asked = find_retry(conversation)
            if asked.state is TurnState.FAILED:
                asked = await self._log.ask_again(asked.id)
        elif self._message.role is Role.TOOL:
            asked = await conversation.add(self._message)
        else:
            asked = await self._log.ask(self._message, key=self._key)
        self._asked = asked
        if self._key is not None:
            self.broadcast = begin_running(conversation, self._key, asked.message)

    async def checkpoint(self, partial: Completion) -> None:
        """Save the reply so far, so that a kill does not lose it."""
        await self._save(partial, TurnState.PENDING, None)

    async def complete(self, completion: Completion, sent: Sequence[Message]) -> None:
        """Save the reply, which is whole or was interrupted. `sent` are the messages that it answers."""
        if self._asked is None:
            return
        if completion.stop_reason is not StopReason.INTERRUPTED:
            await self._save(completion, TurnState.COMPLETE, self._count_asked(completion, sent))
        elif completion.text:
            await self._save(completion, TurnState.INTERRUPTED, None)
        else:
            await self._abandon()

    async def interrupt(self, partial: Completion, state: TurnState, *, for_good: bool) -> None:
        """Save a reply that ended early. With a key, the turn waits for that key to come again.

        `for_good`: the turn can never be answered, so it does not wait.
        """
        if self._asked is None:
            return
        waits = self._key is not None and not for_good
        if partial.text:
            await self._save(partial, TurnState.PENDING if waits else state, None)
        elif not waits:
            await self._abandon()

    async def release(self, completion: Completion | None) -> None:
        """Let the next turn begin. Calls that joined this one get the completion, or take over if there is none."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if self.broadcast is not None and self._key is not None:
            end_running(self._conversation, self._key, completion)
        with anyio.CancelScope(shield=True):  # releasing the lock does not wait
            await lock.__aexit__(None, None, None)

    async def _save(self, completion: Completion, state: TurnState, asked_tokens: int | None) -> None:
        """Save the reply, even if the caller is cancelled meanwhile."""
        with self._unless_forgotten(), anyio.move_on_after(SAVED_WITHIN, shield=True):
            self._reply = await self._log.save_reply(
                self._found.id,
                completion,
                state,
                reply=self._reply.id if self._reply is not None else None,
                tokens=completion.usage.completion_tokens or None,
                asked_tokens=asked_tokens,
            )

    @contextlib.contextmanager
    def _unless_forgotten(self) -> Iterator[None]:
        """Raise StoreError if the turn that is answered was deleted meanwhile."""
        try:
            yield
        except UsageError as error:
            raise StoreError(
                "the conversation was forgotten while its reply was generated, so the reply is not stored"
            ) from error

    async def _abandon(self) -> None:
        """Mark the user's turn as failed, unless it has an earlier reply: then it keeps that."""
        with self._unless_forgotten():
            has_reply = self._log.reply_to(self._found.id) is not None
        if not has_reply:
            with self._unless_forgotten(), anyio.move_on_after(SAVED_WITHIN, shield=True):
                await self._log.fail(self._found.id)

    def _count_asked(self, completion: Completion, sent: Sequence[Message]) -> int | None:
        """Return how many tokens the user's turn adds to the prompt, by the engine's count.

        None unless all turns before it were sent and counted.
        """
        with self._unless_forgotten():
            path = self.path
        before = path[-2].completion if len(path) > 1 else None
        said = [message for message in sent if message.role is not Role.SYSTEM]
        is_known = completion.usage.prompt_tokens and (len(path) == 1 or before is not None)
        if not is_known or said != [turn.message for turn in path]:
            return None
        return max(0, completion.usage.prompt_tokens - (before.usage.total_tokens if before is not None else 0))


def find_retry(conversation: Conversation) -> Turn:
    """Return the user's turn to answer again: one that got no reply, or else the last one on the path.

    Raises UsageError if there is no such turn.
    """
    path = conversation.path
    end = path[-1].id if path else None
    failed = [turn for turn in conversation.turns if turn.parent == end and turn.state is TurnState.FAILED]
    if failed and failed[-1].message.role is not Role.ASSISTANT:
        return failed[-1]
    for turn in reversed(path):
        if turn.message.role in (Role.USER, Role.TOOL):
            return turn
    raise UsageError("there is nothing to answer again: nothing was said yet")
