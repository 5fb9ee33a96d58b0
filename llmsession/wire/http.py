"""The http client, and the one map from foreign errors to ours.

Everything that goes over HTTP goes through here; no error of httpx leaves this room.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import anyio

from llmsession.types.errors import (
    AuthError,
    BadRequestError,
    ConfigError,
    ConnectionLostError,
    ContextOverflowError,
    LLMSessionError,
    OverloadedError,
    ProtocolError,
    ReplyTimeoutError,
    ServerError,
)
from llmsession.wire.lean_httpx import httpx
from llmsession.wire.transport import DirectTransport

# For the small questions (health, tokens, slots), which the server answers beside its work, or between two batches.
SMALL_TIMEOUT = 30.0

# Most specific first: the first row whose type fits decides.
_FOREIGN_ERRORS: tuple[tuple[type[Exception], type[LLMSessionError], str], ...] = (
    (httpx.InvalidURL, ConfigError, "this is not an address of a server"),
    (httpx.UnsupportedProtocol, ConfigError, "this address cannot be used"),
    (httpx.TimeoutException, ReplyTimeoutError, "the server took too long"),
    (httpx.ConnectError, ConnectionLostError, "the server cannot be reached"),
    (httpx.NetworkError, ConnectionLostError, "the connection to the server was lost"),
    (httpx.RemoteProtocolError, ConnectionLostError, "the connection to the server was lost"),
    (httpx.DecodingError, ProtocolError, "the answer cannot be read"),
    (httpx.HTTPError, ConnectionLostError, "the request failed"),
)


_OLD_OVERFLOW = "exceeds the available context size"


class ByteStream(Protocol):
    """A body that arrives; `abort` may be called from any thread."""

    async def receive(self) -> bytes:
        """The next bytes; empty at the end. Raises httpx.HTTPError."""
        ...

    def abort(self) -> None:
        """Cut it: whoever reads it sees its end."""
        ...

    async def aclose(self) -> None:
        """Close its connection."""
        ...


@contextlib.contextmanager
def foreign_errors(address: str) -> Iterator[None]:
    """Turn what httpx raises into ours."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise map_error(error, address) from error


def map_error(error: Exception, address: str) -> LLMSessionError:
    """The error of ours for one of httpx's."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        why = error.__cause__.verify_message
        return ConnectionLostError(
            f"the server cannot be trusted ({address}): {why} (name the file of its authority with verify=, "
            "or trust any with verify=False)"
        )
    ours, words = next((ours, words) for foreign, ours, words in _FOREIGN_ERRORS if isinstance(error, foreign))
    return ours(f"{words} ({address}): {error}")


class HttpClient:
    """Asks one server. Holds no connection between calls, so it may be used from one event loop after another."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        always = {"Accept-Encoding": "identity", "Connection": "close"}
        if api_key is not None:
            always["Authorization"] = f"Bearer {api_key}"
        # trust_env=False: a proxy of the user's must not get between us and a server on this machine.
        with foreign_errors(base_url):
            self._client = httpx.AsyncClient(
                base_url=self.base_url,
                headers=always | dict(headers or {}),
                transport=transport or DirectTransport(tls),
                trust_env=False,
                timeout=None,  # each call has a bound of its own
            )

    async def get(self, path: str, *, timeout: float = SMALL_TIMEOUT) -> bytes:
        """The body of the answer. Raises ServerError if the status is not 200."""
        return await self._exchange(self._client.build_request("GET", path), timeout)

    async def post(self, path: str, body: bytes, *, timeout: float = SMALL_TIMEOUT) -> bytes:
        """The same, for a body of JSON."""
        return await self._exchange(self._build_post(path, body), timeout)

    async def get_status(self, path: str, *, timeout: float = SMALL_TIMEOUT) -> int:
        """Only the status of the answer."""
        with foreign_errors(self.base_url), _bound(timeout, self.base_url):
            response = await self._client.send(self._client.build_request("GET", path))
            return response.status_code

    async def open_stream(self, path: str, body: bytes) -> ByteStream:
        """The body of the answer as it arrives; the caller closes it. Raises ServerError for any status but 200."""
        with foreign_errors(self.base_url):
            response = await self._client.send(self._build_post(path, body), stream=True)
            if response.status_code == 200:
                # Past httpx's own layers, which cost more per chunk than all of ours.
                return cast("ByteStream", response.extensions.get("byte_stream", response.stream))
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        raise decode_error(response.status_code, content, response.headers)

    def _build_post(self, path: str, body: bytes) -> httpx.Request:
        return self._client.build_request("POST", path, content=body, headers={"Content-Type": "application/json"})

    async def _exchange(self, request: httpx.Request, timeout: float) -> bytes:
        with foreign_errors(self.base_url), _bound(timeout, self.base_url):
            response = await self._client.send(request)
        if response.status_code != 200:
            raise decode_error(response.status_code, response.content, response.headers)
        return response.content


@contextlib.contextmanager
def _bound(timeout: float, address: str) -> Iterator[None]:
    with anyio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise ReplyTimeoutError(f"the server did not answer within {timeout:g} s ({address})")


def decode_error(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> ServerError:
    """A server's error as one of ours. It understands OpenAI's form, and anything else as text."""
    message, type_, details = _read_error(body)
    message = message or f"the server answered with status {status}"
    if "n_prompt_tokens" in details and "n_ctx" in details:
        prompt_tokens, context_length = int(details["n_prompt_tokens"]), int(details["n_ctx"])
        return ContextOverflowError(
            f"the prompt has {prompt_tokens} tokens, and a conversation may use {context_length}: "
            "shorten it, or open the session with a larger context_length=",
            prompt_tokens=prompt_tokens,
            context_length=context_length,
            status=status,
            type=type_,
        )
    if _OLD_OVERFLOW in message:  # of builds of before 2025's middle, which give no numbers
        return ContextOverflowError(
            f"the prompt has more tokens than a conversation may use ({message}): "
            "shorten it, or open the session with a larger context_length=",
            prompt_tokens=0,
            context_length=0,
            status=status,
            type=type_,
        )
    if status in (401, 403) and type_ != "feature_disabled":
        return AuthError(
            f"the server refuses the key: {message} (give the right one with api_key=)",
            status=status,
            type=type_,
        )
    if status in (429, 503):
        after = (headers or {}).get("retry-after", "")
        return OverloadedError(
            f"the server is not free: {message}",
            status=status,
            type=type_,
            retry_after=float(after) if after.isdigit() else None,
        )
    if 400 <= status < 500:
        return BadRequestError(f"the server refuses the request: {message}", status=status, type=type_)
    return ServerError(f"the server failed: {message}", status=status, type=type_)


def decode_error_frame(payload: bytes) -> ServerError:
    """The same for an error in the middle of a stream, where the status is a field."""
    details = _read_error(payload)[2]
    code = details.get("code")
    return decode_error(code if isinstance(code, int) and 400 <= code < 600 else 500, payload)


def _read_error(body: bytes) -> tuple[str, str, dict[str, Any]]:
    """Message, type, and the object they came from."""
    try:
        decoded = json.loads(body)
    except ValueError:
        text = body.decode(errors="replace").strip()
        if text.lower().startswith(("<!doctype", "<html")):
            text = "it sent a web page: this is not a server for language models"
        return text[:300], "", {}
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        # llamafile has its words under `content`, FastAPI under `detail`.
        message = error.get("message") or error.get("content") or error.get("detail") or ""
        return str(message)[:1000], str(error.get("type", "")), error
    return str(error)[:1000], "", {}
