"""The lines that were typed, in their file. Row D9."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from llmsession.terminal import reading
from llmsession.terminal.reading import LineHistory, history_file


def read(path: Path) -> list[str]:
    """As the next start finds them, oldest first."""
    return list(LineHistory(path).load_history_strings())[::-1]


def test_lines_are_there_at_the_next_start_and_nobody_else_can_read_them(tmp_path: Path) -> None:
    """D9: history, kept between starts, not world-readable."""
    path = history_file(tmp_path, "me")
    history = LineHistory(path)
    history.append_string("one")
    history.append_string("two\nlines, 日本 \ud800")
    assert ["one", "two\nlines, 日本 ?"] == read(path)
    if sys.platform != "win32":
        assert 0 == stat.S_IMODE(path.stat().st_mode) & 0o077


def test_each_user_has_a_history_and_may_be_called_anything(tmp_path: Path) -> None:
    """D9: --user; a name is not a path."""
    files = {history_file(tmp_path, user) for user in ("", "me", "../../x", "a/b\0", "x" * 1000, "\ud800")}
    assert 6 == len(files)
    assert {tmp_path} == {file.parent for file in files}
    for file in files:
        LineHistory(file).append_string("hi")
        assert ["hi"] == read(file)


def test_forgotten_it_is_gone(tmp_path: Path) -> None:
    """D9: `!forget` deletes what a person typed as well."""
    path = history_file(tmp_path, "me")
    history = LineHistory(path)
    history.append_string("my secret")
    history.forget()
    history.forget()
    assert [] == history.get_strings()
    assert [] == list(tmp_path.iterdir())


def test_where_nothing_can_be_written_there_is_no_history_and_no_failure(tmp_path: Path) -> None:
    """Bad input: a folder in the place of the file, a folder that is gone."""
    for path in (tmp_path, tmp_path / "gone" / "lines"):
        history = LineHistory(path)
        history.append_string("hi")
        assert ["hi"] == history.get_strings()
        assert [] == read(path)


def test_a_file_that_grew_too_long_keeps_its_newest_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our decision: a history is a convenience, and no archive."""
    monkeypatch.setattr(reading, "LIMIT", 1000)
    path = tmp_path / "lines"
    history = LineHistory(path)
    for number in range(100):
        history.append_string(f"line {number}\nits second")
    kept = read(path)
    assert [f"line {number}\nits second" for number in range(100 - len(kept), 100)] == kept
    assert 5 < len(kept) < 20
    assert kept == read(path)
    assert [path] == list(tmp_path.iterdir())
