"""One connection per request, against a scripted server on the loopback."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import h11
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsession.types.errors import ConnectionLostError, LLMSessionError, ServerError
from llmsession.wire.connection import open_connection
from llmsession.wire.http import HttpClient
from llmsession.wire.transport import BodyDecoder

Script = Callable[[anyio.abc.SocketStream], Awaitable[None]]

CHUNKED = b"5\r\nhello\r\n1;name=value\r\n \r\n0a\r\n0123456789\r\n0\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(CHUNKED)))
def test_a_chunked_body_may_be_cut_anywhere(cut: int) -> None:
    """RFC 9112, 7.1."""
    decoder = BodyDecoder(chunked=True, length=None)
    assert b"hello 0123456789" == decoder.feed(CHUNKED[:cut]) + decoder.feed(CHUNKED[cut:])
    assert decoder.done


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=6))
def test_chunks_are_read_as_h11_reads_them(pieces: list[bytes], cuts: list[int]) -> None:
    """A well-kept library is the measure."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    peer.send(h11.EndOfMessage())
    peer.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    theirs = b""
    while not isinstance(event := peer.next_event(), h11.EndOfMessage):
        theirs += bytes(event.data) if isinstance(event, h11.Data) else b""
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    decoder = BodyDecoder(chunked=True, length=None)
    ours = b"".join(decoder.feed(body[a:b]) for a, b in itertools.pairwise(edges))
    assert (theirs, True) == (ours, decoder.done)


@pytest.mark.parametrize("body", [b"x\r\n", b"-1\r\nab", b"2\r\nabc\r\n", b"z" * 2000])
def test_a_malformed_chunk_is_an_error(body: bytes) -> None:
    """RFC 9112, 7.1: never taken for data."""
    decoder = BodyDecoder(chunked=True, length=None)
    with pytest.raises(httpx.RemoteProtocolError):
        decoder.feed(body)


@asynccontextmanager
async def serve(script: Script) -> AsyncIterator[str]:
    """Its address, while each connection is handled by the script after one request was read."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive()
            await script(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


def saying(*pieces: bytes) -> Script:
    """A script that sends these pieces, each by itself, and hangs up."""

    async def script(stream: anyio.abc.SocketStream) -> None:
        for piece in pieces:
            await stream.send(piece)
            await anyio.lowlevel.checkpoint()

    return script


@pytest.mark.anyio
@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more"],
        [b"HTTP/1.1 2", b"00 OK\r\nContent-Le", b"ngth: 5\r\n\r", b"\nhe", b"llo"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"],
        [b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    ],
)
async def test_an_answer_in_any_form(pieces: list[bytes]) -> None:
    """RFC 9112: of a known length, chunked, until the end; with news before it; in any pieces."""
    async with serve(saying(*pieces)) as address:
        assert b"hello" == await HttpClient(address).get("/")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"HTTP/1.1 200 OK\r\nContent-Le"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello"],
        [b"SSH-2.0-OpenSSH_9.6\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"],
        [b"HTTP/1.1 abc\r\n\r\n"],
        [b"x" * 70_000],
    ],
)
async def test_an_answer_that_is_none_is_a_lost_connection(pieces: list[bytes]) -> None:
    """Issue 1: a server that hangs up, at any place, or speaks something else."""
    async with serve(saying(*pieces)) as address:
        with anyio.fail_after(10), pytest.raises(ConnectionLostError):
            await HttpClient(address).get("/")


@pytest.mark.anyio
async def test_without_a_descriptor_for_our_own_the_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A9: the limit of open files is reached in between; the server must not wait for a request that never comes."""
    hung_up = anyio.Event()

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
        hung_up.set()

    def fail(*arguments: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "fromfd", fail)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(ConnectionLostError, match="Too many open files"):
            await HttpClient(f"http://127.0.0.1:{port}").get("/")
        with anyio.fail_after(10):
            await hung_up.wait()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_nobody_there_is_a_lost_connection() -> None:
    """API 5: TransportError for bytes that do not get through."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        await HttpClient(f"http://127.0.0.1:{port}").get("/")


@pytest.mark.anyio
async def test_a_proxy_of_the_users_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 1: loopback with HTTP_PROXY set; trust_env is off."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as address:
        assert b"ok" == await HttpClient(address).get("/")


@pytest.mark.anyio
async def test_a_server_that_drops_its_connections_is_no_trouble() -> None:
    """LLAMA_SERVER 3.2: it closes after idleness or 100 requests; we keep none, so none can be stale."""
    async with serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as address:
        client = HttpClient(address)
        assert [b"ok"] * 150 == [await client.get("/") for _ in range(150)]


@pytest.mark.anyio
async def test_abort_from_another_thread_wakes_a_reader() -> None:
    """DESIGN 4: close our own sockets first; from anywhere."""

    async def hang(stream: anyio.abc.SocketStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
        with contextlib.suppress(anyio.EndOfStream):
            await stream.receive()

    async with serve(hang) as address:
        body = await HttpClient(address).open_stream("/", b"{}")
        assert b"data: 1\n\n" == await body.receive()
        killer = threading.Timer(0.05, body.abort)
        killer.start()
        with anyio.fail_after(10):
            assert b"" == await body.receive()
        await body.aclose()
        body.abort()
        await body.aclose()
        killer.join()


@pytest.mark.anyio
async def test_a_cancelled_request_closes_its_connection() -> None:
    """Cancelling is immediate, and leaves no descriptor."""
    closed = anyio.Event()

    async def wait_for_the_end(stream: anyio.abc.SocketStream) -> None:
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()
        closed.set()

    async with serve(wait_for_the_end) as address:
        with anyio.move_on_after(0.05):
            await HttpClient(address).open_stream("/", b"{}")
        with anyio.fail_after(10):
            await closed.wait()


@pytest.mark.anyio
async def test_a_web_page_is_no_server_for_language_models() -> None:
    """Issue 1: an error of ours with words a user understands."""
    page = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<!DOCTYPE html><html><body>nginx</body></html>"
    async with serve(saying(page)) as address:
        with pytest.raises(ServerError, match="web page"):
            await HttpClient(address).open_stream("/", b"{}")


@pytest.mark.anyio
async def test_a_small_question_has_a_bound() -> None:
    """Nothing hangs: an engine that accepts and says nothing."""

    async def hang(stream: anyio.abc.SocketStream) -> None:
        await anyio.sleep_forever()

    async with serve(hang) as address:
        with anyio.fail_after(10), pytest.raises(TimeoutError) as caught:
            await HttpClient(address).get("/health", timeout=0.05)
        assert isinstance(caught.value, LLMSessionError)


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="a full queue drops what comes, and all of 127/8 is here: Linux")
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_where_one_address_of_a_name_is_silent_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS D9: broken IPv6 beside an IPv4 that works. The system alone would try the first for two minutes."""
    async with serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as address:
        port = int(address.rpartition(":")[2])
        with silence(port) as silent:

            def resolve(host: str | bytes | None, *_: object, **__: object) -> list[tuple[object, ...]]:
                """Both addresses for the name; an address for itself."""
                name = host.decode() if isinstance(host, bytes) else host
                addresses = (silent, "127.0.0.1") if name == "llms.example" else (name,)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

            monkeypatch.setattr(socket, "getaddrinfo", resolve)
            with anyio.fail_after(30):
                connection = await open_connection("llms.example", port)
                await connection.send(b"GET / HTTP/1.1\r\n\r\n")
                assert b"HTTP/1.1 200 OK" == (await connection.receive())[:15]
                await connection.aclose()


@contextlib.contextmanager
def silence(port: int) -> Iterator[str]:
    """An address where nobody ever answers: the queue of its listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as guests:
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for _ in range(8):
            guest = guests.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2"
