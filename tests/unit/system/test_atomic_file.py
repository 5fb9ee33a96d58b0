"""atomic_file: whoever reads sees the old content or the new, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmsession.system.atomic_file import remove_abandoned, replacing, write_atomically

# Writes "a" or "b" a hundred thousand times over, in turn, until it is killed.
WRITER = """
import itertools, sys
from pathlib import Path
from llmsession.system.atomic_file import write_atomically
for letter in itertools.cycle((b"a", b"b")):
    write_atomically(Path(sys.argv[1]), letter * 100_000)
"""


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """Nothing else lies beside it; a new one is for this user's eyes only."""
    path = tmp_path / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    """They may be the user's choice."""
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, b"new", mode=0o666)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A user may keep the file itself elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    path, link = tmp_path / "elsewhere" / "file.json", tmp_path / "link.json"
    link.symlink_to(path)
    for content in (b"first", b"second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert path.read_bytes() == content


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """Also a folder where the file should be, and a folder that is missing."""
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with contextlib.suppress(ValueError), replacing(path) as file:
        file.write(b"half of it")
        raise ValueError("no more")
    assert path.read_bytes() == b"old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        write_atomically(tmp_path / "folder", b"new")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file.json", b"new")
    assert {path, tmp_path / "folder"} == set(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of a file")
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path) -> None:
    """Played by a limit on the size of a file, in a process of its own."""
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from llmsession.system.atomic_file import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "File too large\n"
    assert path.read_bytes() == b"old"
    assert [path] == list(tmp_path.iterdir())


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """And what it left beside the file is removed later, while that of a writer that lives stays."""
    path = tmp_path / "file.json"
    pids: list[int] = []
    for number in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, path]) as writer:
            deadline = time.monotonic() + 30
            before = path.stat().st_ino if path.exists() else None
            while time.monotonic() < deadline and (not path.exists() or path.stat().st_ino == before):
                time.sleep(0.001)
            time.sleep(0.0007 * number)
            writer.kill()
        pids.append(writer.pid)
        content = path.read_bytes()
        assert content in (b"a" * 100_000, b"b" * 100_000)
    mine = tmp_path / f".file.json.{os.getpid()}.0123.new"
    for name in (mine.name, f".file.json.{pids[-1]}.0123.new", ".odd.new", f".file.{'9' * 30}.0123.new"):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path, lambda pid: pid == os.getpid())
    assert {path, mine} == set(tmp_path.iterdir())
