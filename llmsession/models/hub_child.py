"""A process that fetches files from Hugging Face into its cache, for hub.py: a process can be ended at any moment.

It reads one request, a line of JSON, from stdin, and ends when stdin does; it writes lines of JSON to stdout. A file
that arrives is `blobs/DIGEST.incomplete` in the cache until all of it is there and checked, so that a later try goes on
from where this one was killed; huggingface_hub's own download begins anew (since 1.0). Its locks, its names and its
snapshots are used, so that other tools find the file.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from llmsession.errors import DigestError, DiskFullError, FetchError, GatedModelError, ModelNotFoundError
from llmsession.models.quantization import (
    SUFFIX,
    describe_size,
    find_meant,
    find_nearest,
    list_models,
    list_shards,
)

# What may be a file's name in the cache.
_BLOB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}")
# So much, at most, is lost when it is killed.
CHUNK = 1 << 16
# So often it tells how far it is, in seconds.
TELL_EVERY = 0.1
# So many choices are shown, at most, where a file does not exist.
MOST_SHOWN = 20
# What a file is called that is not what it should be; nothing reads it again.
DAMAGED = ".damaged"
# How often a request is made again that the hub could not answer, and the longest pause between two, in seconds.
TRIES, LONGEST_PAUSE = 4, 4.0


class Request(msgspec.Struct, kw_only=True):
    """Of `repo_id` at `revision`: the model that `file` means with all its shards, or all files of the `patterns`.

    `recheck`: what is in the cache is not trusted, since it could not be read.
    """

    repo_id: str
    revision: str
    file: str = ""
    patterns: tuple[str, ...] = ()
    token: str | None = None
    recheck: bool = False


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What it writes: how far it is (`total` in bytes), or the `paths` of what was asked for, or the `error`."""

    done: int = 0
    total: int | None = None
    paths: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""
    details: dict[str, Any] = {}


class RemoteFile(msgspec.Struct, kw_only=True):
    """A file of a repository, as the hub describes it. `digest` is the name of its blob in the cache."""

    name: str
    commit: str
    digest: str
    size: int | None


def main() -> None:
    """One request, to its end."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no line of ours
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(told: Told) -> None:
        out.write(msgspec.json.encode(told) + b"\n")

    try:
        tell(Told(paths=tuple(str(path) for path in Fetch(request, tell).run())))
    except FetchError as error:
        details = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        tell(Told(error=str(error), kind=type(error).__name__, details=details))


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    os._exit(1)


class Fetch:
    """The work of one request."""

    def __init__(self, request: Request, tell: Any) -> None:
        from huggingface_hub import constants, get_token
        from huggingface_hub.utils import build_hf_headers

        self._request = request
        self._tell = tell
        self._repo_id, self._revision = request.repo_id, request.revision
        self._token: str | bool = request.token or get_token() or False
        self._headers = build_hf_headers(token=self._token, library_name="llmsession")
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        self._cache = Path(constants.HF_HUB_CACHE)
        self._folder = self._cache / f"models--{self._repo_id.replace('/', '--')}"
        self._commit = ""
        self._done, self._total, self._told = 0, 0, 0.0

    def run(self) -> list[Path]:
        """Where the files are. Raises FetchError."""
        from huggingface_hub import constants

        with self._explained():
            files = self._describe_all(self._choose())
            self._total = sum(file.size or 0 for file in files)
            self._check_room(files)
            for file in files:
                # Beyond that the hub wants its own way of fetching, which is what linking then takes.
                if (file.size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE:
                    self._ensure_blob(file)
                self._tell_progress()
            return [self._link(file) for file in files]

    # What is wanted.

    def _choose(self) -> list[str] | list[RemoteFile]:
        request = self._request
        if request.patterns:
            return self._match(request.patterns)
        wanted = request.file
        guesses = [wanted] if wanted.lower().endswith(SUFFIX) else [wanted + SUFFIX, wanted]
        for guess in guesses:
            if (found := self._describe(guess)) is not None:
                shards = list_shards(guess)
                return [found] if len(shards) == 1 else shards
        models = list_models(self._list_files())
        found_names = find_meant(wanted, models)
        if len(found_names) != 1:
            self._miss(wanted, models, found_names)
        return list_shards(found_names[0])

    def _match(self, patterns: tuple[str, ...]) -> list[str]:
        from huggingface_hub.utils import filter_repo_objects

        files = self._list_files()
        found = sorted(filter_repo_objects(files, allow_patterns=list(patterns)))
        if not found:
            raise ModelNotFoundError(
                f"{self._repo_id} has none of the files {', '.join(patterns)}: it has {', '.join(sorted(files)[:10])}",
                candidates=sorted(files),
            )
        return found

    def _list_files(self) -> dict[str, int]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(token=self._token, library_name="llmsession")
        tree = self._patiently(
            lambda: list(api.list_repo_tree(self._repo_id, recursive=True, revision=self._hub_revision))
        )
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    def _miss(self, wanted: str, models: dict[str, int], fitting: list[str]) -> NoReturn:
        shown = fitting or list(models)
        lines = [f"{describe_size(models[name]):>10}  {name}" for name in shown[:MOST_SHOWN]]
        if len(shown) > MOST_SHOWN:
            lines.append(f"and {len(shown) - MOST_SHOWN} more")
        where = self._repo_id if self._revision == "HEAD" else f"{self._repo_id} at {self._revision}"
        near = find_nearest(wanted, models)
        if fitting:
            what = "\n".join([f"{wanted!r} may mean several files of {where}; name one:", *lines])
        elif models:
            hint = f" Did you mean {near}?" if near is not None else ""
            what = "\n".join([f"{where} has no file {wanted!r}.{hint} There are:", *lines])
        else:
            what = f"{where} has no GGUF file: look for a repository whose name ends in -GGUF, at {self._url}"
        raise ModelNotFoundError(what, candidates=shown)

    def _describe_all(self, chosen: Iterable[str | RemoteFile]) -> list[RemoteFile]:
        files = []
        for each in chosen:
            found = self._describe(each) if isinstance(each, str) else each
            if found is None:
                raise ModelNotFoundError(f"{self._repo_id} lacks the shard {each}: ask its author", candidates=())
            files.append(found)
        return files

    def _describe(self, name: str) -> RemoteFile | None:
        """What the hub says of a file; None where there is none of that name. All are of the first one's commit."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        url = hf_hub_url(self._repo_id, name, revision=self._commit or self._hub_revision)
        try:
            said = self._patiently(lambda: get_hf_file_metadata(url, headers=self._headers, token=self._token))
        except EntryNotFoundError:
            return None
        if not said.commit_hash or not said.etag or not _BLOB_NAME.fullmatch(said.etag):
            raise FetchError(
                f"{url} answers, but not as Hugging Face does: is a login page in the way, or HF_ENDPOINT wrong?"
            )
        self._commit = said.commit_hash  # a branch may move on between two shards
        return RemoteFile(name=name, commit=said.commit_hash, digest=said.etag, size=said.size)

    @property
    def _hub_revision(self) -> str:
        return "main" if self._revision == "HEAD" else self._revision

    @property
    def _url(self) -> str:
        return f"https://huggingface.co/{self._repo_id}"

    # Fetching it.

    def _blob(self, file: RemoteFile) -> Path:
        return self._folder / "blobs" / file.digest

    def _partial(self, file: RemoteFile) -> Path:
        return self._blob(file).with_name(f"{file.digest}.incomplete")

    def _check_room(self, files: list[RemoteFile]) -> None:
        needed = sum((file.size or 0) - _size(self._partial(file)) for file in files if not self._blob(file).exists())
        self._cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache).free
        if needed > free:
            raise DiskFullError(
                f"{self._repo_id} needs {describe_size(needed)} in {self._cache}, where {describe_size(free)} are "
                "free: make room, name another folder with HF_HOME, or take a smaller quantization",
                needed_bytes=needed,
                free_bytes=free,
            )

    def _ensure_blob(self, file: RemoteFile) -> None:
        from huggingface_hub.utils import WeakFileLock

        blob = self._blob(file)
        locks = self._cache / ".locks" / self._folder.name
        for folder in (blob.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{file.digest}.lock"):
            if blob.exists() and self._request.recheck and find_fault(blob, file) is not None:
                blob.replace(blob.with_suffix(DAMAGED))
            if not blob.exists():
                self._fetch_blob(file)
            else:
                self._done += file.size or 0

    def _fetch_blob(self, file: RemoteFile) -> None:
        partial = self._partial(file)
        if file.size is not None and _size(partial) > file.size:
            partial.unlink()
        resumed = _size(partial) > 0
        fault = self._fetch_rest(file, partial)
        if fault is not None and resumed:
            partial.unlink()  # what an earlier try had left was bad, as after a loss of power
            fault = self._fetch_rest(file, partial)
        if fault is not None:
            aside = partial.with_suffix(DAMAGED)
            partial.replace(aside)
            raise DigestError(
                f"{file.name} of {self._repo_id} arrived damaged: {fault}. It was put aside as {aside}; "
                "try again, and look for a proxy that changes what passes"
            )
        partial.replace(self._blob(file))

    def _fetch_rest(self, file: RemoteFile, partial: Path) -> str | None:
        """From where it ends, and again from there where the connection is cut; what is wrong with the whole, if so."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(self._repo_id, file.name, revision=file.commit)
        before, in_vain = self._done, 0
        with _CountedFile(partial, lambda position: self._advance(before + position)) as arriving:
            while True:
                position = arriving.seek(0, os.SEEK_END)
                self._advance(before + position)
                try:
                    http_get(url, arriving, resume_size=position, headers=self._headers, expected_size=file.size)
                    break
                except HfHubHTTPError:
                    raise
                except OSError:
                    # A server that takes no ranges has sent all of it once more (huggingface_hub before 2 lets it).
                    if not position or file.size is None or arriving.tell() <= file.size:
                        raise
                    arriving.truncate(0)
                except _http_error():
                    in_vain = in_vain + 1 if arriving.tell() <= position else 0
                    if in_vain == TRIES:
                        raise
                    time.sleep(min(LONGEST_PAUSE, 0.5 * 2**in_vain))
            os.fsync(arriving.fileno())
        fault = find_fault(partial, file)
        if fault is not None:
            self._done = before
        return fault

    def _link(self, file: RemoteFile) -> Path:
        """Where the file is in the snapshot of its commit; the blob is there, so that this fetches nothing."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self._repo_id, file.name, revision=self._hub_revision, token=self._token))

    def _advance(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._told > TELL_EVERY:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._told = time.monotonic()
        self._tell(Told(done=self._done, total=self._total or None))

    # What can go wrong.

    def _patiently(self, ask: Any) -> Any:
        """Ask again where the hub is busy or ill; not where it cannot be reached at all, which a user wants to know."""
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(TRIES):
            try:
                return ask()
            except HfHubHTTPError as error:
                status = error.response.status_code
                if attempt == TRIES - 1 or (status != 429 and status < 500):
                    raise
                time.sleep(min(LONGEST_PAUSE, 0.5 * 2**attempt))
        raise AssertionError  # pragma: no cover - the loop returns or raises

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise GatedModelError(
                f"{self._repo_id} is gated: accept its terms at {self._url}, then `hf auth login`, or set HF_TOKEN",
                url=self._url,
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelNotFoundError(
                f"Hugging Face has no repository {self._repo_id}, or it is private: look at {self._url}; for a private "
                "one, `hf auth login`, or set HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelNotFoundError(
                f"{self._repo_id} has no revision {self._revision!r}: give a branch, a tag, a commit, or HEAD"
            ) from error
        except errors.EntryNotFoundError as error:
            raise ModelNotFoundError(f"{self._repo_id} has no such file: {error}") from error
        except errors.HfHubHTTPError as error:
            raise self._explain_status(error.response.status_code) from error
        except _http_error() as error:
            raise FetchError(
                f"{_endpoint()} cannot be reached ({type(error).__name__}: {error}): is there a network? "
                "What had arrived is kept"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self._cache).free
                raise DiskFullError(
                    f"the disk of {self._cache} is full: make room and call again, what had arrived is kept",
                    needed_bytes=max(0, self._total - self._done),
                    free_bytes=free,
                ) from error
            raise FetchError(f"{self._repo_id} could not be fetched into {self._cache}: {error}") from error

    def _explain_status(self, status: int) -> FetchError:
        if status in (401, 403):
            return GatedModelError(
                f"Hugging Face refuses {self._repo_id} ({status}): the token is wrong or may not read it; look at "
                f"{self._url}, then `hf auth login`, or set HF_TOKEN",
                url=self._url,
            )
        if status == 429:
            return FetchError(
                "Hugging Face has had too many requests from here (429): wait some minutes, or log in with "
                "`hf auth login`, which raises the limit"
            )
        return FetchError(f"{_endpoint()} is in trouble (HTTP {status}): try again later; what had arrived is kept")


def find_fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a file that has arrived: its size, its first bytes, its digest where the hub gives one."""
    size = _size(path)
    if file.size is not None and size != file.size:
        return f"it has {size} bytes of {file.size}"
    with path.open("rb") as arrived:
        start = arrived.read(4)
        if file.name.lower().endswith(SUFFIX) and start != b"GGUF":
            return "it is not a GGUF file" + (", but a web page" if start.lstrip()[:1] == b"<" else "")
        arrived.seek(0)
        computed = _digest(arrived, file.digest, size)
    if computed is not None and computed != file.digest:
        return f"its digest is {computed[:16]}…, not {file.digest[:16]}…"
    return None


def _digest(content: BinaryIO, like: str, size: int) -> str | None:
    """SHA-256 of a large file, git's SHA-1 of a small one; None where the hub's word is neither."""
    if len(like) == 64:
        digest = hashlib.sha256()
    elif len(like) == 40:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        return None
    while chunk := content.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _http_error() -> type[Exception]:
    """The root of the errors of huggingface_hub's HTTP library, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError

    root: type[Exception] = HfHubHTTPError.__bases__[0]
    return root


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


class _CountedFile(io.FileIO):
    """Tells its position after each write. Unbuffered: what was written is there, whatever happens to us."""

    def __init__(self, path: Path, advance: Any) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+")
        self._advance = advance

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += super().write(view[written:])
        self._advance(self.tell())
        return written


if __name__ == "__main__":
    main()
