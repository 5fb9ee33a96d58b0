"""Every error that leaves this library. Nothing of another library crosses the public line.

    LLMSessionError
    ├─ UsageError (ValueError)
    │  ├─ ConfigError
    │  ├─ DuplicateKeyError
    │  ├─ InvalidMessagesError
    │  ├─ InvalidModelError
    │  ├─ InvalidRefError
    │  ├─ UnknownModelError
    │  └─ UnsupportedFeatureError
    ├─ FetchError
    │  ├─ DigestError
    │  ├─ DiskFullError
    │  ├─ GatedModelError
    │  ├─ ModelNotFoundError
    │  └─ OfflineError
    ├─ BackendError
    │  ├─ BackendNotFoundError
    │  ├─ NotEnoughMemoryError
    │  ├─ RestartLimitError
    │  ├─ ServerExitedError
    │  ├─ StartFailedError
    │  └─ StartTimeoutError (TimeoutError)
    ├─ TransportError (OSError)
    │  ├─ ConnectionLostError
    │  └─ ReplyTimeoutError (TimeoutError)
    │     ├─ FirstTokenTimeoutError
    │     ├─ IdleTimeoutError
    │     └─ TotalTimeoutError
    ├─ ServerError
    │  ├─ AuthError
    │  ├─ BadRequestError
    │  ├─ ContextOverflowError
    │  └─ OverloadedError
    ├─ ProtocolError
    │  ├─ TruncatedReplyError
    │  └─ UndecodableError
    ├─ StoreError
    │  ├─ StoreLockedError
    │  └─ StoreVersionError
    └─ ClosedError (RuntimeError)

A message says what happened, to which thing, and what to do next. An error that ended a reply carries what had
arrived by then as `partial`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmsession.types.completion import Completion


class LLMSessionError(Exception):
    """The root of all errors of this library. `partial` is the reply so far, if one had begun."""

    partial: Completion | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from their arguments alone, which those with keywords are not: process pools fail then.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(kind: type[LLMSessionError], arguments: tuple[Any, ...]) -> LLMSessionError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments  # an OSError whose __init__ is its own has none yet
    return error


class UsageError(LLMSessionError, ValueError):
    """The call itself is wrong; nothing was sent or started."""


class ConfigError(UsageError):
    """An option has a value that cannot be used. `path` and `line` say where it stands, if it stands in a file."""

    def __init__(self, message: str, *, path: Path | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class DuplicateKeyError(UsageError):
    """The `key` of an event was used before, in the same conversation, for another turn."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class InvalidMessagesError(UsageError):
    """A model cannot answer these messages. `index` names the first wrong one."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class InvalidModelError(UsageError):
    """The file at `path` is not a model that an engine could load. `reason` is what is wrong with it."""

    def __init__(self, message: str, *, path: Path, reason: str) -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class InvalidRefError(UsageError):
    """The text is not a reference to a file or a repository on Hugging Face."""


class UnknownModelError(UsageError):
    """No model has this name. `candidates` are the names that exist and look like it."""

    def __init__(self, message: str, *, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class UnsupportedFeatureError(UsageError):
    """`backend` cannot do `feature`."""

    def __init__(self, message: str, *, feature: str, backend: str) -> None:
        super().__init__(message)
        self.feature = feature
        self.backend = backend


class FetchError(LLMSessionError):
    """A model file or an engine could not be downloaded. What had arrived is kept; the next attempt continues there."""


class ModelNotFoundError(FetchError):
    """The repository or the file does not exist. `candidates` are the repository's files."""

    def __init__(self, message: str, *, candidates: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class GatedModelError(FetchError):
    """The repository is gated, or a token was refused. `url` is the page to request access on."""

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url


class DigestError(FetchError):
    """The digest of a download differs from the expected one, or none is known. The file is not used."""


class OfflineError(FetchError):
    """A file is missing, and downloads are not allowed (`offline=True` or HF_HUB_OFFLINE)."""


class DiskFullError(FetchError):
    """The disk has too little free space for the file."""

    def __init__(self, message: str, *, needed_bytes: int = 0, free_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class BackendError(LLMSessionError):
    """The server could not be found, started or kept."""


class BackendNotFoundError(BackendError):
    """No engine is installed. `hint` is the command that installs one."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotEnoughMemoryError(BackendError):
    """The model needs more memory than is free. `suggestion` says what would fit, such as `context_length=2048`."""

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int, suggestion: str) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.suggestion = suggestion


class StartFailedError(BackendError):
    """The server ended before it was ready. `log_tail` is the end of its log."""

    def __init__(self, message: str, *, returncode: int | None, log_tail: str) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.log_tail = log_tail


class StartTimeoutError(BackendError, TimeoutError):
    """The server made no progress towards being ready for `start_timeout` seconds."""

    def __init__(self, message: str, *, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class RestartLimitError(BackendError):
    """The server ended too often. It was restarted `restarts` times and is not restarted for now."""

    def __init__(self, message: str, *, restarts: int, log_tail: str) -> None:
        super().__init__(message)
        self.restarts = restarts
        self.log_tail = log_tail


class ServerExitedError(BackendError):
    """The server ended during a reply."""

    def __init__(self, message: str, *, returncode: int | None, log_tail: str) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.log_tail = log_tail


class TransportError(LLMSessionError, OSError):
    """The connection to the server failed."""


class ConnectionLostError(TransportError):
    """The server cannot be reached, or it closed the connection."""


class ReplyTimeoutError(TransportError, TimeoutError):
    """A reply took longer than allowed."""


class FirstTokenTimeoutError(ReplyTimeoutError):
    """No token came for `first_token_timeout` seconds."""


class IdleTimeoutError(ReplyTimeoutError):
    """No further token came for `idle_timeout` seconds."""


class TotalTimeoutError(ReplyTimeoutError):
    """The whole call, including waiting for a slot, took longer than its `timeout` in seconds."""


class ServerError(LLMSessionError):
    """The server answered with an error. `status` is the HTTP status, `type` the server's name for the error."""

    def __init__(self, message: str, *, status: int, type: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.type = type


class AuthError(ServerError):
    """The server refuses the API key, or wants one."""


class BadRequestError(ServerError):
    """The server refuses the request."""


class ContextOverflowError(ServerError):
    """The prompt has more tokens than one conversation may use. Both numbers are 0 if an old server reports neither."""

    def __init__(
        self,
        message: str,
        *,
        prompt_tokens: int,
        context_length: int,
        status: int = 400,
        type: str = "exceed_context_size_error",
    ) -> None:
        super().__init__(message, status=status, type=type)
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class OverloadedError(ServerError):
    """The server is busy or still loading; try again in `retry_after` seconds, if that is known."""

    def __init__(self, message: str, *, status: int = 503, type: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, status=status, type=type)
        self.retry_after = retry_after


class ProtocolError(LLMSessionError):
    """The server's answer breaks the protocol."""


class TruncatedReplyError(ProtocolError):
    """The reply broke off. It is never returned as a short answer."""


class UndecodableError(ProtocolError):
    """A part of the reply cannot be decoded. `payload` is its beginning."""

    def __init__(self, message: str, *, payload: bytes) -> None:
        super().__init__(message)
        self.payload = payload


class StoreError(LLMSessionError):
    """A conversation could not be read or stored. What was acknowledged before is unchanged."""


class StoreLockedError(StoreError):
    """Another program holds the file for too long."""


class StoreVersionError(StoreError):
    """The file has a version that this llmsession does not know. It was not changed."""


class ClosedError(LLMSessionError, RuntimeError):
    """The session or memory is closed."""
