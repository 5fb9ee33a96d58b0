"""The lines that a person typed, kept between starts: in a file that only this user of the machine can read."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

# Of a file that has grown beyond this many bytes, the newest half is kept.
LIMIT = 1_000_000


def history_file(folder: Path, user: str) -> Path:
    """One for each user of a memory, who may be called anything."""
    return folder / f"lines-{hashlib.sha256(user.encode(errors='replace')).hexdigest()[:16]}"


class LineHistory(FileHistory):
    """A disk that is full, or a file that is not ours, costs the history and not the chat."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        try:
            self._trim()
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """At the end of the file."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)

    def forget(self) -> None:
        """No line of it is left. Raises OSError."""
        self._loaded_strings = []
        self._path.unlink(missing_ok=True)

    def _trim(self) -> None:
        if not self._path.exists() or self._path.stat().st_size <= LIMIT:
            return
        _, _, kept = self._path.read_bytes()[-LIMIT // 2 :].partition(b"\n\n#")  # what an entry begins with
        side = self._path.with_name(f"{self._path.name}.new-{os.getpid()}")
        side.touch(mode=0o600)
        side.write_bytes(b"\n#" + kept)
        side.replace(self._path)
