"""LogFile: private, pruned, kept within bounds. Row B15 and DESIGN 4."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsession.processes import logfile
from llmsession.processes.logfile import LogFile, prune


def begin(log: LogFile) -> LogFile:
    """As a start does, without a child."""
    for descriptor in log.open():
        os.close(descriptor)
    return log


def age(log: LogFile, seconds: int) -> None:
    """As if it had been written to so long ago."""
    for path in (log.path, log.out_path):
        os.utime(path, (1_000_000_000 - seconds, 1_000_000_000 - seconds))


def mode(path: Path) -> int:
    """Who may do what with it."""
    return path.stat().st_mode & 0o777


def test_both_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Row B15: what people ask a model is nobody else's business."""
    before = os.umask(0)
    try:
        log = begin(LogFile(tmp_path, "engine"))
    finally:
        os.umask(before)
    assert (0o600, 0o600) == (mode(log.path), mode(log.out_path))


def test_runs_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    """Two sessions may start in one second."""
    logs = [begin(LogFile(tmp_path, "engine")) for _ in range(5)]
    assert 5 == len({log.path for log in logs})


def test_a_file_that_stands_in_its_place_is_not_written_into(tmp_path: Path) -> None:
    """O_EXCL: neither a link to another file nor another's file is followed."""
    log = LogFile(tmp_path, "engine")
    precious = tmp_path / "precious"
    precious.write_text("mine")
    log.path.symlink_to(precious)
    with pytest.raises(FileExistsError):
        log.open()
    assert "mine" == precious.read_text()


def test_the_runs_that_were_written_to_longest_ago_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 4: enough to look back, never enough to fill a disk; both files of a run go together."""
    monkeypatch.setattr(logfile, "KEPT_RUNS", 3)
    logs = [begin(LogFile(tmp_path, "engine")) for _ in range(3)]
    for number, log in enumerate(logs):
        age(log, seconds=number)
    logs += [begin(LogFile(tmp_path, "engine")) for _ in range(2)]
    prune(tmp_path)
    kept = [0, 3, 4]
    assert {path for i in kept for path in (logs[i].path, logs[i].out_path)} == set(tmp_path.iterdir())


def test_large_runs_are_removed_before_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 4: the same by size."""
    monkeypatch.setattr(logfile, "KEPT_BYTES", 100)
    old, new = (begin(LogFile(tmp_path, "engine")) for _ in range(2))
    for log in (old, new):
        log.path.write_bytes(b"x" * 80)
    age(old, seconds=10)
    prune(tmp_path)
    assert (False, True) == (old.path.exists(), new.path.exists())


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache_dir=` may name a folder in which a program keeps logs of its own."""
    monkeypatch.setattr(logfile, "KEPT_RUNS", 0)
    others = [tmp_path / name for name in ("app.log", "app-2026.log", "notes.txt", "embedded.log")]
    for path in others:
        path.write_text("mine")
    ours = begin(LogFile(tmp_path, "engine"))
    prune(tmp_path)
    assert sorted(others) == sorted(tmp_path.iterdir())
    assert not ours.path.exists()


def test_a_log_that_grew_too_large_keeps_its_end_and_its_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 4: rotation by truncation; the child appends (O_APPEND), so no hole of zeros is left."""
    monkeypatch.setattr(logfile, "LARGEST_LOG", 1000)
    monkeypatch.setattr(logfile, "KEPT_OF_LARGEST", 100)
    log = LogFile(tmp_path, "engine")
    stdout, stderr = log.open()
    os.close(stdout)
    code = "import sys\nfor line in sys.stdin: sys.stderr.write(line); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    ) as writer:
        os.close(stderr)
        assert writer.stdin is not None
        assert writer.stdout is not None

        def write(text: str) -> None:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(text.encode() + b"\n")
            writer.stdin.flush()
            writer.stdout.readline()

        write("a" * 900)
        log.rotate()
        assert 901 == log.size(), "small enough: nothing happens"
        write("b" * 200)
        before = os.umask(0)
        try:
            log.rotate()
        finally:
            os.umask(before)
        assert 0 == log.size()
        write("after")
        assert b"after\n" == log.read_log()
    kept = log.path.with_suffix(".log.1")
    assert b"b" * 99 + b"\n" == kept.read_bytes()
    assert 0o600 == mode(kept)
    monkeypatch.setattr(logfile, "KEPT_RUNS", 0)
    prune(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_rotating_a_log_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """A full disk, or an operator who tidies up, must not end a reply."""
    LogFile(tmp_path, "engine").rotate()
    assert [] == list(tmp_path.iterdir())


def test_the_tail_is_the_last_lines_also_of_what_is_no_text(tmp_path: Path) -> None:
    """Row B15: the tail in every start error."""
    log = begin(LogFile(tmp_path, "engine"))
    assert "" == log.tail()
    log.path.write_bytes(b"".join(b"line %d\n" % number for number in range(5000)) + b"\xff\xfe end")
    assert ["line 4998", "line 4999", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} end"] == (
        log.tail(3).splitlines()
    )
    assert 20 == len(log.tail().splitlines())


def test_of_a_log_that_is_gone_the_tail_is_empty(tmp_path: Path) -> None:
    """An error about a child must not fail for want of its log."""
    log = LogFile(tmp_path, "engine")
    assert ("", b"", b"", 0) == (log.tail(), log.read_log(), log.read_out(), log.size())
