"""The releases of llama.cpp in the cache folder: which are installed, which one is used, and how to change that.

engines/llama.cpp/NAME/release.json   its description; written before the folder gets its name
                 /NAME/files/         the archive's content
                 /chosen.json         the release that is used, and the previous one; replaced atomically
                 /.staging/           what is being downloaded, unpacked or removed; cleared by the next installation
                 /lock                held by the process that changes anything
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
    """What is installed. `binary`: the path of llama-server below `files`; `version`: the version that it reports."""

    tag: str
    variant: str
    platform: Platform
    assets: tuple[Asset, ...]
    binary: str
    version: str


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An installed release. `state`: "used", "before" if it was used before that one, or empty."""

    folder: Path
    manifest: Manifest
    state: str = ""

    @property
    def name(self) -> str:
        """The release's name, such as `b6123-vulkan`."""
        return f"{self.manifest.tag}-{self.manifest.variant}"

    @property
    def binary(self) -> Path:
        """The path of its llama-server."""
        return self.folder / FILES / self.manifest.binary


class _Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """The content of chosen.json: the names of two releases' folders."""

    current: str | None = None
    previous: str | None = None


def find_installed(cache: Path) -> Installed | None:
    """Return the release that is used, if it is complete and for this machine; else None."""
    home = engines_folder(cache)
    current = _read_pointer(home).current
    found = _read_installed(home / current, "used") if current is not None else None
    if found is None or not os.access(found.binary, os.X_OK):
        return None
    # Machines of different kinds may share a home folder.
    return found if found.manifest.platform == this_platform() else None


def list_installed(cache: Path) -> list[Installed]:
    """Return all installed releases: the one that is used, then the previous one, then the others, newest first."""
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
    """Return the release of this name. Raises UsageError, with the installed names, if there is none."""
    installed = list_installed(cache)
    for one in installed:
        if one.name == name:
            return one
    names = ", ".join(dict.fromkeys(one.name for one in installed))
    there = f"there are {names}" if names else "there is none, `llmsession server install` brings one"
    raise UsageError(f"no release {name!r} of llama.cpp is installed: {there}")


def require_previous(cache: Path) -> Installed:
    """Return the release that was used before. Raises UsageError if there is none."""
    for one in list_installed(cache):
        if one.state == "before":
            return one
    raise UsageError("there is no release to go back to: `llmsession server list` shows what is installed")


class Installation:
    """The right to change what is installed, held by one process at a time. Created by `opened`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.staging = home / STAGING

    def clear(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Remove what an interrupted installation left behind, except for non-empty files named in `keep`."""
        for path in self.staging.iterdir():
            if path.name not in keep or not path.stat().st_size:
                _remove(path)
        pointer = _read_pointer(self.home)
        if pointer.current is None:
            return
        current = _read_installed(self.home / pointer.current, "used")
        for folder in self._folders():
            # An older copy of the same release, which was being replaced.
            other = _read_installed(folder, "")
            if other is not None and current is not None and other.name == current.name and folder != current.folder:
                with contextlib.suppress(FetchError):  # it is still running: removed the next time
                    self._discard(folder)

    def adopt(self, folder: Path, chosen: Chosen, manifest: Manifest) -> Installed:
        """Move a staged folder to its final name, and return the release. It is not used yet."""
        _write_json(folder / MANIFEST, manifest)
        home, number = self.home / chosen.name, 1
        while home.exists():
            number += 1
            home = self.home / f"{chosen.name}~{number}"
        folder.rename(home)
        return Installed(folder=home, manifest=manifest)

    def use(self, installed: Installed) -> None:
        """Use this release from now on, atomically. The one used before is remembered, to go back to."""
        pointer = _read_pointer(self.home)
        if pointer.current == installed.folder.name:
            return
        former = _read_installed(self.home / pointer.current, "") if pointer.current is not None else None
        # An older copy of the same release is not one to go back to.
        replaced = former is None or former.name == installed.name
        previous = pointer.previous if replaced else pointer.current
        if previous == installed.folder.name:
            previous = None
        _write_json(self.home / CHOSEN, _Pointer(current=installed.folder.name, previous=previous))

    def remove(self, installed: Installed) -> None:
        """Stop using the release, then remove it. Raises FetchError if it cannot be removed."""
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
        except OSError as error:  # on Windows, while it is running
            raise FetchError(f"{folder} cannot be removed ({error.strerror}): is its llama-server running?") from error
        _remove(aside)

    def _folders(self) -> list[Path]:
        return [path for path in self.home.iterdir() if path.is_dir() and not path.name.startswith(".")]


@contextlib.asynccontextmanager
async def opened(cache: Path, on_wait: Callable[[], object] = lambda: None) -> AsyncIterator[Installation]:
    """Wait until no other process is changing the store, then open it. `on_wait` is called if it has to wait.

    Raises FetchError if the folder cannot be written.
    """
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
    """Remove as much as possible; the next installation tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
