"""The releases of llama.cpp that are installed in our cache: which there are, which one is used, and changing that.

engines/llama.cpp/NAME/release.json   what it is; written before the folder gets its name
                 /NAME/files/         the archive's content
                 /chosen.json         the one that is used, and the one before it: rewritten and renamed
                 /.staging/           what is being fetched, unpacked or removed; cleared by the next installation
                 /lock                held by whoever changes anything
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from llmsession.backends.install.pinned import Asset, Chosen
from llmsession.backends.install.platforms import Platform, this_platform
from llmsession.system.atomic_file import write_atomically
from llmsession.system.paths import engines_folder
from llmsession.types.errors import FetchError, UsageError

CHOSEN = "chosen.json"
MANIFEST = "release.json"
FILES = "files"
STAGING = ".staging"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is installed. `binary` is the path of llama-server below `files`, `version` what it says of itself."""

    tag: str
    variant: str
    platform: Platform
    assets: tuple[Asset, ...]
    binary: str
    version: str


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `state`: the one that is used, the one before it, or neither."""

    folder: Path
    manifest: Manifest
    state: str = ""

    @property
    def name(self) -> str:
        """As people call it: `b6123-vulkan`."""
        return f"{self.manifest.tag}-{self.manifest.variant}"

    @property
    def binary(self) -> Path:
        """Its llama-server."""
        return self.folder / FILES / self.manifest.binary


class _Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """Names of folders."""

    current: str | None = None
    previous: str | None = None


def find_installed(cache: Path) -> Installed | None:
    """The one that is used, where it is whole and for this machine."""
    home = engines_folder(cache)
    current = _read_pointer(home).current
    found = _read_installed(home / current, "used") if current is not None else None
    if found is None or not os.access(found.binary, os.X_OK):
        return None
    # A home may be shared by machines of several kinds.
    return found if found.manifest.platform == this_platform() else None


def list_installed(cache: Path) -> list[Installed]:
    """All, the one that is used first, then the one before it, then the newest."""
    home = engines_folder(cache)
    pointer = _read_pointer(home)
    states = {pointer.current: "used", pointer.previous: "before"}
    order = ["used", "before", ""]
    found: list[Installed] = []
    with contextlib.suppress(OSError):
        folders = [path for path in home.iterdir() if not path.name.startswith(".")]
        newest_first = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
        found = [one for path in newest_first if (one := _read_installed(path, states.get(path.name, ""))) is not None]
    return sorted(found, key=lambda one: order.index(one.state))


def require_installed(cache: Path, name: str) -> Installed:
    """The one of that name. Raises UsageError, with those that there are."""
    installed = list_installed(cache)
    for one in installed:
        if one.name == name:
            return one
    names = ", ".join(dict.fromkeys(one.name for one in installed))
    there = f"there are {names}" if names else "there is none, `llmsession server install` brings one"
    raise UsageError(f"no release {name!r} of llama.cpp is installed: {there}")


def require_previous(cache: Path) -> Installed:
    """The one that was used before. Raises UsageError if there is none."""
    for one in list_installed(cache):
        if one.state == "before":
            return one
    raise UsageError("there is no release to go back to: `llmsession server list` shows what is installed")


class Installation:
    """The right to change what is installed; held by one process at a time. Made by `opened`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.staging = home / STAGING

    def clear(self, *, keep: frozenset[str] = frozenset()) -> None:
        """What an interrupted installation left, but for these files, where anything is in them."""
        for path in self.staging.iterdir():
            if path.name not in keep or not path.stat().st_size:
                _remove(path)
        pointer = _read_pointer(self.home)
        if pointer.current is None:
            return
        current = _read_installed(self.home / pointer.current, "used")
        for folder in self._folders():
            # The same release once more: it was being replaced.
            other = _read_installed(folder, "")
            if other is not None and current is not None and other.name == current.name and folder != current.folder:
                with contextlib.suppress(FetchError):  # it still runs somewhere: the next time
                    self._discard(folder)

    def adopt(self, folder: Path, chosen: Chosen, manifest: Manifest) -> Installed:
        """Give a staged folder its name. It is not used yet."""
        _write_json(folder / MANIFEST, manifest)
        home, number = self.home / chosen.name, 1
        while home.exists():
            number += 1
            home = self.home / f"{chosen.name}~{number}"
        folder.rename(home)
        return Installed(folder=home, manifest=manifest)

    def use(self, installed: Installed) -> None:
        """From now on, in one step. The one that was used before is kept to go back to."""
        pointer = _read_pointer(self.home)
        if pointer.current == installed.folder.name:
            return
        former = _read_installed(self.home / pointer.current, "") if pointer.current is not None else None
        # What is replaced by the same release again is none to go back to.
        replaced = former is None or former.name == installed.name
        previous = pointer.previous if replaced else pointer.current
        if previous == installed.folder.name:
            previous = None
        _write_json(self.home / CHOSEN, _Pointer(current=installed.folder.name, previous=previous))

    def remove(self, installed: Installed) -> None:
        """First it is no longer used, then it goes."""
        pointer, name = _read_pointer(self.home), installed.folder.name
        if name == pointer.current:
            _write_json(self.home / CHOSEN, _Pointer(previous=pointer.previous))
        elif name == pointer.previous:
            _write_json(self.home / CHOSEN, _Pointer(current=pointer.current))
        self._discard(installed.folder)

    def _discard(self, folder: Path) -> None:
        aside = self.staging / f"removed-{folder.name}-{os.getpid()}"
        try:
            folder.rename(aside)
        except OSError as error:  # Windows, where it runs
            raise FetchError(f"{folder} cannot be removed ({error.strerror}): is its llama-server running?") from error
        _remove(aside)

    def _folders(self) -> list[Path]:
        return [path for path in self.home.iterdir() if path.is_dir() and not path.name.startswith(".")]


@contextlib.asynccontextmanager
async def opened(cache: Path, on_wait: Callable[[], object] = lambda: None) -> AsyncIterator[Installation]:
    """The store, as soon as no other process has it. Raises FetchError if the folder cannot be written."""
    from llmsession.system.file_lock import held

    store = Installation(engines_folder(cache))
    try:
        store.staging.mkdir(parents=True, exist_ok=True)
        lock = store.home / "lock"
        lock.touch()
    except OSError as error:
        raise FetchError(
            f"{store.home} cannot be written ({error.strerror}): name another folder with LLMSESSION_CACHE_DIR"
        ) from error
    async with held(lock, on_wait):
        yield store


def _read_pointer(home: Path) -> _Pointer:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        pointer = msgspec.json.decode((home / CHOSEN).read_bytes(), type=_Pointer)
        if all(name is None or (name and Path(name).name == name) for name in (pointer.current, pointer.previous)):
            return pointer
    return _Pointer()


def _read_installed(folder: Path, state: str) -> Installed | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        return Installed(folder=folder, manifest=manifest, state=state)
    return None


def _write_json(path: Path, value: msgspec.Struct) -> None:
    content = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    write_atomically(path, content, durable=True)


def _remove(path: Path) -> None:
    """As far as it goes; the next installation tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
