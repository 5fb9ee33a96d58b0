"""One TCP connection, in the running event loop. Any thread may cut it.

On asyncio it uses asyncio's own streams: anyio pauses and resumes reading around each receive, which costs two system
calls per token. On trio it uses anyio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from typing import Any, Protocol

import anyio
import anyio.abc

from llmsession.system.latch import current_loop

RECEIVE_BYTES = 65_536
# The socket was shut down before, so that closing it takes one turn of the loop.
CLOSED_WITHIN = 1.0
# As anyio does on trio (RFC 8305).
NEXT_ADDRESS_AFTER = 0.25


class Connection(Protocol):
    """A TCP connection. Its methods raise OSError if it fails or breaks."""

    async def send(self, data: bytes) -> None:
        """Send all of the data."""
        ...

    async def receive(self) -> bytes:
        """Return what has arrived, at least one byte; empty at the end."""
        ...

    def abort(self) -> None:
        """Cut the connection: whoever receives from it sees its end. Thread-safe; never blocks, never raises."""
        ...

    async def aclose(self) -> None:
        """Close the connection: shielded and quick."""
        ...


async def open_connection(host: str, port: int, tls: ssl.SSLContext | None = None) -> Connection:
    """Connect, with TLS if a context is given. Raises OSError, which includes ssl.SSLError."""
    if isinstance(loop := current_loop(), asyncio.AbstractEventLoop):
        # If nobody answers at one of a name's addresses, as with a broken IPv6, the next is tried. uvloop cannot; and
        # where there is only one, asyncio's way leaves its socket open when it is cancelled.
        patience: dict[str, Any] = {}
        if isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host):
            patience = {"happy_eyeballs_delay": NEXT_ADDRESS_AFTER}
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, **patience)
        try:
            return _AsyncioConnection(reader, writer)
        except OSError:  # no descriptor is left for our own
            writer.transport.abort()
            raise
    stream: anyio.abc.ByteStream
    if tls is None:
        stream = await anyio.connect_tcp(host, port)
    else:
        # Servers hang up without TLS's own goodbye; whether a body is whole, HTTP says.
        stream = await anyio.connect_tcp(host, port, tls=True, ssl_context=tls, tls_standard_compatible=False)
    try:
        return _AnyioConnection(stream)
    except OSError:
        await anyio.aclose_forcefully(stream)
        raise


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class _Cuttable:
    """Implements `abort` for both: shutting down the socket wakes its reader, in every loop and from every thread.

    `theirs` is the loop's view of its socket, which uvloop does not let us shut down. So we hold a second descriptor
    for the same connection, which stays ours when the loop closes its own.
    """

    def __init__(self, theirs: Any) -> None:
        self._socket = socket.fromfd(theirs.fileno(), theirs.family, theirs.type)
        # Closed by one thread and shut down by another, its number could be that of a new file in between. Re-entrant,
        # since a signal handler may interrupt.
        self._lock = threading.RLock()

    def abort(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # it was closed, by us or by the other side
            self._socket.shutdown(socket.SHUT_RDWR)

    def _close_socket(self) -> None:
        self.abort()
        with self._lock:
            self._socket.close()


class _AsyncioConnection(_Cuttable):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(writer.get_extra_info("socket"))
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        return await self._reader.read(RECEIVE_BYTES)

    async def aclose(self) -> None:
        self._close_socket()
        self._writer.transport.abort()
        with anyio.move_on_after(CLOSED_WITHIN, shield=True), contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _AnyioConnection(_Cuttable):
    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        super().__init__(stream.extra(anyio.abc.SocketAttribute.raw_socket))
        self._stream = stream

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionResetError("the connection broke") from error

    async def receive(self) -> bytes:
        try:
            return await self._stream.receive(RECEIVE_BYTES)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionResetError("the connection broke") from error

    async def aclose(self) -> None:
        self._close_socket()
        with anyio.move_on_after(CLOSED_WITHIN, shield=True):
            await self._stream.aclose()
