"""Where on disk lies what engines have read of a conversation: files that have the digest of its name in theirs.

A conversation that is forgotten leaves a mark, so that an engine that still runs writes no new one. Its name is drawn
at random and never used again.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Final

MARK: Final = ".forgotten"


def digest_name(name: str) -> str:
    """What its files are told by: 32 hexadecimal digits."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def forget_copies(folder: Path, name: str) -> None:
    """Remove the files of that conversation, of every engine and model, for good."""
    with contextlib.suppress(OSError):
        _mark(folder, name).touch()
    remove_copies(folder, name)


def remove_copies(folder: Path, name: str) -> None:
    """Remove its files; new ones may come."""
    for path in folder.glob(f"*-{digest_name(name)}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def is_forgotten(folder: Path, name: str) -> bool:
    """Whether nothing of it may be kept any more."""
    return _mark(folder, name).exists()


def _mark(folder: Path, name: str) -> Path:
    return folder / f"{digest_name(name)}{MARK}"
