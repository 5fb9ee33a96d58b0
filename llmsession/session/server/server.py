"""Server: what a session needs from its server, whether it owns the process (OwnedServer) or not (RemoteServer)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint, Feature
    from llmsession.models.gguf import ModelInfo
    from llmsession.models.safetensors import WeightsInfo
    from llmsession.prompts.vocabulary import Vocabulary
    from llmsession.prompts.writer import PromptWriter
    from llmsession.session.server.model_choice import ResolvedModel
    from llmsession.types.errors import LLMSessionError


class Server(Protocol):
    """One server for one model. Every method may be called from any task or thread."""

    @property
    def model(self) -> ResolvedModel:
        """The model it runs, as far as it is known by now."""
        ...

    @property
    def info(self) -> ModelInfo | WeightsInfo | None:
        """The header of the model's file; None until it is read, and for a remote server."""
        ...

    @property
    def parallel(self) -> int:
        """How many replies it generates at once."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """The features it has; before it is ready, those that it is expected to have."""
        ...

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint that was ready last; its process may have exited since."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        ...

    @property
    def is_starting(self) -> bool:
        """Whether a start is in progress."""
        ...

    async def ensure_ready(self) -> Endpoint:
        """Return the ready server, started if necessary. Raises ClosedError and what a start can raise."""
        ...

    async def prompt_writer(self, endpoint: Endpoint) -> PromptWriter:
        """Return the writer of prompts for this endpoint, in which no text becomes a special token."""
        ...

    async def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the model's own files; None if they are not known here."""
        ...

    async def has_exited_soon(self, endpoint: Endpoint) -> bool:
        """Whether its process has exited, or does within a moment: a dying engine closes its connections first."""
        ...

    def may_start_again(self, times: int) -> bool:
        """Whether it may be restarted for a reply during which it was restarted `times` times already."""
        ...

    def check_progress(self, endpoint: Endpoint, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Check in the background whether the engine hangs. Returns whether it is being checked. Never blocks."""
        ...

    async def diagnose(self, error: LLMSessionError, endpoint: Endpoint | None) -> LLMSessionError:
        """Return the cause of a lost connection: the engine's exit, if it has exited, else `error` itself."""
        ...

    def rotate_log(self) -> None:
        """Keep the log of a long run within bounds."""

    def refuse_starts(self) -> None:
        """Refuse further starts. Does not wait."""

    def close_soon(self) -> None:
        """End the process without waiting for its exit."""

    async def aclose(self, *, within: float) -> None:
        """End the process and wait for its exit: shielded, at most `within` seconds, in any state, repeatedly."""
