"""Records: a true leftover is ended, a stranger never. DESIGN 4, row B9; "nothing is killed that we did not start"."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from llmsession.processes.records import Record, clear_leftovers, read_records, write_record


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, as engines are."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, process_group=0) as process:
        yield process
        process.kill()


@pytest.fixture
def ended() -> int:
    """The number of a process that was there and is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def put(folder: Path, sleeper: subprocess.Popen[bytes], **changes: object) -> Path:
    """A record of it, changed."""
    path = write_record(folder, sleeper.pid, name="engine", log=folder / "engine.log")
    assert path is not None
    record = msgspec.structs.replace(read_records(folder)[path], **changes)
    path.write_bytes(msgspec.json.encode(record))
    return path


def test_a_record_says_who_runs_and_for_whom(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """DESIGN 4: with the time of birth, since numbers are used again."""
    path = write_record(tmp_path, sleeper.pid, name="engine", log=tmp_path / "engine.log")
    expected = Record(
        pid=sleeper.pid,
        started=psutil.Process(sleeper.pid).create_time(),
        owner_pid=os.getpid(),
        owner_started=psutil.Process().create_time(),
        name="engine",
        log=str(tmp_path / "engine.log"),
    )
    assert {path: expected} == read_records(tmp_path)
    assert [path] == list(tmp_path.iterdir()), "nothing half-written stays"


def test_of_a_process_that_is_gone_there_is_no_record(tmp_path: Path, ended: int) -> None:
    """An engine may die before it is put on record."""
    assert write_record(tmp_path, ended, name="engine", log=tmp_path / "log") is None
    assert [] == list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    """The record is the last of the defences; a full disk does not keep an engine from running."""
    assert write_record(tmp_path / "none", os.getpid(), name="engine", log=tmp_path / "log") is None
    assert [] == clear_leftovers(tmp_path / "none")


def test_a_true_leftover_is_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes], ended: int) -> None:
    """Row B9: what a lost machine left is cleared by a later run."""
    put(tmp_path, sleeper, owner_pid=ended)
    assert [sleeper.pid] == clear_leftovers(tmp_path)
    assert -9 == sleeper.wait(timeout=10)
    assert [] == list(tmp_path.iterdir())


def test_a_leftover_is_known_also_when_its_owners_number_is_anothers(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The owner is gone where its number is ours but its time of birth is not."""
    put(tmp_path, sleeper, owner_started=psutil.Process().create_time() - 1000)
    assert [sleeper.pid] == clear_leftovers(tmp_path)
    assert -9 == sleeper.wait(timeout=10)


def test_a_stranger_with_the_number_of_a_leftover_is_never_killed(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], ended: int
) -> None:
    """DESIGN 4: the number is used again: another time of birth, so a stranger. Only the record goes."""
    started = psutil.Process(sleeper.pid).create_time()
    for other in (started - 0.01, started + 0.01, started - 86400):
        put(tmp_path, sleeper, owner_pid=ended, started=other)
        assert [] == clear_leftovers(tmp_path)
        assert [] == list(tmp_path.iterdir())
    assert sleeper.poll() is None


def test_an_engine_whose_owner_lives_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Several programs share the folder."""
    path = put(tmp_path, sleeper)
    assert [] == clear_leftovers(tmp_path)
    assert sleeper.poll() is None
    assert [path] == list(tmp_path.iterdir())


def test_a_half_written_record_of_an_owner_that_is_gone_is_removed(tmp_path: Path, ended: int) -> None:
    """An owner that was killed between writing and renaming; that of one who lives stays, it may be at it now."""
    left = tmp_path / f".123.json.{ended}.0123.new"
    mine = tmp_path / f".124.json.{os.getpid()}.0123.new"
    for path in (left, mine, tmp_path / ".odd.new"):
        path.write_bytes(b'{"pid":')
    clear_leftovers(tmp_path)
    assert [mine] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b'{"pid":', b"[]", b"\xff\xfe", b'{"pid": "one"}'],
    ids=["empty", "cut", "list", "binary", "wrong"],
)
def test_a_record_that_cannot_be_read_harms_nobody(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], ended: int, content: bytes
) -> None:
    """The others are cleared all the same."""
    (tmp_path / "1.json").write_bytes(content)
    put(tmp_path, sleeper, owner_pid=ended)
    assert [sleeper.pid] == clear_leftovers(tmp_path)


@pytest.mark.parametrize("number", [-1, 0, 2**40, 2**62])
def test_a_record_with_an_impossible_number_is_removed(tmp_path: Path, ended: int, number: int) -> None:
    """Whatever stands in the file: the thread that waits for a child goes on, and no group 0 is killed."""
    record = Record(pid=number, started=0.0, owner_pid=number, owner_started=0.0, name="engine", log="log")
    (tmp_path / "1.json").write_bytes(msgspec.json.encode(record))
    assert [] == clear_leftovers(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_record_carries_a_note_and_is_its_owners_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Where a server listens and with which key: for this user's `llmsession metrics`."""
    note = {"url": "http://127.0.0.1:1", "key": "secret"}
    path = write_record(tmp_path, sleeper.pid, name="engine", log=tmp_path / "log", note=note)
    assert path is not None
    record = read_records(tmp_path)[path]
    assert (note, True) == (record.note, record.is_alive)
    assert 0o600 == path.stat().st_mode & 0o777
    sleeper.kill()
    sleeper.wait()
    assert not record.is_alive
