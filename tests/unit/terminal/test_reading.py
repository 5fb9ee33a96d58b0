"""Where lines come from: a pipe, and a terminal with keys. Row D9."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import anyio
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmsession.terminal.reading import PipeReader, TerminalReader

pytestmark = pytest.mark.anyio


@contextmanager
def keys(*typed: str) -> Iterator[TerminalReader]:
    """A terminal where these were typed."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        for each in typed:
            pipe.send_text(each)
        yield TerminalReader(InMemoryHistory(["an old line"]), commands=["help", "rewind", "retry", "save"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\\\rthree\r", "one\ntwo\nthree"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("a \\ b\r", "a \\ b"),
        ("\x1b[200~pasted\nlines\x1b[201~\r", "pasted\nlines"),
        ("\x1b[A\r", "an old line"),
        ("!rew\t 2\r", "!rewind 2"),
        ("!H\t\r", "!help"),
        ("rew\t\r", "rew"),
        ("\x03", None),
        ("half\x03", None),
        ("\x04", None),
    ],
    ids=repr,
)
async def test_keys_become_a_line(typed: str, expected: str | None) -> None:
    r"""D9: `\` at the end of a line goes on, as Alt+Enter does; history; Tab; Ctrl-C and Ctrl-D are the end."""
    with keys(typed) as reader, anyio.fail_after(20):
        assert expected == await reader.read()


async def test_a_question_of_ours_has_its_answer_prefilled_and_keeps_no_history() -> None:
    """D9: `!edit` puts what was said into the line."""
    with keys("!\r", "\x1b[A\r", "\x03") as reader, anyio.fail_after(20):
        assert "before!" == await reader.ask("edit> ", given="before")
        assert "given" == await reader.ask("edit> ", given="given")
        assert await reader.ask("edit> ", given="given") is None


async def test_a_cancelled_prompt_ends() -> None:
    """DESIGN 4: cancelled from outside, on asyncio and on trio, whose prompt runs in a thread."""
    with keys() as reader, anyio.fail_after(20):
        for delay in (0, 0.2):
            with anyio.move_on_after(delay) as scope:
                await reader.read()
            assert scope.cancelled_caught


async def test_lines_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    r"""D9: a group of lines is joined by `\`; what is no UTF-8 becomes U+FFFD."""
    data = b"one\r\ntwo \\\nthree\\\n\nx\xff\n\nlast\\"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    reader = PipeReader()
    lines = [await reader.read() for _ in range(6)]
    assert ["one", "two \nthree\n", "x�", "", "last", None] == lines
