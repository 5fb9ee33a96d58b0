"""Archives of somebody else's: nothing of them lands outside, and no link leads there."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from llmsession.backends.install import archive as room
from llmsession.backends.install.archive import check_disk_space, unpack, unpacked_size
from llmsession.types.errors import DiskFullError, FetchError
from tests.releases import pack, pack_zip

HELLO = b"hello" * 1000


class Entry(NamedTuple):
    """Of a tar archive: a name, its kind, and where a link leads."""

    name: str
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    content: bytes = HELLO
    mode: int = 0o644


def tar(path: Path, *entries: Entry) -> Path:
    """As it says, however bad."""
    with tarfile.open(path, "w:gz") as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.mode = entry.kind, entry.target, entry.mode
            info.size = len(entry.content) if entry.kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(entry.content))
    return path


def link(name: str, target: str) -> Entry:
    """A symbolic one."""
    return Entry(name, tarfile.SYMTYPE, target)


def zipped(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    """Names, contents, and the mode as Unix has it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def test_a_release_is_unpacked_as_it_is(tmp_path: Path) -> None:
    """CAPABILITIES B6: modes and the links between libraries are kept; tar.gz and zip."""
    path = tmp_path / "release.tar.gz"
    path.write_bytes(pack("b1", b"#!/bin/sh\n"))
    unpack(path, tmp_path / "tar")
    folder = tmp_path / "tar" / "llama-b1"
    assert 0o755 == stat.S_IMODE((folder / "llama-server").stat().st_mode)
    assert 0o644 == stat.S_IMODE((folder / "LICENSE").stat().st_mode)
    assert (Path("libfake.so.1"), b"b1") == ((folder / "libfake.so").readlink(), (folder / "libfake.so").read_bytes())
    path = tmp_path / "release.zip"
    path.write_bytes(pack_zip(b"#!/bin/sh\n"))
    unpack(path, tmp_path / "zip")
    folder = tmp_path / "zip" / "build" / "bin"
    assert 0o755 == stat.S_IMODE((folder / "llama-server").stat().st_mode)
    assert (Path("LICENSE"), b"MIT") == ((folder / "libfake.so").readlink(), (folder / "libfake.so").read_bytes())


def test_no_file_gets_the_rights_of_another_user(tmp_path: Path) -> None:
    """CAPABILITIES B6: no setuid; and what we unpack we can remove."""
    unpack(tar(tmp_path / "a.tar.gz", Entry("x", mode=0o6111)), tmp_path / "out")
    assert 0o711 == stat.S_IMODE((tmp_path / "out" / "x").stat().st_mode)


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("../evil")],
        [Entry("/evil")],
        [Entry("a/../../evil")],
        [Entry("a\\..\\..\\evil")],
        [Entry("C:/evil")],
        [Entry("..", tarfile.DIRTYPE)],
        [link("a", "/etc")],
        [link("a", "..")],
        [link("a/b", "../../evil")],
        [link("a", "..\\evil")],
        [link("b", "."), link("a", "b/../evil/..")],  # by its letters inside, by the system outside
        [link("a", "b/../../evil"), link("b", "c"), Entry("c/file")],
        [Entry("a", tarfile.LNKTYPE, "../evil")],
        [Entry("a", tarfile.LNKTYPE, "missing")],
        [Entry("a", tarfile.FIFOTYPE)],
        [Entry("a", tarfile.CHRTYPE)],
        [link("a", "b"), Entry("a/x"), Entry("b/x")],  # to be written through a link
        [Entry("a"), Entry("a")],
        [Entry("a"), Entry("a/b")],
    ],
)
def test_nothing_leaves_the_folder(tmp_path: Path, entries: list[Entry]) -> None:
    """CAPABILITIES B6: paths, links, links over links, devices, and entries in each other's way are refused."""
    outside = tmp_path / "deep"
    archive = tar(tmp_path / "a.tar.gz", *entries)
    with pytest.raises(FetchError, match=r"a\.tar\.gz"):
        unpack(archive, outside / "out")
    assert [outside / "out"] == list(outside.iterdir())
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("../evil", HELLO, 0o100644),
        ("/evil", HELLO, 0o100644),
        ("a\\..\\..\\evil", HELLO, 0),
        ("a", b"../evil", 0o120777),
        ("a", b"/etc/passwd", 0o120777),
        ("a", b"", 0o120777),
        ("a", b"x" * 5000, 0o120777),
        ("a", b"", 0o060644),
    ],
)
def test_nothing_leaves_the_folder_from_a_zip(tmp_path: Path, name: str, content: bytes, mode: int) -> None:
    """CAPABILITIES B6: the same."""
    archive = zipped(tmp_path / "a.zip", (name, content, mode))
    with pytest.raises(FetchError, match=r"a\.zip"):
        unpack(archive, tmp_path / "deep" / "out")
    assert [] == [path for path in (tmp_path / "deep").rglob("*") if path.name != "out"]


def test_a_link_over_a_folder_link_stays_inside(tmp_path: Path) -> None:
    """CAPABILITIES B6: what is allowed works: a file twice, links to folders, folders that are named late."""
    archive = tar(
        tmp_path / "a.tar.gz",
        Entry("lib/real/x"),
        link("lib/short", "real"),
        link("x", "lib/short/x"),
        Entry("twice", tarfile.LNKTYPE, "lib/real/x"),
        Entry("lib/", tarfile.DIRTYPE, mode=0o755),
        Entry("./", tarfile.DIRTYPE, mode=0o755),
    )
    unpack(archive, tmp_path / "out")
    assert HELLO == (tmp_path / "out" / "x").read_bytes() == (tmp_path / "out" / "twice").read_bytes()


@pytest.mark.parametrize("make", [lambda p: tar(p, Entry("x")), lambda p: zipped(p, ("x", os.urandom(9999), 0o644))])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """CAPABILITIES B6: cut anywhere, changed anywhere, or none at all."""
    whole = make(tmp_path / "whole").read_bytes()
    path = tmp_path / "bad"
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at])
        with pytest.raises(FetchError, match="bad"):
            unpack(path, tmp_path / f"cut{at}")
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            unpack(path, tmp_path / f"changed{at}")  # some bytes say nothing, such as a time
        except FetchError as error:
            assert "bad" in str(error)  # noqa: PT017 - it may also pass


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES B6: what unpacks to more than any build has."""
    monkeypatch.setattr(room, "LARGEST", 1 << 20)
    archive = tar(tmp_path / "a.tar.gz", *(Entry(f"x{n}", content=bytes(1 << 18)) for n in range(5)))
    with pytest.raises(FetchError, match="more than"):
        unpack(archive, tmp_path / "out")


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    """CAPABILITIES B6: an archive says how much it will take."""
    path = tmp_path / "a.tar.gz"
    assert len(HELLO) <= unpacked_size(tar(path, Entry("x"))) <= len(HELLO) + 20_000
    assert 9999 == unpacked_size(zipped(tmp_path / "a.zip", ("x", bytes(9999), 0o644)))
    check_disk_space(tmp_path, 1, "b1")
    with pytest.raises(DiskFullError, match=r"b1 needs 1,000,000,000,000 MB in .* make room") as caught:
        check_disk_space(tmp_path, 10**18, "b1")
    assert (10**18, True) == (caught.value.needed_bytes, caught.value.free_bytes > 0)
    (tmp_path / "empty").touch()
    with pytest.raises(FetchError, match="not an archive"):
        unpacked_size(tmp_path / "empty")


def test_it_can_be_ended_in_between(tmp_path: Path) -> None:
    """CAPABILITIES B6: Ctrl-C does not wait for two gigabytes."""
    archive = tar(tmp_path / "a.tar.gz", *(Entry(f"x{n}") for n in range(9)))
    ticks = iter(range(4))
    with pytest.raises(StopIteration):
        unpack(archive, tmp_path / "out", lambda: next(ticks))
    assert len(list((tmp_path / "out").iterdir())) < 9
