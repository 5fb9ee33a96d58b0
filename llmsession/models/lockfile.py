"""llmsession.lock: the commit and content of each reference at the time of locking.

It is JSON, so that a reviewer sees the changes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from llmsession.models.quantization import list_shards
from llmsession.models.references import PackedFileRef
from llmsession.system.atomic_file import write_atomically
from llmsession.types.errors import ConfigError, DigestError, InvalidRefError

NAME = "llmsession.lock"


class LockedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`size` in bytes."""

    sha256: str
    size: int


class LockedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`files` by name in the repository: one, or the shards in order."""

    commit: str
    files: dict[str, LockedFile]


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`models` by reference, as requested."""

    version: int = 1
    models: dict[str, LockedModel] = {}

    def pin(self, ref: PackedFileRef, path: Path) -> PackedFileRef:
        """The locked file at its commit. Raises ConfigError if `path`, the lock, does not name the reference."""
        locked = self.models.get(ref)
        if locked is None:
            raise ConfigError(
                f"{ref} is not in {path}: `llmsession models lock {ref}` adds it, where that is meant", path=path
            )
        return PackedFileRef.make(ref.author, ref.repo, locked.commit, next(iter(locked.files)))


def read_lock(path: Path) -> Lock:
    """Return the lock; empty if there is no file. Raises ConfigError."""
    try:
        lock = msgspec.json.decode(path.read_bytes(), type=Lock)
    except FileNotFoundError:
        return Lock()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"the lock {path} cannot be read: {error}", path=path) from error
    if lock.version != 1 or not all(model.files for model in lock.models.values()):
        raise ConfigError(f"the lock {path} is of another version of llmsession, or damaged", path=path)
    return lock


def write_lock(path: Path, lock: Lock) -> None:
    """Write the lock atomically."""
    ordered = msgspec.structs.replace(lock, models=dict(sorted(lock.models.items())))
    content = msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n"
    write_atomically(path, content, durable=True, mode=0o666)


def lock_model(path: Path) -> LockedModel:
    """Return the lock entry of `path`, a file in a snapshot of Hugging Face's cache, and of its shards."""
    commit, name = _place(path)
    return LockedModel(commit=commit, files={shard: _measure(path, name, shard) for shard in list_shards(name)})


def check_locked(locked: LockedModel, path: Path) -> None:
    """Check that the files are the locked ones. Raises DigestError."""
    _, name = _place(path)
    for shard, wanted in locked.files.items():
        found = _measure(path, name, shard)
        if found != wanted:
            raise DigestError(
                f"{shard} is not the file that was locked: its sha256 is {found.sha256[:16]}… of {found.size} bytes, "
                f"locked is {wanted.sha256[:16]}… of {wanted.size}"
            )


def ref_of_cached(path: Path) -> PackedFileRef | None:
    """Return the full reference of a file in Hugging Face's cache; None for any other file."""
    parts = path.parts
    if "snapshots" not in parts:
        return None
    commit, name = _place(path)
    folder = parts[len(parts) - 2 - parts[::-1].index("snapshots")]
    kind, _, repo_id = folder.partition("--")
    author, _, repo = repo_id.partition("--")
    if kind != "models" or not repo or not name:
        return None
    try:
        return PackedFileRef.make(author, repo, commit, name)
    except InvalidRefError:
        return None


def _place(path: Path) -> tuple[str, str]:
    """Return the commit, and the file's name with its folders."""
    at = len(path.parts) - 1 - path.parts[::-1].index("snapshots")
    return path.parts[at + 1], "/".join(path.parts[at + 2 :])


def _measure(path: Path, name: str, shard: str) -> LockedFile:
    beside = path.parents[name.count("/")] / shard
    with beside.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LockedFile(sha256=digest, size=beside.stat().st_size)
