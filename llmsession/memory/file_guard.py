"""Checks that the open file is still the one at its path: what is written to a deleted file is lost."""

from __future__ import annotations

import os
from pathlib import Path

from llmsession.types.errors import StoreError


class FileGuard:
    """Watches the database file and its log. A check costs two `stat` calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = {name: _identify(name) for name in (str(path), f"{path}-wal")}

    def check(self) -> None:
        """Raise StoreError if one of them was deleted or replaced."""
        for name, before in self._files.items():
            now = _identify(name)
            if before is None:
                self._files[name] = now
            elif now != before:
                raise StoreError(
                    f"{name} was {'deleted' if now is None else 'replaced'} while it was open, and what is written now "
                    "would be lost: close this memory and open it again"
                )


def _identify(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - once per commit: a Path would cost more than the call
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
