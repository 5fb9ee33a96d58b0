"""A server that speaks Hugging Face's protocol, for the real client: files, trees, gates, and what can go wrong.

Two addresses, as there: the hub itself, and the store that it redirects large files to, which must not see the token.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from llmsession.models.bundled import bundled_path

TREE_PAGE = 3

TINY = bundled_path().read_bytes()
REPO = "foo/Tiny-GGUF"
FILES = {
    "README.md": b"# tiny",
    "tiny-Q8_0.gguf": TINY,
    "tiny-Q4_K_M.gguf": TINY + b"4",
    "tiny-Q4_K_S.gguf": TINY + b"s",
    "big/tiny-F16-00001-of-00002.gguf": TINY + b"1",
    "big/tiny-F16-00002-of-00002.gguf": TINY + b"2",
    "mmproj-tiny-f16.gguf": TINY + b"m",
}
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)")


@dataclass
class Repo:
    """`branches` are names to commits, `commits` the files of each."""

    branches: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    gated: bool = False
    token: str = ""  # without it, the repository does not exist


@dataclass
class Request:
    method: str
    path: str
    range: str
    authorized: bool
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """What it has, what it shall do wrong, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    url: str = ""
    store_url: str = ""
    requests: list[Request] = field(default_factory=list)
    # Faults: each status in turn for the next requests of the hub; bytes after which the store hangs up, in turn.
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    claimed_size: int | None = None
    web_page: bool = False  # a login page in the way
    damaged: bool = False  # the store changes what passes
    ignores_ranges: bool = False
    chunk: int = 1 << 16
    pause: float = 0.0  # seconds between two chunks
    begun: threading.Event = field(default_factory=threading.Event)
    # Where in a file the store holds still, until it may go on: a test does there what it wants.
    halt_at: int | None = None
    halted: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def add(self, repo_id: str, files: dict[str, bytes], *, branch: str = "main", **settings: bool | str) -> str:
        """A commit with these files on the branch; gives the commit."""
        listed = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        commit = hashlib.sha1(f"{repo_id} {branch} {listed}".encode()).hexdigest()
        repo = self.repos.setdefault(repo_id, Repo({}, {}))
        repo.branches[branch] = commit
        repo.commits[commit] = files
        for name, value in settings.items():
            setattr(repo, name, value)
        return commit

    def sent(self) -> int:
        """Bytes of files that left the store."""
        return sum(request.sent for request in self.requests)

    def asked(self, method: str, part: str) -> list[Request]:
        """Requests of that kind."""
        return [request for request in self.requests if request.method == method and part in request.path]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """On 127.0.0.1, until the block is left."""
    hub = Hub()
    servers = []
    for name, handler in (("url", _HubHandler), ("store_url", _StoreHandler)):
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, hub))
        server.daemon_threads = True
        setattr(hub, name, f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._take()

    def do_GET(self) -> None:
        self._take()

    def _take(self) -> None:
        self.request_ = Request(
            self.command, unquote(self.path), self.headers.get("Range", ""), "Authorization" in self.headers
        )
        self.hub.requests.append(self.request_)
        with contextlib.suppress(ConnectionError):
            self.answer()

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.request_.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _HubHandler(_Handler):
    def answer(self) -> None:
        hub = self.hub
        if hub.statuses and (status := hub.statuses.pop(0)) != 200:
            return self.reply(status, b"trouble")
        if hub.web_page:
            return self.reply(200, b"<html>please log in</html>", Content_Type="text/html", ETag='"abc"')
        path = unquote(urlsplit(self.path).path)
        if found := _RESOLVE.fullmatch(path):
            return self._with_files(found[1], found[2], lambda commit, files: self._resolve(commit, files, found[3]))
        if found := _TREE.fullmatch(path):
            return self._with_files(found[1], found[2], lambda commit, files: self._tree(files))
        return self.reply(404, b"Not Found")

    def _with_files(self, repo_id, revision, use) -> None:
        repo = self.hub.repos.get(repo_id)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and token != repo.token):
            return self.reply(401, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repo.gated and not token:
            return self.reply(401, b"", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if repo.gated and token != "granted":
            return self.reply(403, b"", X_Error_Code="GatedRepo", X_Error_Message="Ask for access")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self.reply(404, b"", X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return use(commit, repo.commits[commit])

    def _resolve(self, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[name]
        if name.endswith(
            (".gguf", ".safetensors", ".tar.gz", ".zip")
        ):  # large files: the pointer here, the bytes elsewhere
            digest = hashlib.sha256(data).hexdigest()
            size = self.hub.claimed_size or len(data)
            return self.reply(
                302, b"", X_Repo_Commit=commit, X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(size),
                Location=f"{self.hub.store_url}/{digest}?signature=abc",
            )  # fmt: skip
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        length = str(len(data))
        return self.reply(200, data, X_Repo_Commit=commit, ETag=f'"{digest}"', Content_Length=length)

    def _tree(self, files: dict[str, bytes]) -> None:
        """Page by page, as `Link: <…>; rel="next"` says."""
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        entries: list[dict[str, object]] = []
        for name, data in sorted(files.items()):
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            if name.endswith(".gguf"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        folders = {name.rpartition("/")[0] for name in files if "/" in name}
        entries += [{"type": "directory", "path": name, "size": 0, "oid": "1" * 40} for name in sorted(folders)]
        page, rest = entries[start : start + TREE_PAGE], entries[start + TREE_PAGE :]
        headers = {"Content_Type": "application/json"}
        if rest:
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.url}{path}?recursive=true&cursor={start + TREE_PAGE}>; rel="next"'
        self.reply(200, json.dumps(page).encode(), **headers)


class _StoreHandler(_Handler):
    def answer(self) -> None:
        hub = self.hub
        digest = urlsplit(self.path).path.strip("/")
        files = [data for repo in hub.repos.values() for commit in repo.commits.values() for data in commit.values()]
        data = next(data for data in files if hashlib.sha256(data).hexdigest() == digest)
        if hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        etag = f'"{hashlib.sha256(data).hexdigest()}"' if not hub.damaged else '"another"'
        same = self.headers.get("If-Range", etag) == etag
        status, headers = 200, {"ETag": etag}
        if same and (asked := re.fullmatch(r"bytes=(\d+)-", self.request_.range)) and not hub.ignores_ranges:
            start = int(asked[1])
            if start >= len(data):
                return self.reply(416, b"", Content_Range=f"bytes */{len(data)}")
            status, headers = 206, {"ETag": etag, "Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.reply(status, b"", Content_Length=str(len(data) - start), Accept_Ranges="bytes", **headers)
        cut = hub.cuts.pop(0) if hub.cuts else None
        for place in range(start, len(data), hub.chunk):
            chunk = data[place : place + hub.chunk]
            if cut is not None and self.request_.sent + len(chunk) > cut:
                self.wfile.write(chunk[: cut - self.request_.sent])
                self.request_.sent = cut
                self.close_connection = True
                return None
            self.wfile.write(chunk)
            self.wfile.flush()
            self.request_.sent += len(chunk)
            hub.begun.set()
            if hub.halt_at is not None and start + self.request_.sent >= hub.halt_at:
                hub.halted.set()
                hub.may_go_on.wait(20)
            if hub.pause:
                time.sleep(hub.pause)
        return None
