"""A large file from a server that keeps to RFC 9110, or does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from llmsession.types.errors import FetchError
from llmsession.wire import download

pytestmark = pytest.mark.anyio

URL = "https://example.org/b1/llama.zip"
DATA = bytes(range(256)) * 8
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries."""
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.0)


class Server:
    """Answers by a list of functions, one after the other, the last again and again; remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.asked: list[tuple[str | None, str | None]] = []
        client = httpx.AsyncClient

        def make(**settings: object) -> httpx.AsyncClient:
            return client(transport=httpx.MockTransport(self._answer), **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(httpx, "AsyncClient", make)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.headers.get("Range"), request.headers.get("If-Range")))
        return (self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0])(request)


async def arriving(data: bytes, *, breaks: bool = False):
    """As from a connection, which may break after them."""
    yield data
    if breaks:
        raise httpx.ReadError("reset")


def cut(at: int, **headers: str) -> Handler:
    """All of it, so it says, but only so many bytes come."""
    shown = {"Content-Length": str(len(DATA)), **headers}
    return lambda _: httpx.Response(200, headers=shown, content=arriving(DATA[:at], breaks=True))


def part(start: int) -> Handler:
    """From there to the end."""
    placed = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
    return lambda _: httpx.Response(206, headers=placed, content=arriving(DATA[start:]))


def whole(_: httpx.Request) -> httpx.Response:
    """All of it."""
    return httpx.Response(200, headers={"Content-Length": str(len(DATA))}, content=arriving(DATA))


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"abc"'}, '"abc"'),
        ({"ETag": 'W/"abc"', "Last-Modified": "Sat, 01 Nov 2025 00:00:00 GMT"}, "Sat, 01 Nov 2025 00:00:00 GMT"),
    ],
)
async def test_the_rest_is_asked_for_with_what_says_that_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, headers: dict[str, str], validator: str
) -> None:
    """CAPABILITIES B6: If-Range with a strong entity tag, else with the date."""
    server = Server(monkeypatch, cut(100, **headers), part(100))
    told: list[tuple[int, int | None]] = []
    await download.download(URL, tmp_path / "f", size=len(DATA), advance=lambda *now: told.append(now))
    assert DATA == (tmp_path / "f").read_bytes()
    assert [(None, None), ("bytes=100-", validator)] == server.asked
    assert ((0, len(DATA)), (len(DATA), len(DATA))) == (told[0], told[-1])
    assert [tmp_path / "f"] == list(tmp_path.iterdir())
    await download.download(URL, tmp_path / "f", size=len(DATA))
    assert 2 == len(server.asked)


async def test_without_such_a_word_it_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CAPABILITIES B6: two files must not become one."""
    server = Server(monkeypatch, cut(100), whole)
    await download.download(URL, tmp_path / "f")
    assert DATA == (tmp_path / "f").read_bytes()
    assert [(None, None), (None, None)] == server.asked


@pytest.mark.parametrize("answer", [whole, lambda _: httpx.Response(416), part(50)], ids=["changed", "416", "other"])
async def test_a_part_that_does_not_fit_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: Handler
) -> None:
    """CAPABILITIES B6: the file has changed, is shorter now, or the server answers something else."""
    Server(
        monkeypatch,
        cut(100, ETag='"a"'),
        answer,
        lambda request: (part(100) if "Range" in request.headers else whole)(request),
    )
    await download.download(URL, tmp_path / "f")
    assert DATA == (tmp_path / "f").read_bytes()


async def test_a_body_of_unknown_length_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CAPABILITIES B6: chunked, as from some proxies."""
    Server(monkeypatch, lambda _: httpx.Response(200, content=arriving(DATA)))
    await download.download(URL, tmp_path / "f")
    assert DATA == (tmp_path / "f").read_bytes()


@pytest.mark.parametrize(
    ("handler", "words", "tries"),
    [
        (lambda _: httpx.Response(404), "there is no such file", 1),
        (lambda _: httpx.Response(403), "too many requests from here, or a proxy", 1),
        (lambda _: httpx.Response(407), "HTTPS_PROXY", 1),
        (lambda _: httpx.Response(418), "HTTP 418", 1),
        (lambda _: httpx.Response(500), "status 500; try again later", 4),
        (lambda _: httpx.Response(206), "does not say which", 4),
        (lambda _: httpx.Response(200, content=b"<html>"), "has 6 bytes, where 2048 are expected", 1),
        (lambda _: httpx.Response(302, headers={"Location": "http://example.org/x"}), "is not encrypted", 2),
        (cut(0), "cannot be reached", 4),
    ],
)
async def test_what_cannot_be_had_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, handler: Handler, words: str, tries: int
) -> None:
    """CAPABILITIES B6: what, which, and what to do next; again only where that may help."""

    def downgraded(request: httpx.Request) -> httpx.Response:
        return whole(request) if request.url.scheme == "http" else handler(request)

    server = Server(monkeypatch, downgraded)
    with pytest.raises(FetchError, match=words):
        await download.download(URL, tmp_path / "f", size=len(DATA))
    assert tries == len(server.asked)


async def test_a_host_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CAPABILITIES B6: a user without a network wants to know."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Name or service not known", request=request)

    server = Server(monkeypatch, refuse)
    with pytest.raises(FetchError, match="Name or service not known"):
        await download.download(URL, tmp_path / "f")
    assert 1 == len(server.asked)
