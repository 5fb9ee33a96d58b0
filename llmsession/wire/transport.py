"""An httpx transport with one connection per request, which is cheap per token and can be cut from any thread.

A pool gains little on the loopback and costs much: llama-server drops idle connections after 5 s and busy ones after
100 requests, and a pooled connection belongs to one event loop, while a session may be closed from another.
https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import anyio

from llmsession.wire.connection import Connection, open_connection
from llmsession.wire.lean_httpx import httpx

# A larger head is not an HTTP server of ours.
LARGEST_HEAD = 65_536
# Seconds. Packets that a firewall drops are answered by nobody, and the system would wait for minutes.
CONNECTED_WITHIN = 8.0


class BodyDecoder:
    """Decodes a response body: chunked, of a known length, or until the connection ends (`length` None). No I/O."""

    def __init__(self, *, chunked: bool, length: int | None) -> None:
        self._chunked = chunked
        self._left = length  # of the whole body, or of the chunk at hand; None: not known
        self._buffer = b""
        self._after_chunk = False
        self.done = length == 0 and not chunked
        if chunked:
            self._left = None

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body in these bytes."""
        if self._chunked:
            return self._feed_chunked(data)
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def end(self) -> None:
        """The connection has ended. Raises httpx.RemoteProtocolError if the body is incomplete."""
        if self._chunked or self._left is not None:
            raise httpx.RemoteProtocolError("the server hung up in the middle of its answer")
        self.done = True

    def _feed_chunked(self, data: bytes) -> bytes:
        buffer = self._buffer + data if self._buffer else data
        pieces = []
        while not self.done:
            if self._left is None:
                line, found, rest = buffer.partition(b"\r\n")
                if not found:
                    if len(buffer) > 1024:
                        raise httpx.RemoteProtocolError("the server sent a chunk without a size")
                    break
                if self._after_chunk:  # the empty line that closes a chunk
                    if line:
                        raise httpx.RemoteProtocolError("the server sent a chunk longer than its size")
                    self._after_chunk, buffer = False, rest
                    continue
                self._left, buffer = _chunk_size(line), rest
                if self._left == 0:
                    self.done = True  # trailers have no meaning for us
                    buffer = b""
                continue
            piece = buffer[: self._left]
            pieces.append(piece)
            self._left -= len(piece)
            buffer = buffer[len(piece) :]
            if self._left:
                break
            self._left, self._after_chunk = None, True
        self._buffer = buffer
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class BodyStream(httpx.AsyncByteStream):
    """The body as it arrives. It is read and closed in its own event loop; `abort` may be called from anywhere."""

    def __init__(self, connection: Connection, decoder: BodyDecoder, first: bytes) -> None:
        self._connection = connection
        self._decoder = decoder
        self._first = first

    def abort(self) -> None:
        """Cut the connection at once: whoever reads sees the end. Thread-safe; never blocks, never raises."""
        self._connection.abort()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._connection.aclose()

    async def receive(self) -> bytes:
        """Return the next bytes; empty at the end.

        Not a generator: one that is not exhausted causes trouble under trio.
        """
        decoder, data = self._decoder, self._first
        self._first = b""
        try:
            while not decoder.done:
                data = data or await self._connection.receive()
                if not data:
                    decoder.end()
                elif body := decoder.feed(data):
                    return body
                data = b""
        except OSError as error:
            raise httpx.ReadError("the connection broke") from error
        return b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while body := await self.receive():
            yield body


class DirectTransport(httpx.AsyncBaseTransport):
    """Opens a connection, sends the request, and returns the response once its head has arrived.

    `tls` is used for https://; without it only http:// is supported.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response, whose body is still to come. Raises httpx's own errors."""
        secure = request.url.scheme == "https" and self._tls is not None
        if request.url.scheme != "http" and not secure:
            raise httpx.UnsupportedProtocol(f"{request.url.scheme}:// is not spoken here", request=request)
        port = request.url.port or (443 if secure else 80)
        connection: Connection | None = None
        try:
            with anyio.move_on_after(CONNECTED_WITHIN):
                connection = await open_connection(request.url.host, port, self._tls if secure else None)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that IDNA cannot encode
            raise httpx.ConnectError(str(error), request=request) from error
        if connection is None:
            raise httpx.ConnectTimeout(f"nothing answered within {CONNECTED_WITHIN:g} s", request=request)
        try:
            await connection.send(_encode_head(request) + await request.aread())
            head, rest = await _receive_head(connection)
            status, headers = _parse_head(head)
            decoder = _decoder_for(request.method, status, headers)
        except BaseException as error:
            await connection.aclose()
            if isinstance(error, OSError):
                raise httpx.ReadError("the connection broke") from error
            raise
        body = BodyStream(connection, decoder, rest)
        return httpx.Response(status, headers=headers, stream=body, extensions={"byte_stream": body})


def _encode_head(request: httpx.Request) -> bytes:
    lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _receive_head(connection: Connection) -> tuple[bytes, bytes]:
    buffer = b""
    while data := await connection.receive():
        buffer += data
        while b"\r\n\r\n" in buffer:
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            if not head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):  # "100 Continue" and the like come before
                return head, buffer
        if len(buffer) > LARGEST_HEAD:
            raise httpx.RemoteProtocolError("the answer does not begin as HTTP does")
    raise httpx.RemoteProtocolError("the server hung up without an answer")


def _parse_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    status_line, *lines = head.split(b"\r\n")
    parts = status_line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise httpx.RemoteProtocolError("the answer is not HTTP")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise httpx.RemoteProtocolError("the answer has a malformed header")
        headers.append((name.strip(), value.strip()))
    return int(parts[1]), headers


def _decoder_for(method: str, status: int, headers: list[tuple[bytes, bytes]]) -> BodyDecoder:
    found = {name.lower(): value for name, value in headers}
    if method == "HEAD" or status in (204, 304):
        return BodyDecoder(chunked=False, length=0)
    if found.get(b"transfer-encoding", b"").lower().endswith(b"chunked"):
        return BodyDecoder(chunked=True, length=None)
    length = found.get(b"content-length")
    if length is not None and not length.isdigit():
        raise httpx.RemoteProtocolError("the answer has a malformed length")
    return BodyDecoder(chunked=False, length=int(length) if length is not None else None)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        size = int(digits, 16) if digits.isalnum() else -1
    except ValueError:
        size = -1
    if size < 0:
        raise httpx.RemoteProtocolError("the server sent a chunk without a size")
    return size
