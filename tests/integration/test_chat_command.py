"""`llmsession chat` as a person meets it, in a terminal and through a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.fake_llama_server import wrapper

COMMAND = [sys.executable, "-W", "error", "-m", "llmsession", "chat"]
SLOW = "--tokens 10000 --token-delay 0.02"
# What prompt_toolkit says when it begins to read a line.
PROMPT = r"\x1b\[\?2004h"


def pipe(stdin: str | bytes, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """What comes out where the input is a pipe."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )


@contextmanager
def terminal(*arguments: str, size: tuple[int, int] = (24, 100), **variables: str) -> Iterator[pexpect.spawn[str]]:
    """A program in a terminal of this size (lines, columns), at its prompt."""
    program = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *arguments],
        # This terminal does not answer questions about its cursor.
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **variables},
        dimensions=size,
        encoding="utf-8",
        timeout=30,
    )
    try:
        program.expect(PROMPT)
        yield program
    finally:
        program.close(force=True)


def test_a_line_of_a_pipe_is_a_question() -> None:
    """Issue 3: `echo hello | llmsession chat`; the answers alone are on stdout."""
    done = pipe("hello\n\nMy name is Rosalind.\nWhat is my name?", "--temperature", "0")
    assert 0 == done.returncode
    assert "Hello! How can I help you?\nHello Rosalind!\nYour name is Rosalind.\n" == done.stdout.decode()
    assert 1 == done.stderr.count(b"\n")
    assert b"demonstration" in done.stderr


def test_a_system_prompt_is_said_first() -> None:
    """Issue 3: --system."""
    done = pipe("hello\n", "--temperature", "0", "--system", "You reply with short answers.")
    assert b"Hello!\n" == done.stdout


@pytest.mark.parametrize("stdin", [b"", b"\n\n", b"\xff\xfe\n"], ids=["empty", "blank", "no UTF-8"])
def test_input_that_says_nothing_or_is_no_text_is_no_failure(stdin: bytes) -> None:
    """Bad input: what is no UTF-8 becomes U+FFFD."""
    done = pipe(stdin)
    assert 0 == done.returncode
    assert b"Traceback" not in done.stderr


def test_a_closed_stdin_is_the_end() -> None:
    """Issue 3: stdin closed."""
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *COMMAND],
        capture_output=True,
        timeout=60,
        check=False,
        env=dict(os.environ),
    )
    assert (b"", 0) == (done.stdout, done.returncode)


def test_a_conversation_that_grows_too_long_forgets_its_beginning(tmp_path: Path) -> None:
    """Our decision: a chat goes on; what was forgotten is told."""
    config = tmp_path / "options.yaml"
    config.write_text("context_length: 256\nparallel: 1\n")
    words = ["river", "stone", "garden", "window", "letter"] * 4
    done = pipe("".join(f'say "{word}"\n' for word in words), "--temperature", "0", "--config", str(config))
    assert 0 == done.returncode
    assert words == done.stdout.decode().splitlines()
    assert "oldest exchange" in done.stderr.decode()


def test_a_question_that_cannot_fit_ends_a_pipe_with_a_sentence() -> None:
    """In a pipe a failure is a failure: exit code 1."""
    done = pipe("x" * 100_000 + "\n")
    assert 1 == done.returncode
    assert "context_length=" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_terminal_shows_what_it_is_and_leaves_with_ctrl_d() -> None:
    """Issue 3: what it is talking to stands above it."""
    with terminal("--temperature", "0") as program:
        above = str(program.before)
        assert "tiny-chat · embedded" in above
        assert "tokens of context" in above
        program.sendline("My name is Rosalind.")
        program.expect("Hello Rosalind!")
        program.expect(PROMPT)
        program.sendline("What is my name?")
        program.expect(r"Your name is Rosalind\.")
        program.expect(PROMPT)
        program.sendeof()
        program.expect(pexpect.EOF)
    assert 0 == program.exitstatus


def test_ctrl_c_in_an_answer_ends_the_answer_and_at_the_prompt_the_program(tmp_path: Path) -> None:
    """Issue 3: Ctrl-C in a reply ends the reply and not the program, at the prompt it leaves."""
    binary = wrapper(tmp_path, SLOW)
    with terminal("--backend", "llama-server", LLMSESSION_SERVER_PATH=str(binary)) as program:
        for _ in range(2):
            program.sendline("go on")
            program.expect("word3 ")
            program.sendintr()
            program.expect("stopped")
            program.expect(PROMPT)
        program.sendintr()
        program.expect(pexpect.EOF)
    assert 0 == program.exitstatus


def test_while_nothing_has_come_a_spinner_turns(tmp_path: Path) -> None:
    """Issue 3: a spinner until the first token; Ctrl-C ends that waiting as well."""
    binary = wrapper(tmp_path, "--hang-stream")
    with terminal("--backend", "llama-server", LLMSESSION_SERVER_PATH=str(binary)) as program:
        program.sendline("hello")
        program.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
        program.sendintr()
        program.expect("stopped")


def test_a_narrow_terminal_without_colours_will_do() -> None:
    """Issue 3: a terminal of 20 columns; NO_COLOR."""
    with terminal("--temperature", "0", size=(10, 20), NO_COLOR="1") as program:
        program.sendline("hello")
        program.expect("Hello! ")
        program.expect(PROMPT)
        shown = str(program.before)
        program.sendeof()
        program.expect(pexpect.EOF)
    assert "\x1b[31m" not in shown
    assert 0 == program.exitstatus


def test_an_error_is_told_and_the_chat_goes_on(tmp_path: Path) -> None:
    """Issue 3: a person is told, in a sentence, and may go on."""
    binary = wrapper(tmp_path, "--die-after-tokens 2")
    environment: dict[str, Any] = {"LLMSESSION_SERVER_PATH": str(binary), "LLMSESSION_RESTART_LIMIT": "0"}
    with terminal("--backend", "llama-server", **environment) as program:
        for words in ("while it replied", "restart_limit=0"):
            program.sendline("hello")
            program.expect(words)
            program.expect(PROMPT)
