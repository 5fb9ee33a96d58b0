"""Downloads files from Hugging Face into its cache, in the hub child process.

A file is `blobs/DIGEST.incomplete` until it is complete and checked, so a later try resumes where this one was killed;
huggingface_hub's own download starts over (since 1.0). Its locks, names and snapshots are used, so that other tools
find the file. https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from llmsession.models.hub.errors import TRIES, explained, http_error, page_of, patiently, pause
from llmsession.models.hub.partial_file import CountedFile, RemoteFile, find_fault, size_of
from llmsession.models.hub.protocol import DownloadRequest
from llmsession.models.quantization import SUFFIX, find_meant, find_nearest, list_models, list_shards
from llmsession.types.errors import DigestError, DiskFullError, FetchError, ModelNotFoundError
from llmsession.types.units import describe_size

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


class Fetch:
    """The work of one request."""

    def __init__(self, request: DownloadRequest, tell: Callable[[int, int | None], None]) -> None:
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
        """Download the files and return their paths. Raises FetchError."""
        from huggingface_hub import constants

        with explained(self._repo_id, self._revision, self._cache, lambda: max(0, self._total - self._done)):
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
        tree = patiently(lambda: list(api.list_repo_tree(self._repo_id, recursive=True, revision=self._hub_revision)))
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
            what = (
                f"{where} has no GGUF file: look for a repository whose name ends in -GGUF, at {page_of(self._repo_id)}"
            )
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
        """Return the hub's facts about a file; None if there is no such file. All files are of one commit."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        url = hf_hub_url(self._repo_id, name, revision=self._commit or self._hub_revision)
        try:
            said = patiently(lambda: get_hf_file_metadata(url, headers=self._headers, token=self._token))
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

    # Fetching it.

    def _blob(self, file: RemoteFile) -> Path:
        return self._folder / "blobs" / file.digest

    def _in_snapshot(self, file: RemoteFile) -> Path:
        return self._folder / "snapshots" / file.commit / file.name

    def _stored(self, file: RemoteFile) -> Path:
        """Return where the content is or will be: the blob, or the snapshot in a cache without symbolic links."""
        blob, in_snapshot = self._blob(file), self._in_snapshot(file)
        return in_snapshot if not blob.exists() and in_snapshot.is_file() else blob

    def _partial(self, file: RemoteFile) -> Path:
        return self._blob(file).with_name(f"{file.digest}.incomplete")

    def _check_room(self, files: list[RemoteFile]) -> None:
        needed = sum(
            (file.size or 0) - size_of(self._partial(file)) for file in files if not self._stored(file).exists()
        )
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
        from huggingface_hub.file_download import are_symlinks_supported
        from huggingface_hub.utils import WeakFileLock

        blob = self._blob(file)
        locks = self._cache / ".locks" / self._folder.name
        for folder in (blob.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{file.digest}.lock"):
            stored = self._stored(file)
            if stored.exists() and self._request.recheck and find_fault(stored, file) is not None:
                stored.replace(blob.with_suffix(DAMAGED))
            if not self._stored(file).exists():
                self._fetch_blob(file)
            else:
                self._done += file.size or 0
            if blob.exists() and not are_symlinks_supported(self._cache):
                # huggingface_hub would copy it. It looks for a file in the snapshot before it looks for the blob.
                self._in_snapshot(file).parent.mkdir(parents=True, exist_ok=True)
                blob.replace(self._in_snapshot(file))

    def _fetch_blob(self, file: RemoteFile) -> None:
        partial = self._partial(file)
        if file.size is not None and size_of(partial) > file.size:
            partial.unlink()
        resumed = size_of(partial) > 0
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
        """Resume the download until it is complete; return what is wrong with the file, if anything."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(self._repo_id, file.name, revision=file.commit)
        before, in_vain = self._done, 0
        with CountedFile(partial, lambda position: self._advance(before + position)) as arriving:
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
                except http_error():
                    in_vain = in_vain + 1 if arriving.tell() <= position else 0
                    if in_vain == TRIES:
                        raise
                    pause(in_vain)
            os.fsync(arriving.fileno())
        fault = find_fault(partial, file)
        if fault is not None:
            self._done = before
        return fault

    def _link(self, file: RemoteFile) -> Path:
        """Return the path of the file in its commit's snapshot. Its content exists, so nothing is downloaded."""
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self._repo_id, file.name, revision=self._hub_revision, token=self._token))

    def _advance(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._told > TELL_EVERY:
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._told = time.monotonic()
        self._tell(self._done, self._total or None)
