"""Protocols for what the terminal needs of a chat and its session, so that this room depends on neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from llmsession.memory.conversation import Conversation
from llmsession.models.encoding import PromptEncoding
from llmsession.models.gguf import ModelInfo
from llmsession.types.completion import Completion
from llmsession.types.events import Event
from llmsession.types.inspection import ChatStats, Inspection
from llmsession.wire.metrics import Metrics


class TalkSession(Protocol):
    """Facts about the model and its server. Each may raise LLMSessionError if the server cannot report it."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def model_path(self) -> Path | None:
        """The model's file."""
        ...

    @property
    def info(self) -> ModelInfo:
        """The facts in the model's file."""
        ...

    @property
    def encoding(self) -> PromptEncoding | None:
        """The prompt encoding; None: the model's own template."""
        ...

    @property
    def context_length(self) -> int:
        """The tokens that one conversation may use."""
        ...

    @property
    def parallel(self) -> int:
        """The number of replies generated at once."""
        ...

    @property
    def version(self) -> str:
        """The engine's version."""
        ...

    @property
    def backend(self) -> str:
        """The engine's kind."""
        ...

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        ...

    @property
    def pid(self) -> int | None:
        """The server's process ID."""
        ...

    @property
    def log_path(self) -> Path | None:
        """The server's log file."""
        ...

    async def get_metrics(self) -> Metrics:
        """Return the counts since the server started."""
        ...


class TalkStream(Protocol):
    """One reply as it arrives."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def events(self) -> AsyncIterator[Event]:
        """Yield everything that happens, up to Finished."""
        ...

    async def result(self) -> Completion:
        """Return the whole reply."""
        ...

    def cancel(self) -> None:
        """End the reply now, from any task or thread."""


class Talk(Protocol):
    """A conversation with a model."""

    @property
    def session(self) -> TalkSession:
        """The source of the replies."""
        ...

    @property
    def conversation(self) -> Conversation:
        """The conversation."""
        ...

    @property
    def last(self) -> Completion | None:
        """The last reply; None before the first."""
        ...

    @property
    def system_prompt(self) -> str | None:
        """The current system prompt."""
        ...

    async def set_system_prompt(self, text: str | None) -> None:
        """Use this system prompt from the next turn on."""

    @property
    def stream(self) -> Callable[..., TalkStream]:
        """Send a message and stream the reply."""
        ...

    @property
    def stream_retry(self) -> Callable[..., TalkStream]:
        """Stream another reply to the last turn."""
        ...

    async def stats(self) -> ChatStats:
        """Return how much of the context is used."""
        ...

    async def inspect(self) -> Inspection:
        """Return the pieces of the next prompt."""
        ...

    def with_conversation(self, conversation: Conversation) -> Talk:
        """Return the same chat with another conversation."""
        ...
