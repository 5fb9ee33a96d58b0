"""KvStore: what engines have read of conversations, on disk, within a budget; the least recently used goes first.

Each conversation has a file of the engine's and a note of ours that names it and its checksum. The note is renamed into
place after the file, so that a kill at any moment leaves an older pair or the new one. What no note names is swept.
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

# So long after it was written, a file without a note is what a killed program left.
LEFT_AFTER = 600.0
# An engine that runs longer than this with what it has read, and nobody asks, is not to be expected.
MARKED_FOR = 30 * 24 * 3600.0
# What stays free on the disk, whatever the budget says.
LEAST_FREE = 512 * 2**20
# Other programs write there as well: now and then it is looked what there is.
_LOOK_EVERY = 64
_SAMPLES = 64
_SAMPLE_BYTES = 4096
_HEAD_BYTES = 2**20
# Fields of a Launch that do not change what an engine's file holds.
_NO_MATTER = {"info", "check_memory", "alias", "threads", "cache_ram_mib", "start_timeout", "on_progress"}
_NO_MATTER |= {"cache", "logs", "records", "kv_folder", "model_path"}


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The note. `prefixes` are digests of the conversation after each turn, and `lengths` the letters up to there."""

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
    """Of one engine and model: `stamp` says which, in hexadecimal digits."""

    def __init__(self, folder: Path, stamp: str, budget: int) -> None:
        self.folder = folder
        self._stamp = stamp
        self._budget = budget
        self._total = self._kept = 0

    def find(self, conversation: str) -> Saved | None:
        """What is there of it. A note that cannot be read goes."""
        note = self._note(conversation)
        try:
            return msgspec.json.decode(note.read_bytes(), type=Saved)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            self.forget(conversation)
            return None

    def is_whole(self, conversation: str, saved: Saved) -> bool:
        """Whether the file is what was written; what is damaged goes. It is then used: others go before it."""
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
        """Where the engine is to write; nobody reads it until `keep`."""
        return self.folder / f"{self._stem(conversation)}-{secrets.token_hex(6)}.kv"

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be written."""
        try:
            return size <= self._budget // 2 and shutil.disk_usage(self.folder).free > size + LEAST_FREE
        except OSError:
            return False

    def keep(self, conversation: str, path: Path, saved: Saved) -> None:
        """From now on this is what there is of it, unless it was forgotten. Raises OSError."""
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
        """Nothing of it is left, whichever engine wrote it."""
        remove_copies(self.folder, conversation)

    def shrink(self) -> None:
        """To the budget, all engines and models together; and without what killed programs left."""
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
        """When each note was last used, and the files by whose they are, oldest first. Placeholders that are old go."""
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
    """What a file depends on: the model's bytes, the build, and every flag. Costs a few milliseconds of reading."""
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
