"""Download one large file from a public address. An interrupted download is resumed.

Unlike the rest of this room, it follows redirects to other hosts, and uses the proxy of the environment: it talks to
the internet, not to a server on this machine. It sends no key.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from llmsession.system.atomic_file import write_atomically
from llmsession.types.errors import FetchError
from llmsession.wire.lean_httpx import httpx

# Seconds for a connection, and between two pieces: beyond this the line is dead.
TIMEOUT = httpx.Timeout(30.0, connect=15.0)
# How often it is tried in vain, and the longest pause between two tries, in seconds.
TRIES, LONGEST_PAUSE = 4, 4.0

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Trouble(Exception):  # noqa: N818 - never leaves this file: it says that another try may help
    """What went wrong in one attempt."""


async def download(
    url: str, path: Path, *, size: int | None = None, advance: Callable[[int, int | None], None] = lambda _d, _t: None
) -> None:
    """Download the whole file to `path`. An existing part is kept if the server confirms that it is of the same file.

    `advance` is called with the bytes that have arrived and those expected in all, for the first time before anything
    is read; it may raise to refuse. After cancellation the part that has arrived is kept. Raises FetchError if the file
    cannot be downloaded, OSError if the disk is full.
    """
    if size is not None and path.is_file() and path.stat().st_size == size:
        advance(size, size)
        return
    with _explained(url, kept="; what has come is kept"):
        async with httpx.AsyncClient(
            follow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity", "User-Agent": "llmsession"}
        ) as client:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
                await _Download(client, url, file, path, advance).run(size)


async def fetch_small(url: str) -> bytes:
    """Return the content of a small file. Raises FetchError."""
    with _explained(url):
        async with httpx.AsyncClient(follow_redirects=True, timeout=TIMEOUT) as client:
            response = await client.get(url, headers={"User-Agent": "llmsession"})
            if response.status_code != 200:
                raise _refused(url, response)
            return response.content


async def reach(url: str, timeout: float) -> str | None:
    """Return why the address cannot be reached; None if it answers anything. `timeout` is in seconds."""
    try:
        async with httpx.AsyncClient(timeout=timeout) as client:
            await client.head(url, headers={"User-Agent": "llmsession"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return None


class _Download:
    """One file from one address."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        file: BinaryIO,
        path: Path,
        advance: Callable[[int, int | None], None],
    ) -> None:
        self._client, self._url, self._file, self._path, self._advance = client, url, file, path, advance

    async def run(self, size: int | None) -> None:
        """Retry until the whole file has arrived, or no more data comes."""
        in_vain = 0
        while True:
            before = self._end()
            try:
                await self._fetch_rest(size)
                break
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, _Trouble) as error:
                in_vain = in_vain + 1 if self._end() <= before else 0
                # A host that is not there at all is told at once: a user wants to know.
                if in_vain == TRIES or (isinstance(error, httpx.ConnectError) and not before):
                    raise
            await anyio.sleep(min(LONGEST_PAUSE, 0.5 * 2**in_vain))
        await anyio.to_thread.run_sync(os.fsync, self._file.fileno())
        _validator_of(self._path).unlink(missing_ok=True)

    async def _fetch_rest(self, size: int | None) -> None:
        """Fetch from where the file ends, or from its start if the server does not support that."""
        done, validator = self._end(), _read_validator(self._path)
        headers = {"Range": f"bytes={done}-", "If-Range": validator} if done and validator else {}
        async with self._client.stream("GET", self._url, headers=headers) as response:
            start, total = self._check(response)
            if start not in (0, done):
                raise _Trouble("the server sends another part than was asked for")
            if start != done:  # the whole: it has changed, or the server knows no parts
                done = self._forget()
            if size is not None and total is not None and total != size:
                raise FetchError(
                    f"{self._url} has {total} bytes, where {size} are expected: is a login page or a proxy in the way, "
                    "or was it published again?"
                )
            self._advance(done, total)
            _keep_validator(self._path, response)
            async for chunk in response.aiter_raw():
                done += self._file.write(chunk)
                self._advance(done, total)
        if total is not None and done != total:
            raise _Trouble(f"{done} of {total} bytes came")

    def _check(self, response: httpx.Response) -> tuple[int, int | None]:
        """Return where the body starts in the file, and how long the whole file is."""
        status = response.status_code
        if self._url.startswith("https:") and response.url.scheme != "https":
            raise FetchError(f"{self._url} leads to {response.url}, which is not encrypted: nothing was fetched")
        if status == 416:
            self._forget()
            raise _Trouble("the server has no such part")
        if status == 429 or status >= 500:
            raise _Trouble(f"the server answers with status {status}")
        if status == 206:
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None:
                raise _Trouble("the server sends a part, and does not say which")
            return int(found[1]), None if found[2] == "*" else int(found[2])
        if status != 200:
            raise _refused(self._url, response)
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None

    def _end(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def _forget(self) -> int:
        self._file.truncate(0)
        return self._file.seek(0)


# What says whether the file on the server is still the one whose beginning is here (RFC 9110, If-Range).


def _validator_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.validator")


def _read_validator(path: Path) -> str:
    with contextlib.suppress(OSError):
        return _validator_of(path).read_text(encoding="ascii")
    return ""


def _keep_validator(path: Path, response: httpx.Response) -> None:
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    write_atomically(_validator_of(path), validator.encode("ascii", errors="replace"))


@contextlib.contextmanager
def _explained(url: str, kept: str = "") -> Iterator[None]:
    """Turn httpx's errors, and the failure of the last attempt, into FetchError."""
    try:
        yield
    except _Trouble as error:
        raise FetchError(f"{url} cannot be fetched: {error}; try again later{kept}") from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a proxy that is none
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchError(
                f"{url} cannot be trusted ({cause.verify_message}): where a proxy opens what passes, name the file of "
                "its authority with SSL_CERT_FILE"
            ) from error
        words = str(error) or type(error).__name__
        raise FetchError(f"{url} cannot be reached ({words}): look at the network{kept}") from error


def _refused(url: str, response: httpx.Response) -> FetchError:
    status = response.status_code
    where = f" (it led to {response.url.host})" if response.history else ""
    why = {
        404: "there is no such file: was it withdrawn, or its name misspelt?",
        403: "the server refuses it: too many requests from here, or a proxy that forbids it",
        407: "the proxy wants a name and a password, in HTTPS_PROXY",
    }.get(status, "the server refuses it")
    return FetchError(f"{url}{where}: {why} (HTTP {status})")
