"""The body of a response to a streamed request: a stream of events, or what some servers send instead."""

from __future__ import annotations

import zlib
from typing import Protocol, cast

from llmsession.types.errors import ProtocolError
from llmsession.wire.lean_httpx import httpx
from llmsession.wire.server_errors import WEB_PAGE, decode_error


class ByteStream(Protocol):
    """A response body that arrives piece by piece. `abort` may be called from any thread."""

    async def receive(self) -> bytes:
        """Return the next bytes; empty at the end. Raises httpx.HTTPError."""
        ...

    def abort(self) -> None:
        """Cut the connection: whoever reads the body sees its end."""
        ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...


async def open_body(response: httpx.Response, address: str) -> ByteStream:
    """Return the body, decompressed if necessary. Raises ServerError if it is a web page."""
    body = cast("ByteStream", response.extensions.get("byte_stream", response.stream))
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    try:
        if response.headers.get("content-type", "").startswith("text/html"):
            raise decode_error(200, WEB_PAGE.encode())
        return body if coding == "identity" else _Decompressed(body, coding, address)
    except BaseException:
        await body.aclose()
        raise


class _Decompressed:
    """A body compressed with gzip or deflate. Raises ProtocolError for any other encoding."""

    def __init__(self, inner: ByteStream, coding: str, address: str) -> None:
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise ProtocolError(f"{address} sends its answers compressed by {coding!r}, which nobody asked for")
        self._inner = inner
        self._address = address
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: of gzip or zlib, as its head says

    async def receive(self) -> bytes:
        while data := await self._inner.receive():
            try:
                if plain := self._decompressor.decompress(data):
                    return plain
            except zlib.error as error:
                raise ProtocolError(f"the compressed answer of {self._address} cannot be read: {error}") from error
        return self._decompressor.flush()

    def abort(self) -> None:
        self._inner.abort()

    async def aclose(self) -> None:
        await self._inner.aclose()
