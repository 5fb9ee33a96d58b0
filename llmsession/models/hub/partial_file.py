"""A partially downloaded file: what was written is kept, and the complete file is checked."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from llmsession.models.quantization import SUFFIX


class RemoteFile(msgspec.Struct, kw_only=True):
    """A file of a repository, as described by the hub. `digest` names its blob in the cache."""

    name: str
    commit: str
    digest: str
    size: int | None


def find_fault(path: Path, file: RemoteFile) -> str | None:
    """Return what is wrong with a downloaded file: its size, first bytes, or digest."""
    size = size_of(path)
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
    """Return the SHA-256 of a large file or git's SHA-1 of a small one; None if the hub gives neither."""
    if len(like) == 64:
        digest = hashlib.sha256()
    elif len(like) == 40:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        return None
    while chunk := content.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the size in bytes; 0 if there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class CountedFile(io.FileIO):
    """Reports its position after each write. Unbuffered, so that what was written survives a kill."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+")
        self._advance = advance

    def write(self, data: Any, /) -> int:
        """Write all of the data."""
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += super().write(view[written:])
        self._advance(self.tell())
        return written
