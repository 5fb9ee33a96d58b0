"""KvStore: the saved KV of conversations on disk, within a budget in bytes. The least recently used is removed first.

Each conversation has a data file, written by the engine, and a note, which names that file and its checksum. The note
is renamed into place after the file is written, so a kill at any moment leaves either the older pair or the new one.
Files that no note names are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from llmsession.system.atomic_file import write_atomically
from llmsession.system.named_files import MARK, digest_name, is_forgotten, remove_copies

if TYPE_CHECKING:
    from llmsession.backends.launch import Launch

# Seconds after which a file without a note is taken for the leftover of a killed program.
LEFT_AFTER = 600.0
# Seconds for which the mark of a forgotten conversation is kept. No engine is expected to hold a conversation that long
# without use.
MARKED_FOR = 30 * 24 * 3600.0
# Bytes that stay free on the disk, whatever the budget is.
LEAST_FREE = 512 * 2**20
# Other programs write to the folder as well, so it is scanned once in this many saves.
_LOOK_EVERY = 64
_SAMPLES = 64
_SAMPLE_BYTES = 4096
_HEAD_BYTES = 2**20
# Fields of a Launch that do not affect the content of an engine's file.
_NO_MATTER = {"info", "check_memory", "alias", "threads", "cache_ram_mib", "start_timeout", "on_progress"}
_NO_MATTER |= {"cache", "logs", "records", "kv_folder", "model_path"}


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The note. `prefixes`: digests of the conversation after each turn; `lengths`: its characters up to there."""

    file: str
    tokens: int
    size: int
    checksum: int
    prefixes: tuple[str, ...]
    lengths: tuple[int, ...]
    prompt_rate: float


class _File(NamedTuple):
    written: float
    size: int
    name: str


class KvStore:
    """The saved KV of one engine and model, which `stamp` identifies, in hexadecimal digits."""

    def __init__(self, folder: Path, stamp: str, budget: int) -> None:
        self.folder = folder
        self._stamp = stamp
        self._budget = budget
        self._total = self._kept = 0

    def find(self, conversation: str) -> Saved | None:
        """Return the note of a conversation, if any. If it cannot be read, the conversation's files are removed."""
        note = self._note(conversation)
        try:
            return msgspec.json.decode(note.read_bytes(), type=Saved)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            self.forget(conversation)
            return None

    def is_whole(self, conversation: str, saved: Saved) -> bool:
        """Whether the file is intact. If so, it counts as just used; if not, the conversation's files are removed."""
        path = self.folder / saved.file
        try:
            if path.stat().st_size == saved.size and _checksum(path) == saved.checksum:
                os.utime(self._note(conversation))
                return True
        except OSError:
            pass
        self.forget(conversation)
        return False

    def new_file(self, conversation: str) -> Path:
        """Return a path for the engine to write to. The file is not used before `keep`."""
        return self.folder / f"{self._stem(conversation)}-{secrets.token_hex(6)}.kv"

    def has_room(self, size: int) -> bool:
        """Whether a file of `size` bytes may be written."""
        try:
            return size <= self._budget // 2 and shutil.disk_usage(self.folder).free > size + LEAST_FREE
        except OSError:
            return False

    def keep(self, conversation: str, path: Path, saved: Saved) -> None:
        """Make this file the saved KV of the conversation, unless that was forgotten. Raises OSError."""
        before = self.find(conversation)
        size = path.stat().st_size
        saved = msgspec.structs.replace(saved, file=path.name, size=size, checksum=_checksum(path))
        note = self._note(conversation)
        if is_forgotten(self.folder, conversation):
            self._remove(path.name)
            return
        write_atomically(note, msgspec.json.encode(saved))
        if is_forgotten(self.folder, conversation):  # meanwhile
            self.forget(conversation)
        if before is not None and before.file != path.name:
            self._remove(before.file)
        self._total += size - (before.size if before is not None else 0)
        self._kept += 1
        if self._total > self._budget or self._kept % _LOOK_EVERY == 1:
            self.shrink()

    def forget(self, conversation: str) -> None:
        """Remove all files of the conversation, whichever engine wrote them."""
        remove_copies(self.folder, conversation)

    def shrink(self) -> None:
        """Shrink the folder to the budget, over all engines and models, and remove what killed programs left behind."""
        notes, files = self._look()
        self._total = 0
        for stem, those in files.items():
            unnamed = those[:-1] if stem in notes else those
            for file in unnamed:
                if time.time() - file.written > LEFT_AFTER:
                    self._remove(file.name)
                else:
                    self._total += file.size
            self._total += those[-1].size if stem in notes else 0
        for stem in sorted(notes, key=notes.__getitem__):
            if self._total <= self._budget:
                return
            self._remove(f"{stem}.json")
            for file in files.get(stem, ()):
                self._remove(file.name)
                self._total -= file.size

    def _look(self) -> tuple[dict[str, float], dict[str, list[_File]]]:
        """Return when each note was last used, and the files of each conversation, oldest first.

        Old marks of forgotten conversations are removed.
        """
        notes: dict[str, float] = {}
        files: dict[str, list[_File]] = {}
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    found = entry.stat()
                    file = _File(found.st_mtime, found.st_size, entry.name)
                    if file.name.endswith(".json"):
                        notes[file.name.removesuffix(".json")] = file.written
                    elif not file.name.endswith(MARK):
                        files.setdefault("-".join(file.name.split("-")[:2]), []).append(file)
                    elif time.time() - file.written > MARKED_FOR:
                        self._remove(file.name)
        for those in files.values():
            those.sort()
        return notes, files

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def _stem(self, conversation: str) -> str:
        return f"{self._stamp}-{digest_name(conversation)}"

    def _note(self, conversation: str) -> Path:
        return self.folder / f"{self._stem(conversation)}.json"


def stamp_engine(launch: Launch, backend: str, version: str, engine: Path | None) -> str:
    """Return a digest of what a saved file depends on: samples of the model's bytes, the build, and the flags.

    Takes a few milliseconds of reading.
    """
    found = hashlib.sha256()
    fields: dict[str, Any] = {
        name: repr(getattr(launch, name)) for name in launch.__struct_fields__ if name not in _NO_MATTER
    }
    size = launch.model_path.stat().st_size
    built = [engine.stat().st_size, engine.stat().st_mtime_ns] if engine is not None else []
    found.update(msgspec.json.encode([backend, version, built, fields, size]))
    with launch.model_path.open("rb") as file:
        found.update(file.read(_HEAD_BYTES))
        for number in range(_SAMPLES):
            file.seek(size * number // _SAMPLES)
            found.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _HEAD_BYTES))
        found.update(file.read())
    return found.hexdigest()[:24]


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            found = zlib.crc32(block, found)
    return found
