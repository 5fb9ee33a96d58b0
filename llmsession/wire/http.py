"""The HTTP client, and the one map from httpx's errors to ours.

All HTTP goes through here. No error of httpx leaves this room.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from typing import cast

import anyio

from llmsession.types.errors import (
    ConfigError,
    ConnectionLostError,
    LLMSessionError,
    ProtocolError,
    ReplyTimeoutError,
)
from llmsession.wire.body import ByteStream, open_body
from llmsession.wire.lean_httpx import httpx
from llmsession.wire.server_errors import decode_error
from llmsession.wire.transport import DirectTransport

# For the small questions (health, tokens, slots), which the server answers beside its work, or between two batches.
SMALL_TIMEOUT = 30.0
MOST_REDIRECTS = 4
EVENT_STREAM = "text/event-stream"
_REDIRECTS = (301, 302, 307, 308)

# Most specific first: the first row whose type fits decides.
_FOREIGN_ERRORS: tuple[tuple[type[Exception], type[LLMSessionError], str], ...] = (
    (httpx.InvalidURL, ConfigError, "this is not an address of a server"),
    (httpx.UnsupportedProtocol, ConfigError, "this address cannot be used"),
    (httpx.ConnectTimeout, ConnectionLostError, "the server cannot be reached"),
    (httpx.TimeoutException, ReplyTimeoutError, "the server took too long"),
    (httpx.ConnectError, ConnectionLostError, "the server cannot be reached"),
    (httpx.NetworkError, ConnectionLostError, "the connection to the server was lost"),
    (httpx.RemoteProtocolError, ConnectionLostError, "the connection to the server was lost"),
    (httpx.DecodingError, ProtocolError, "the answer cannot be read"),
    (httpx.HTTPError, ConnectionLostError, "the request failed"),
)


@contextlib.contextmanager
def foreign_errors(address: str) -> Iterator[None]:
    """Turn httpx's errors into ours."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise map_error(error, address) from error


def map_error(error: Exception, address: str) -> LLMSessionError:
    """Return our error for one of httpx's."""
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        why = error.__cause__.verify_message
        return ConnectionLostError(
            f"the server cannot be trusted ({address}): {why} (name the file of its authority with verify=, "
            "or trust any with verify=False)"
        )
    ours, words = next((ours, words) for foreign, ours, words in _FOREIGN_ERRORS if isinstance(error, foreign))
    return ours(f"{words} ({address}): {error}")


class HttpClient:
    """A client of one server. It holds no connection between calls, so any event loop may use it."""

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
        self.refused_fields: set[str] = set()
        """Optional fields of a request that the server has refused."""
        always = {"Accept-Encoding": "identity", "Connection": "close"}
        if api_key:
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
        """Return the body of the response. Raises ServerError if the status is not 200."""
        return await self._exchange(self._client.build_request("GET", path), timeout)

    async def post(self, path: str, body: bytes, *, timeout: float = SMALL_TIMEOUT) -> bytes:
        """Send a JSON body, and return the body of the response. Raises ServerError if the status is not 200."""
        return await self._exchange(self._build_post(path, body), timeout)

    async def get_status(self, path: str, *, timeout: float = SMALL_TIMEOUT) -> int:
        """Return the status of the response."""
        with foreign_errors(self.base_url), _bound(timeout, self.base_url):
            return (await self._send(self._client.build_request("GET", path))).status_code

    async def open_stream(self, path: str, body: bytes) -> ByteStream:
        """Return the body of the response as it arrives.

        The caller closes it. Raises ServerError if the status is not 200.
        """
        with foreign_errors(self.base_url):
            response = await self._send(self._build_post(path, body), stream=True)
            if response.status_code == 200:
                headers = response.headers
                if headers.get("content-type") == EVENT_STREAM and "content-encoding" not in headers:
                    # Past httpx's own layers, which cost more per chunk than all of ours.
                    return cast("ByteStream", response.extensions.get("byte_stream", response.stream))
                return await open_body(response, self.base_url)
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        raise decode_error(response.status_code, content, response.headers)

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send the request, and follow redirects to the same server.

        Raises ProtocolError for a redirect to another one.
        """
        for _ in range(MOST_REDIRECTS):
            response = await self._client.send(request, stream=stream)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            await response.aclose()
            target = request.url.join(response.headers["location"])
            if (target.scheme, target.netloc) != (request.url.scheme, request.url.netloc):
                # The key is for the server that was named.
                raise ProtocolError(f"{self.base_url} redirects to {target}: name that address with remote=")
            request = self._client.build_request(
                request.method, target, content=request.content, headers=request.headers
            )
        raise ProtocolError(f"{self.base_url} redirects again and again, at last to {request.url}")

    def _build_post(self, path: str, body: bytes) -> httpx.Request:
        return self._client.build_request("POST", path, content=body, headers={"Content-Type": "application/json"})

    async def _exchange(self, request: httpx.Request, timeout: float) -> bytes:
        with foreign_errors(self.base_url), _bound(timeout, self.base_url):
            response = await self._send(request)
        if response.status_code != 200:
            raise decode_error(response.status_code, response.content, response.headers)
        return response.content


@contextlib.contextmanager
def _bound(timeout: float, address: str) -> Iterator[None]:
    with anyio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise ReplyTimeoutError(f"the server did not answer within {timeout:g} s ({address})")
