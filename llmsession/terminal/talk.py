"""What the terminal needs of a chat and of its session, as Protocols: so this room knows neither of the two."""

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
        """Its file."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the file says of itself."""
        ...

    @property
    def encoding(self) -> PromptEncoding | None:
        """The prompt encoding; None: the model's own template."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that one conversation may use."""
        ...

    @property
    def parallel(self) -> int:
        """Replies generated at once."""
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
        """The server's process."""
        ...

    @property
    def log_path(self) -> Path | None:
        """The server's log."""
        ...

    async def get_metrics(self) -> Metrics:
        """Counts since the server started."""
        ...


class TalkStream(Protocol):
    """One reply as it arrives."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens, to the Finished."""
        ...

    async def result(self) -> Completion:
        """The whole reply."""
        ...

    def cancel(self) -> None:
        """End it now, from any task or thread."""


class Talk(Protocol):
    """A conversation with a model."""

    @property
    def session(self) -> TalkSession:
        """Where replies come from."""
        ...

    @property
    def conversation(self) -> Conversation:
        """What was said."""
        ...

    @property
    def last(self) -> Completion | None:
        """The last reply; None before the first."""
        ...

    @property
    def system_prompt(self) -> str | None:
        """The one in force."""
        ...

    async def set_system_prompt(self, text: str | None) -> None:
        """Use it from the next turn on."""

    @property
    def stream(self) -> Callable[..., TalkStream]:
        """Say something and have it answered."""
        ...

    @property
    def stream_retry(self) -> Callable[..., TalkStream]:
        """Answer the last turn again."""
        ...

    async def stats(self) -> ChatStats:
        """How much of the context is used."""
        ...

    async def inspect(self) -> Inspection:
        """The pieces of the next prompt."""
        ...

    def with_conversation(self, conversation: Conversation) -> Talk:
        """The same chat about another conversation."""
        ...
