"""Write a file so that its readers see the old content or the new, never a part: write beside it, then rename."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".new"
_PID = re.compile("[0-9]{1,9}")
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows


def write_atomically(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o600) -> None:
    """Replace what `path` holds with `content`. See `replacing`."""
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Open a new file, which takes the place of `path` when the block ends without an exception.

    A file that exists keeps its permissions, and a symbolic link stays one; `mode`, less the umask, is for a new file.
    With `durable`, file and name are on the disk when this returns, also after a power cut. Raises OSError: then
    `path` holds what it held before.
    """
    path = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
    side = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        with os.fdopen(os.open(side, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode), "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        side.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            side.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def remove_abandoned(folder: Path, is_alive: Callable[[int], bool]) -> None:
    """Remove the files of writers that were killed between writing and renaming. `is_alive` takes a process id."""
    for side in folder.glob(f".*{_SUFFIX}"):
        pid = side.name.split(".")[-3]
        if not (_PID.fullmatch(pid) and is_alive(int(pid))):
            with contextlib.suppress(OSError):
                side.unlink()


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a power cut. Windows cannot open a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
