"""Unpacks an untrusted zip or tar.gz archive into a new folder. No entry or link may lead outside of it.

This is blocking; `tick` is called between pieces and may raise to end it.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

from llmsession.types.errors import DiskFullError, FetchError

# Bytes. llama.cpp's largest archives hold about 2 GB; one with more than this is meant to fill the disk.
LARGEST = 16 << 30
PIECE = 1 << 20


class Member(msgspec.Struct, frozen=True):
    """One entry of an archive. `target`: where a link leads; `size`: bytes; `mode`: permissions."""

    path: str
    kind: Literal["file", "folder", "link", "copy"]
    mode: int
    size: int = 0
    target: str = ""


def unpack(archive: Path, folder: Path, tick: Callable[[], object] = lambda: None) -> None:
    """Unpack the archive into the folder, which is created if necessary. Files are flushed to the disk.

    File modes, and links that stay inside the folder, are kept. Raises FetchError if the archive is damaged, or has an
    entry of a kind that no build needs; and OSError. Then the folder is incomplete, and the caller removes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    try:
        with _opened(archive) as entries:
            room = LARGEST
            for member, content in entries:
                tick()
                room -= member.size
                if room < 0:
                    raise _refuse(archive, member.path, f"unpacked it would have more than {LARGEST >> 30} GiB")
                path = folder / member.path
                path.parent.mkdir(parents=True, exist_ok=True)
                if member.kind == "folder":
                    path.mkdir(exist_ok=True)
                elif member.kind == "link":
                    links.append(member)
                elif member.kind == "copy":
                    shutil.copy2(folder / member.target, path)
                    with path.open("rb+") as copied:
                        os.fsync(copied.fileno())
                elif content is not None:
                    _write(path, content, member, tick)
            # Links are created last, so that nothing is written through one.
            for member in links:
                (folder / member.path).symlink_to(member.target)
            _check_links(archive, folder, links)
    # RuntimeError: encrypted, or compressed in a way that Python does not support.
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FetchError(f"{archive.name} is not an archive that can be unpacked: {error}") from error
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise _refuse(archive, os.path.relpath(error.filename or "", folder), "another entry is in its way") from error


def unpacked_size(archive: Path) -> int:
    """Return how many bytes the archive says that it takes unpacked. Raises FetchError if it cannot be read."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                return sum(info.file_size for info in file.infolist())
        with archive.open("rb") as packed:  # gzip's last four bytes; right up to 4 GiB (RFC 1952)
            packed.seek(-4, os.SEEK_END)
            return int.from_bytes(packed.read(4), "little")
    except (OSError, zipfile.BadZipFile) as error:
        raise FetchError(f"{archive.name} is not an archive that can be unpacked: {error}") from error


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError if fewer than `needed` bytes are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{what} needs {needed / 1e6:,.0f} MB in {folder}, where {free / 1e6:,.0f} MB are free: make room, or name "
            "another folder with LLMSESSION_CACHE_DIR",
            needed_bytes=needed,
            free_bytes=free,
        )


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[Member, IO[bytes] | None]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield _read_zip(archive, file)
    else:
        with gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r:") as packed:
            yield _read_tar(archive, packed)
            while plain.read(PIECE):  # read to the end, where the checksum is
                pass


def _read_zip(archive: Path, file: zipfile.ZipFile) -> Iterator[tuple[Member, IO[bytes] | None]]:
    for info in file.infolist():
        mode = info.external_attr >> 16
        permissions = _permissions(mode or 0o644)  # archives made on Windows have none
        path = _check_path(archive, info.filename)
        if info.is_dir():
            yield Member(path, "folder", permissions), None
        elif stat.S_ISLNK(mode):
            target = file.read(info).decode(errors="replace") if info.file_size < 4096 else ""
            yield _link(archive, path, target), None
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            with file.open(info) as content:
                yield Member(path, "file", permissions, info.file_size), content
        else:
            raise _refuse(archive, path, "it is neither file nor folder nor link")


def _read_tar(archive: Path, file: tarfile.TarFile) -> Iterator[tuple[Member, IO[bytes] | None]]:
    for info in file:
        path = _check_path(archive, info.name)
        permissions = _permissions(info.mode)
        if info.isdir():
            yield Member(path, "folder", permissions), None
        elif info.issym():
            yield _link(archive, path, info.linkname), None
        elif info.islnk():  # the same file a second time
            yield Member(path, "copy", permissions, info.size, _check_path(archive, info.linkname)), None
        elif info.isreg():
            yield Member(path, "file", permissions, info.size), file.extractfile(info)
        else:
            raise _refuse(archive, path, "it is neither file nor folder nor link")


def _check_path(archive: Path, name: str) -> str:
    """Return the name as a path below the folder. Raises FetchError if it leads out of it."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if not name or "\0" in name or plain.startswith(("/", "../")) or plain == ".." or ":" in plain:
        raise _refuse(archive, name, "its path leads out of the folder")
    return plain


def _link(archive: Path, path: str, target: str) -> Member:
    landing = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not target or "\\" in target or ":" in target or target.startswith("/") or landing.startswith(".."):
        raise _refuse(archive, path, f"it is a link that leads out of the folder, to {target!r}")
    return Member(path, "link", 0o777, target=target)


def _check_links(archive: Path, folder: Path, links: list[Member]) -> None:
    """Check the links again, as the system resolves them: links may lead through other links. Raises FetchError."""
    inside = Path(os.path.realpath(folder))
    for member in links:
        if not Path(os.path.realpath(folder / member.path)).is_relative_to(inside):
            raise _refuse(archive, member.path, "it is a link that leads out of the folder")


def _permissions(mode: int) -> int:
    """Return the permissions, always with those to read and write for the owner, and without setuid and setgid."""
    return mode & 0o777 | 0o600


def _write(path: Path, content: IO[bytes], member: Member, tick: Callable[[], object]) -> None:
    left = member.size
    with path.open("xb") as file:
        while piece := content.read(min(PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise EOFError(f"{member.path} is larger than it says")
            file.write(piece)
            tick()
        if left:
            raise EOFError(f"{member.path} is cut short")
        file.flush()
        os.fchmod(file.fileno(), member.mode) if hasattr(os, "fchmod") else path.chmod(member.mode)
        os.fsync(file.fileno())


def _refuse(archive: Path, path: str, why: str) -> FetchError:
    return FetchError(f"{archive.name} holds {path!r}, which is not unpacked: {why}")
