"""Which part of a conversation is sent: the system prompt, pinned exchanges, and as many of the newest as fit.

Cuts are rare and deep, and remove whole exchanges (a tool call stays with its result). So what is left stays the same
for many turns, and so does the engine's cache of it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import msgspec

from llmsession.memory.conversation import Conversation, log_of
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import (
    ContextOverflowError,
    InvalidMessagesError,
    LLMSessionError,
    ProtocolError,
    ServerError,
    UnsupportedFeatureError,
    UsageError,
)
from llmsession.types.message_input import as_messages
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.memory.turn import Turn
    from llmsession.session.session import Session

_log = logging.getLogger("llmsession.chat")

# Takes all messages and the number of tokens that they may use, and returns the messages to send.
Policy: TypeAlias = Callable[[list[Message], int], "list[Message] | Awaitable[list[Message]]"]
Overflow: TypeAlias = Literal["cut", "refuse", "summarize"] | Policy
POLICIES = ("cut", "refuse", "summarize")

# The fraction of the budget that is still used after a cut (DESIGN 6).
_KEPT = 0.75
# Reserved for a reply without max_tokens: this fraction of the context (1/4), at most this many tokens.
_REPLY_PART, _REPLY_MOST = 4, 1024
# Tokens: more than any template puts around a message.
_AROUND = 64
_SUMMARY_PART, _SUMMARY_LEAST = 8, 32
# A model that thinks may use up its tokens before the summary: then it gets so many times as many, once.
_THOUGHT_FACTOR = 8
_SUMMARY_SYSTEM = "You sum up conversations. Keep names, numbers, decisions and open questions."
_SUMMARY_ASK = "Sum up this conversation in a few sentences."
_SUMMARY_QUESTION = "What have we talked about so far?"


class Plan(msgspec.Struct, frozen=True):
    """The messages to send, and those that were left out for this turn because they did not fit."""

    messages: list[Message]
    dropped: tuple[Message, ...] = ()


class Exchange(msgspec.Struct, frozen=True):
    """A user's turn and what followed it: the reply, its tool calls and their results."""

    turns: tuple[Turn, ...]

    @property
    def is_pinned(self) -> bool:
        """Whether one of its turns is pinned: the whole exchange is then kept, so that the order of roles is valid."""
        return any(turn.is_pinned for turn in self.turns)

    @property
    def messages(self) -> list[Message]:
        """The messages of its turns."""
        return [turn.message for turn in self.turns]


def split_exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    """Group turns into exchanges. Each begins with a user's turn, except perhaps the first."""
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if turn.message.role is Role.USER or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return [Exchange(tuple(exchange)) for exchange in exchanges]


class PendingSystemPrompt:
    """The system prompt that a chat was made with. It becomes the conversation's when its messages are first needed."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    async def give_to(self, conversation: Conversation) -> None:
        """Make it the conversation's system prompt, unless that has been done."""
        if self.text is not None:
            await conversation.set_system_prompt(self.text)
            self.text = None


class Budget:
    """Chooses what one chat sends. `history`: how many exchanges before the newest are sent at most."""

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        *,
        given: PendingSystemPrompt,
        history: int | None,
        overflow: Overflow,
        max_tokens: int | None,
    ) -> None:
        self._session = session
        self._conversation = conversation
        self._log = log_of(conversation)
        self._given = given
        self._history = history
        self._overflow = overflow
        self._max_tokens = max_tokens

    async def plan(self, path: Sequence[Turn]) -> Plan:
        """Return what to send so that the last turn of the path is answered.

        Raises ContextOverflowError, with the tokens of the prompt and of the context, if it does not fit and the policy
        is "refuse", nothing more can be left out, or the policy's function chose too much.
        """
        exchanges = self._choose(path)
        messages = self._messages(exchanges)
        context_length = self._context_length()
        if context_length is None or self._surely_fits(path, self._limit(context_length)):
            return Plan(messages)
        limit = self._limit(context_length)
        count = await self._count(messages)
        if count is None or count <= limit:
            return Plan(messages)
        if self._overflow == "refuse":
            raise ContextOverflowError(
                f"the conversation takes {count} tokens, and {_describe(context_length, limit)}: begin a new one, "
                'pin less, or let it be cut with overflow="cut"',
                prompt_tokens=count,
                context_length=context_length,
            )
        if callable(self._overflow):
            return await self._ask_policy(self._overflow, messages, limit, context_length)
        return await self._cut(exchanges, limit, context_length)

    async def plan_less(self, path: Sequence[Turn], error: ContextOverflowError) -> Plan:
        """Return a plan without the older half of the exchanges that can be left out.

        For a server that reported an overflow and cannot count tokens. Raises `error` if the policy does not allow it,
        or nothing can be left out.
        """
        exchanges = self._choose(path)
        droppable = _droppable(exchanges)
        if not droppable or self._overflow == "refuse" or callable(self._overflow):
            raise error
        return await self._leave_out(exchanges, droppable[: (len(droppable) + 1) // 2], limit=None)

    async def so_far(self) -> list[Message]:
        """Return the messages that would precede the next turn. Nothing more is left out while no turn is waiting."""
        await self.render_system()
        return self._messages(self._choose(self._conversation.path, beside=0))

    async def render_system(self) -> None:
        """Fill in `{now}` and `{model}` of the system prompt once per conversation and model, and store the result.

        So the prefix of the conversation's prompts stays the same.
        """
        conversation, model = self._conversation, self._session.model
        await self._given.give_to(conversation)
        text = conversation.system_prompt
        if text and (self._log.rendered_system is None or self._log.rendered_for != model):
            from llmsession.prompts.system_prompt import render_system_prompt

            await self._log.keep_rendered(render_system_prompt(text, model=model), model)

    def _choose(self, path: Sequence[Turn], *, beside: int = 1) -> list[Exchange]:
        """Return the exchanges that are still sent: the newest `beside`, `history` before those, and pinned ones.

        `beside` is 1 if the newest exchange is to be answered, 0 if there is none.
        """
        exchanges = split_exchanges([turn for turn in path if not turn.is_left_out])
        if self._history is None:
            return exchanges
        first = len(exchanges) - beside - self._history
        return [exchange for index, exchange in enumerate(exchanges) if index >= first or exchange.is_pinned]

    def _messages(self, exchanges: Sequence[Exchange], summary: str | None = None) -> list[Message]:
        """Return the messages in the order in which they are sent.

        A summary stands for the oldest ones, as a reply of the model's, which wrote it: it is only text.
        """
        conversation = self._conversation
        system = self._log.rendered_system if conversation.system_prompt else None
        messages = [Message.system(system)] if system else []
        if summary is None and self._log.summary is not None:
            summary = self._log.summary.message.content
        if summary:
            messages += [Message.user(_SUMMARY_QUESTION), Message.assistant(summary)]
        return messages + [message for exchange in exchanges for message in exchange.messages]

    def _context_length(self) -> int | None:
        try:
            return self._session.context_length
        except LLMSessionError:  # a remote server that does not report it
            return None

    def _limit(self, context_length: int) -> int:
        """Return how many tokens may be sent, so that there is room for a reply."""
        if self._max_tokens is None:
            return context_length - min(context_length // _REPLY_PART, _REPLY_MOST)
        return context_length - min(self._max_tokens, context_length // 2)

    def _surely_fits(self, path: Sequence[Turn], limit: int) -> bool:
        """Whether an upper bound is within the limit.

        The bound is the token count of each turn if it is known, else one token per byte: no text takes more.
        """
        summary = self._log.summary
        texts = [self._log.rendered_system or "", summary.message.content if summary is not None else ""]
        most = sum(len(text.encode()) + _AROUND for text in texts)
        for turn, reply in zip(path, [*path[1:], None], strict=True):
            if turn.is_left_out:
                continue
            if turn.message.images or turn.message.tool_calls:
                return False
            said = turn.completion or (reply.completion if reply is not None else None)
            if turn.tokens is not None and said is not None and said.model == self._session.model:
                most += turn.tokens
            else:
                most += len(turn.message.content.encode()) + _AROUND
        return most <= limit

    async def _count(self, messages: Sequence[Message]) -> int | None:
        """Return the exact number of tokens, counted by the server; None if it cannot count."""
        try:
            return await self._session.count_tokens(list(messages))
        except UnsupportedFeatureError:
            return None

    async def _cut(self, exchanges: list[Exchange], limit: int, context_length: int) -> Plan:
        """Leave out the fewest of the oldest exchanges such that the rest takes at most `_KEPT` of the limit."""
        droppable = _droppable(exchanges)
        low, high = 0, len(droppable)
        while low < high:
            middle = (low + high) // 2
            left = _without(exchanges, droppable[:middle])
            if await self._is_at_most(self._messages(left), int(limit * _KEPT)):
                high = middle
            else:
                low = middle + 1
        least = self._messages(_without(exchanges, droppable))
        if low == len(droppable) and not await self._is_at_most(least, self._most(context_length)):
            count = await self._count(least) or 0
            pinned = any(exchange.is_pinned for exchange in exchanges[:-1])
            beside = "with the system prompt" + (" and what is pinned" if pinned else "")
            raise ContextOverflowError(
                f"this message takes {count} tokens, {beside}, and {_describe(context_length, limit)}: shorten it, or "
                "open the session with a larger context_length",
                prompt_tokens=count,
                context_length=context_length,
            )
        return await self._leave_out(exchanges, droppable[:low], limit=limit)

    def _most(self, context_length: int) -> int:
        """Return the limit when nothing more can be left out: without `max_tokens`, a short reply is good enough."""
        return self._limit(context_length) if self._max_tokens is not None else context_length - 1

    async def _is_at_most(self, messages: Sequence[Message], most: int) -> bool:
        count = await self._count(messages)
        return count is None or count <= most

    async def _leave_out(self, exchanges: list[Exchange], indices: Sequence[int], limit: int | None) -> Plan:
        """Leave out these exchanges, and record that on disk, so that the next turns send the same messages."""
        if not indices:
            return Plan(self._messages(exchanges))
        gone = [exchanges[index] for index in indices]
        dropped = tuple(message for exchange in gone for message in exchange.messages)
        summary = await self._summarize(gone, limit) if self._overflow == "summarize" else None
        await self._log.leave_out([turn.id for exchange in gone for turn in exchange.turns], summary)
        left = self._messages(_without(exchanges, indices), summary.text if summary is not None else None)
        return Plan(left, dropped)

    async def _summarize(self, gone: Sequence[Exchange], limit: int | None) -> Completion | None:
        """Summarize the exchanges, and the earlier summary, in the model's own words; None if that fails.

        Older messages are skipped if there are more than the model can read at once.
        """
        transcript = [message for exchange in gone for message in exchange.messages]
        earlier = self._log.summary
        if earlier is not None:
            transcript = [Message.user(_SUMMARY_QUESTION), earlier.message, *transcript]
        room = max(_SUMMARY_LEAST, (limit or 0) // _SUMMARY_PART)
        while transcript:
            text = "\n\n".join(f"{message.role}: {message.content}" for message in transcript if message.content)
            ask = [Message.system(_SUMMARY_SYSTEM), Message.user(f"{text}\n\n{_SUMMARY_ASK}")]
            if limit is None or await self._is_at_most(ask, limit - room):
                return await self._ask_for_summary(ask, room)
            transcript = transcript[(len(transcript) + 1) // 2 :]
        return None

    async def _ask_for_summary(self, ask: list[Message], room: int) -> Completion | None:
        """Return the model's summary; None if it gives none: then the messages are left out without one."""
        for most in (room, _THOUGHT_FACTOR * room):
            try:
                reply = await self._session.prompt(ask, max_tokens=most)
            except (ServerError, ProtocolError) as error:
                _log.warning("a conversation is shortened without a summary: %s", error)
                return None
            if reply.text.strip():
                return reply if reply.stop_reason is not StopReason.INTERRUPTED else None
            if not reply.reasoning:
                return None
        return None

    async def _ask_policy(self, policy: Policy, messages: list[Message], limit: int, context_length: int) -> Plan:
        """Let the user's function decide. What it returns is sent unchanged, if it fits.

        Raises InvalidMessagesError, and ContextOverflowError if it does not fit.
        """
        found: Any = policy(list(messages), limit)
        if inspect.isawaitable(found):
            found = await found
        try:
            chosen = as_messages(found)
        except InvalidMessagesError as error:
            raise InvalidMessagesError(f"what overflow= chose: {error}", index=error.index) from error
        count = await self._count(chosen)
        if count is not None and count > limit:
            raise ContextOverflowError(
                f"what overflow= chose takes {count} tokens, and {_describe(context_length, limit)}",
                prompt_tokens=count,
                context_length=context_length,
            )
        return Plan(chosen, tuple(message for message in messages if message not in chosen))


def check_overflow(overflow: object) -> Overflow:
    """Return the policy. Raises UsageError if it is not one."""
    if overflow in POLICIES or callable(overflow):
        return cast("Overflow", overflow)
    raise UsageError(f'overflow is "cut", "refuse", "summarize" or a function, not {overflow!r}')


def _droppable(exchanges: Sequence[Exchange]) -> list[int]:
    """Return the indices of all exchanges but the newest and the pinned ones."""
    return [index for index, exchange in enumerate(exchanges[:-1]) if not exchange.is_pinned]


def _without(exchanges: Sequence[Exchange], indices: Sequence[int]) -> list[Exchange]:
    gone = set(indices)
    return [exchange for index, exchange in enumerate(exchanges) if index not in gone]


def _describe(context_length: int, limit: int) -> str:
    kept = context_length - limit
    return f"{limit} are there for it (a context of {context_length}, {kept} of it kept for the reply)"
