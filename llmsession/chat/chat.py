"""Chat: a session and a conversation. Its ChatStream saves messages before the model is prompted, and as it replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from llmsession.chat.cache_report import CacheReport
from llmsession.chat.context_window import Budget, Overflow, PendingSystemPrompt, check_overflow
from llmsession.chat.stream import ChatStream
from llmsession.memory.conversation import Conversation, log_of
from llmsession.memory.log import check_system_prompt
from llmsession.session.requests.settings import GenerateKeywords
from llmsession.session.session import Session, replies_of
from llmsession.types.completion import Completion
from llmsession.types.errors import InvalidMessagesError, LLMSessionError, UnsupportedFeatureError, UsageError
from llmsession.types.inspection import ChatStats, InspectedPiece, Inspection
from llmsession.types.message_input import MessageLike, as_message, is_unicode, with_data_urls
from llmsession.types.messages import Message, Role
from llmsession.types.sampling import Sampling


class Chat:
    """A conversation with a model. Its turns are answered one at a time, in order.

    Do not send a message inside the block of a stream of the same conversation: it would wait for that stream to end,
    forever.

    `conversation`: None for a new one, which is kept in memory only. `history`: send only that many exchanges before
    the newest. `overflow`: what to do when the context is full: "cut" the oldest exchanges, "refuse" with
    ContextOverflowError, "summarize" in the model's own words, or a function that takes the messages and the number of
    tokens they may use, and returns the messages to send.
    """

    def __init__(
        self,
        session: Session,
        conversation: Conversation | None = None,
        *,
        system_prompt: str | None = None,
        history: int | None = None,
        tools: Sequence[object] = (),
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        overflow: Overflow = "cut",
    ) -> None:
        if history is not None and not _is_number(history, least=0):
            raise UsageError(f"history is a number of exchanges, 0 or more, or None for all of them, not {history!r}")
        if tools:
            raise UnsupportedFeatureError("a chat cannot call tools yet", feature="tools", backend="chat")
        if max_tokens is not None and not _is_number(max_tokens, least=1):
            raise UsageError(f"max_tokens is a number from 1 upwards, or None, not {max_tokens!r}")
        self.session = session
        self.conversation = conversation if conversation is not None else Conversation.in_ram()
        self.history = history
        self.tools = tuple(tools)
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.overflow: Overflow = check_overflow(overflow)
        check_system_prompt(system_prompt)
        self._given = PendingSystemPrompt(system_prompt)  # an empty one removes the conversation's system prompt
        self._watch = CacheReport()

    @property
    def system_prompt(self) -> str | None:
        """The conversation's system prompt; until its messages are first needed, the one that the chat was given."""
        return self._given.text if self._given.text is not None else self.conversation.system_prompt

    @property
    def last(self) -> Completion | None:
        """The last reply of this chat; None before the first."""
        return self._watch.last

    # Sending messages.

    async def send(
        self, text_or_message: MessageLike, *, key: str | None = None, **keywords: Unpack[GenerateKeywords]
    ) -> Completion:
        """Send a message and return the reply. Both are on disk when this returns, if the conversation is kept there.

        A `key`, such as an event's id, makes the call idempotent: the same key again returns the same reply.

        Raises UsageError if the call is wrong, DuplicateKeyError if the key was used with another text before,
        StoreError if the turn cannot be stored, and what `Session.prompt` raises.
        """
        async with self.stream(text_or_message, key=key, **keywords) as stream:
            return await stream.result()

    def stream(
        self, text_or_message: MessageLike, *, key: str | None = None, **keywords: Unpack[GenerateKeywords]
    ) -> ChatStream:
        """Like `send`, as a stream to be used in `async with`. Raises UsageError at once if the call is wrong."""
        if key is not None and not _is_key(key):
            raise UsageError(f"a key is a text that is not empty, such as the id of an event, not {key!r}")
        return self._stream(_read_message(text_or_message), key, keywords)

    async def retry(self, **keywords: Unpack[GenerateKeywords]) -> Completion:
        """Answer the user's last turn again. The earlier reply stays in the conversation's tree, beside the new one.

        Raises UsageError if there is no such turn, and what `send` raises.
        """
        async with self.stream_retry(**keywords) as stream:
            return await stream.result()

    def stream_retry(self, **keywords: Unpack[GenerateKeywords]) -> ChatStream:
        """Like `retry`, as a stream to be used in `async with`. Raises UsageError at once if the call is wrong."""
        return self._stream(None, None, keywords)

    def _stream(self, message: Message | None, key: str | None, keywords: GenerateKeywords) -> ChatStream:
        merged = keywords.copy()
        if self.sampling is not None:
            given = keywords.get("sampling")
            merged["sampling"] = self.sampling.merge(given) if given is not None else self.sampling
        limit = merged.get("max_tokens")
        merged["max_tokens"] = max_tokens = self.max_tokens if limit is None else limit
        replies = replies_of(self.session)
        return ChatStream(
            replies,
            self.conversation,
            self._budget(max_tokens),
            message=message,
            key=key,
            settings=replies.check(merged),
            model=self.session.model,
            note=lambda messages, completion: self._watch.note(self.session, messages, completion),
        )

    def _budget(self, max_tokens: int | None) -> Budget:
        return Budget(
            self.session,
            self.conversation,
            given=self._given,
            history=self.history,
            overflow=self.overflow,
            max_tokens=max_tokens,
        )

    async def set_system_prompt(self, text: str | None) -> None:
        """Replace the conversation's system prompt from the next turn on. Raises UsageError, StoreError."""
        await self.conversation.set_system_prompt(text)
        self._given.text = None

    def with_conversation(self, conversation: Conversation) -> Chat:
        """Return a chat with the same settings for another conversation, with that conversation's system prompt."""
        return Chat(
            self.session,
            conversation,
            history=self.history,
            tools=self.tools,
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            overflow=self.overflow,
        )

    async def interact(self, *, color: bool = True, header: str | None = None, stream: bool = True) -> None:
        """Chat with a person in the terminal until they leave; or answer the lines of a pipe until it ends.

        `header` is printed first; None: facts about the model. Without `stream`, a reply is shown once it is complete.
        Raises LLMSessionError when reading from a pipe; in a terminal, errors are shown and the chat continues.
        """
        from llmsession.terminal.interact import interact

        await interact(self, color=color, header=header, stream=stream)

    # Inspecting the conversation.

    async def ingest(self, text: str = "") -> int:
        """Make the engine evaluate the conversation and `text` now, so that the next turn finds them in its cache.

        Returns the number of tokens that were evaluated. Nothing is added to the conversation. Raises what
        `Session.ingest` raises.
        """
        messages = await self._next_messages()
        if text:
            messages.append(Message.user(text))
        if not messages:
            return 0
        replies = replies_of(self.session)
        folder = replies.kv_folder
        name = await log_of(self.conversation).cache_key(folder) if folder is not None else None
        return await replies.ingest(messages, name, typing=bool(text))

    async def render(self) -> str:
        """Return what would be sent next, with control tokens spelled out: to be read, not to be sent.

        Raises what `Session.inspect_prompt` raises.
        """
        messages = await self._next_messages()
        return "".join(piece.text for piece in await self.session.inspect_prompt(messages)) if messages else ""

    async def stats(self) -> ChatStats:
        """Return how many tokens of the context the conversation uses now. Printing the result shows three lines.

        If the server cannot count tokens, the figures are those of its last reply.
        """
        tokens = await self._count(await self._next_messages())
        try:
            context_length = self.session.context_length
        except LLMSessionError:  # a remote server that does not report it
            context_length = None
        percent = 100 * tokens / context_length if context_length else None
        return ChatStats(
            tokens=tokens,
            context_length=context_length,
            percent=percent,
            messages=len(self.conversation.messages),
        )

    async def inspect(self) -> Inspection:
        """Return the pieces of what would be sent next: role, control or text, number of tokens, whether cached.

        Raises what `Session.inspect_prompt` raises.
        """
        messages = await self._next_messages()
        known = self._watch.cached_tokens(self.session)
        pieces, position = list[InspectedPiece](), 0
        for piece in await self.session.inspect_prompt(messages) if messages else []:
            position += len(piece.token_ids)
            pieces.append(
                InspectedPiece(
                    role=piece.role,
                    is_control=piece.is_control,
                    text=piece.text,
                    tokens=len(piece.token_ids),
                    is_cached=None if known is None else position <= known,
                )
            )
        return Inspection(pieces, missed=self._watch.missed)

    def as_text(self) -> str:
        """Return the conversation as human-readable text."""
        return self.conversation.as_text()

    async def _count(self, messages: list[Message]) -> int:
        if not messages:
            return 0
        try:
            return sum(len(piece.token_ids) for piece in await self.session.inspect_prompt(messages))
        except UnsupportedFeatureError:
            path = self.conversation.path
            if not path or path[-1].completion is None:
                raise
            return path[-1].completion.usage.total_tokens

    async def _next_messages(self) -> list[Message]:
        """Return the messages that would precede the next turn."""
        await log_of(self.conversation).refresh()
        return await self._budget(self.max_tokens).so_far()


def _is_number(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_key(value: object) -> bool:
    return isinstance(value, str) and bool(value) and is_unicode(value)


def _read_message(value: MessageLike) -> Message:
    """Return the message of a user, or the result of a tool. Raises InvalidMessagesError if it is neither, or empty."""
    (message,) = with_data_urls([as_message(value)])
    if message.role not in (Role.USER, Role.TOOL):
        raise InvalidMessagesError(
            f"a message of the role {message.role} is not answered: send a user's, or a tool's result", index=0
        )
    if not message.content and not message.images:
        raise InvalidMessagesError("the message is empty: there is nothing to answer", index=0)
    return message
