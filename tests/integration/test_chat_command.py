"""`llmsession chat` as a person meets it, in a terminal and through a pipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pexpect
import pytest

from llmsession.memory.memory import Memory
from tests.engines import Engine
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
def terminal(
    *arguments: str,
    size: tuple[int, int] = (24, 100),
    command: list[str] = COMMAND,
    prompt: str = PROMPT,
    **variables: str,
) -> Iterator[pexpect.spawn[str]]:
    """A program in a terminal of this size (lines, columns), at its prompt."""
    program = pexpect.spawn(
        command[0],
        [*command[1:], *arguments],
        # This terminal does not answer questions about its cursor.
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **variables},
        dimensions=size,
        encoding="utf-8",
        timeout=30,
    )
    program.delaybeforesend = None
    program.ptyproc.delayafterclose = 0.01  # type: ignore[attr-defined]  # of pexpect, which the stubs omit
    try:
        program.expect(prompt)
        yield program
    finally:
        program.close(force=True)


def ask(program: pexpect.spawn[str], line: str, *shown: str) -> str:
    """Type it, see these in this order, and be at the prompt again. Returns all that was written meanwhile."""
    program.sendline(line)
    seen = ""
    for words in (*shown, PROMPT):
        program.expect(words)
        seen += f"{program.before}{program.after}"
    return seen


def leave(program: pexpect.spawn[str]) -> None:
    """With Ctrl-D, and no failure."""
    program.sendeof()
    program.expect(pexpect.EOF)
    program.close()
    assert 0 == program.exitstatus


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
    assert "(the oldest " in done.stderr.decode()
    assert "the model does not see that part any more" in done.stderr.decode()


def test_a_question_that_cannot_fit_ends_a_pipe_with_a_sentence() -> None:
    """In a pipe a failure is a failure: exit code 1."""
    done = pipe("x" * 100_000 + "\n")
    assert 1 == done.returncode
    assert "larger context_length" in done.stderr.decode()
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
            program.expect("word3")
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


def test_lines_of_a_pipe_are_joined_and_never_commands(tmp_path: Path) -> None:
    r"""D9: a group of lines ends where no `\` goes on; what comes through a pipe is words, whatever it begins with."""
    database = tmp_path / "chat.db"
    done = pipe("one\\\n two\n!exit\n< no\nMy name is Rosalind.", "--temperature", "0", "--memory", str(database))
    answers = done.stdout.decode().splitlines()
    assert 4 == len(answers)
    assert all(answers)
    assert b"\x1b" not in done.stdout + done.stderr

    async def read() -> list[str]:
        async with Memory.open(database) as memory:
            (conversation,) = await memory.conversations()
            return [message.content for message in conversation.messages[::2]]

    assert ["one\n two", "!exit", "< no", "My name is Rosalind."] == anyio.run(read)


def test_commands_that_look_show_what_there_is(engine: Engine) -> None:
    """D9: `!` then Enter, `!help`, `!stats`, `!model`, `!metrics`, `!inspect`, on each engine."""
    path: dict[str, Any] = {"LLMSESSION_SERVER_PATH": engine.server_path} if engine.server_path else {}
    with terminal("--temperature", "0", "--backend", engine.backend, size=(40, 100), **path) as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        ask(program, "!stats", r"\d+ / 2048 tokens", r"\d+ % of context", "2 messages", "last reply: ")
        ask(program, "!model", "1,803,840", "Q8_0", engine.backend, "127.0.0.1", r"\.log")
        ask(program, "!metrics", "prompt", r"\d+ tokens", "generated")
        ask(program, "!inspect", "control", "im_start", "text", "My name is Rosalind", r"tokens, \d+ of them cached")
        ask(program, "!help", "!rewind", "!exit", "Ctrl-C")
        program.sendline("!")
        program.expect("!exit")
        ask(program, "stats", "2 messages")
        program.sendline("!exit")
        program.expect(pexpect.EOF)
    assert 0 == program.exitstatus


def test_an_unknown_command_suggests_the_near_one() -> None:
    """D9: and says how to say it to the model instead."""
    with terminal("--temperature", "0") as program:
        ask(program, "!hlep", "no command !hlep: did you mean !help", "A space before it")
        ask(program, "!rewind many", "such as !rewind 2")
        ask(program, "!rewind", "nothing to take back")
        ask(program, "!edit", "nothing to edit")
        ask(program, "!retry", "nothing to answer")
        ask(program, "!save", "takes the name of a file")
        ask(program, ' !say "hi"', r"\w+")
        leave(program)


def test_what_was_said_can_be_taken_back_changed_and_answered_again() -> None:
    """D9: `!rewind`, `!edit`, `!retry`."""
    with terminal("--temperature", "0") as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        ask(program, "What is my name?", r"Your name is Rosalind\.")
        ask(program, "!retry", r"Your name is Rosalind\.")
        ask(program, "!rewind", "the last exchange was taken back", "Hello Rosalind!")
        program.sendline("!edit 1")
        program.expect("edit> .*My name is Rosalind")
        ask(program, "\x7f" * len("Rosalind.") + "Bob.", "Hello Bob!")
        ask(program, "What is my name?", r"Your name is Bob\.")
        ask(program, "!stats", "4 messages")
        program.sendline("!edit")
        program.expect("edit> ")
        program.sendintr()
        program.expect("nothing was changed")
        program.expect(PROMPT)
        ask(program, "!edit 3", "1 to 2")
        leave(program)


def test_the_reply_can_be_begun_and_the_system_prompt_set() -> None:
    """D9: `<` and `!!`, each at once or asked for."""
    with terminal("--temperature", "0") as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        ask(program, "< Your nam", "begins so")
        ask(program, "What is my name?", r"Your name is Rosalind\.")
        program.sendline("<")
        program.expect("begin with>")
        ask(program, "Ye", "begins so")
        ask(program, "hello", "Ye")
        ask(program, "!! You reply with short answers.", "system prompt is set")
        ask(program, "!rewind 3", "taken back")
        assert "How can I help" not in ask(program, "hello", "Hello!")
        program.sendline("!!")
        program.expect("system> .*You reply with short answers")
        ask(program, "\x15", "no system prompt any more")
        ask(program, "!rewind", "taken back")
        ask(program, "hello", "How can I help")
        leave(program)


def test_a_backslash_goes_on_in_another_line() -> None:
    """D9: multi-line."""
    with terminal("--temperature", "0") as program:
        program.send("One\\\r two\r")
        program.expect(PROMPT)
        ask(program, "!inspect", r"One\\n two")
        leave(program)


def test_after_ctrl_c_enter_gives_another_reply(tmp_path: Path) -> None:
    """D9: Ctrl-C in a reply stops it, then Enter re-rolls; the turn is there once."""
    binary = wrapper(tmp_path, SLOW)
    with terminal("--backend", "llama-server", LLMSESSION_SERVER_PATH=str(binary)) as program:
        program.sendline("go on")
        for _ in range(3):
            program.expect("word3")
            program.sendintr()
            program.expect("stopped: Enter")
            program.expect(PROMPT)
            program.send("\r")
        program.expect("word3")
        program.sendintr()
        program.expect(PROMPT)
        saved = tmp_path / "talk.json"
        ask(program, f"!save {saved}", r"saved\s+2\s+messages")
        leave(program)
    user, reply = json.loads(saved.read_text())["messages"]
    assert {"role": "user", "content": "go on"} == user
    assert reply["content"].startswith("word1 word2 word3")


def test_stopped_before_a_word_it_is_asked_again(tmp_path: Path) -> None:
    """D9: nothing was said, and the question is not lost."""
    binary = wrapper(tmp_path, "--hang-stream")
    with terminal("--backend", "llama-server", LLMSESSION_SERVER_PATH=str(binary)) as program:
        program.sendline("hello")
        for _ in range(2):
            program.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
            program.sendintr()
            program.expect("stopped: Enter")
            program.expect(PROMPT)
            program.send("\r")
        program.expect("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
        program.sendintr()
        program.expect(PROMPT)
        ask(program, f"!save {tmp_path}/talk", r"saved\s+0\s+messages")
        leave(program)


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """D9: `--memory FILE --user --channel`, remembered between two starts, for each user and channel alone."""
    arguments = ["--temperature", "0", "--memory", str(tmp_path / "chat.db"), "--user", "Ada"]
    with terminal(*arguments) as program:
        assert "remembered" not in str(program.before)
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        leave(program)
    with terminal(*arguments) as program:
        assert "2 messages are remembered of Ada" in str(program.before)
        assert "Hello Rosalind!" in str(program.before)
        ask(program, "What is my name?", r"Your name is Rosalind\.")
        leave(program)
    done = pipe("What is my name?\n", *arguments)
    assert b"Your name is Rosalind.\n" == done.stdout
    for other in (["--channel", "work"], ["--user", "Bob"]):
        done = pipe("What is my name?\n", *arguments, *other)
        assert b"Rosalind" not in done.stdout


def test_forgotten_nothing_is_left(tmp_path: Path, cache_dir: Path) -> None:
    """D9: `!forget` asks first, then deletes what the memory has of the user, and the lines that were typed."""
    database = tmp_path / "chat.db"
    with terminal("--memory", str(database), "--user", "Ada", "--system", "Be kind.") as program:
        ask(program, "My name is Xyzzyplugh.", r"\w")
        program.sendline("!forget")
        program.expect("for good")
        ask(program, "n", "nothing was deleted")
        assert any(b"Xyzzyplugh" in path.read_bytes() for path in tmp_path.glob("chat.db*"))
        program.sendline("!forget")
        program.expect("for good")
        ask(program, "yes", "forgotten")
        ask(program, "hello", r"\w")
        ask(program, "!stats", "3 messages")
        leave(program)
    kept = [*tmp_path.glob("chat.db*"), *cache_dir.rglob("lines-*")]
    assert kept
    assert [] == [path for path in kept if b"Xyzzyplugh" in path.read_bytes()]


def test_without_a_memory_forget_begins_anew() -> None:
    """D9: what no file keeps."""
    with terminal("--temperature", "0") as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        program.sendline("!forget")
        program.expect("Start over")
        ask(program, "y", "started over")
        ask(program, "What is my name?", "not told|have not|don't")
        leave(program)


def test_lines_are_kept_between_starts_for_nobody_else(cache_dir: Path) -> None:
    """D9: history."""
    with terminal("--temperature", "0") as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        leave(program)
    (file,) = (cache_dir / "history").iterdir()
    assert 0 == (file.stat().st_mode | file.parent.stat().st_mode) & 0o077
    with terminal("--temperature", "0") as program:
        program.send("\x1b[A\r")
        program.expect("Hello Rosalind!")
        program.expect(PROMPT)
        leave(program)


def test_a_conversation_is_saved_whole_and_nothing_overwritten_unasked(tmp_path: Path) -> None:
    """D9: `!save FILE`, text, Markdown or JSON by ending."""
    with terminal("--temperature", "0") as program:
        ask(program, "My name is Rosalind.", "Hello Rosalind!")
        markdown, text = tmp_path / "talk.md", tmp_path / "talk.txt"
        text.write_text("mine")
        ask(program, f"!save {markdown}", r"saved\s+2\s+messages")
        program.sendline(f"!save {text}")
        program.expect(r"Overwrite\s+it")
        ask(program, "", "nothing was written")
        assert "mine" == text.read_text()
        program.sendline(f"!save {text}")
        program.expect(r"Overwrite\s+it")
        ask(program, "yes", r"saved\s+2\s+messages")
        ask(program, "!save /", "/ is a folder")
        ask(program, f"!save {tmp_path}/nowhere/x", r"cannot\s+write")
        leave(program)
    assert "**tiny-chat:**\n\nHello Rosalind!\n" in markdown.read_text()
    assert "You: My name is Rosalind.\n\ntiny-chat: Hello Rosalind!\n" == text.read_text()


@pytest.mark.parametrize(("argument", "variable"), [("--no-color", ""), ("--color", "1")])
def test_without_colours_there_are_none(argument: str, variable: str) -> None:
    """D9: NO_COLOR, or --no-color; from the load bar to the end."""
    with terminal("--temperature", "0", argument, NO_COLOR=variable) as program:
        seen = str(program.before) + ask(program, 'say "**river**"', "river")
        seen += ask(program, "!rewind 9", "exchanges")
        leave(program)
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", seen) for code in found.split(";")}
    assert set() == {code for code in codes if re.fullmatch(r"3[0-8]|4[0-8]|9[0-7]|10[0-7]", code)}


def test_a_terminal_that_can_only_print_gets_plain_text() -> None:
    """D9: TERM=dumb, as in an editor's window."""
    with terminal("--temperature", "0", prompt="> $", TERM="dumb") as program:
        program.sendline("My name is Rosalind.")
        program.expect("Hello Rosalind!\r\n")
        seen = f"{program.before}{program.after}"
        program.expect("> $")
        program.sendline("!exit")
        program.expect(pexpect.EOF)
        seen += str(program.before)
    assert 0 == program.exitstatus
    assert "\x1b" not in seen


def test_reasoning_is_dimmed_or_hidden(tmp_path: Path) -> None:
    """D9: what a model thinks before it answers."""
    config = tmp_path / "options.yaml"
    config.write_text("prompt_encoding: chat\n")
    arguments = ["--temperature", "0", "--config", str(config), "--system", "think first"]
    seen = {}
    for how in ("dim", "show", "hide"):
        with terminal(*arguments, "--reasoning", how) as program:
            seen[how] = ask(program, "My name is Rosalind.", "Hello Rosalind!")
            leave(program)
    thought = re.compile(r"\x1b\[(2;3|3)m\w")
    assert {"dim": "2;3", "show": "3"} == {
        how: found.group(1) for how, text in seen.items() if (found := thought.search(text)) is not None
    }


def test_a_channel_without_a_memory_is_wrong_use() -> None:
    """API 6: exit code 2."""
    done = pipe("hi\n", "--user", "Ada")
    assert (2, b"") == (done.returncode, done.stdout)
    assert b"--memory" in done.stderr


def test_a_file_that_is_no_memory_is_left_alone(tmp_path: Path) -> None:
    """D9: before a model is loaded; one sentence."""
    file = tmp_path / "notes.txt"
    file.write_text("my notes " * 1000)
    done = pipe("hi\n", "--memory", str(file))
    assert (1, b"") == (done.returncode, done.stdout)
    assert str(file) in done.stderr.decode()
    assert "my notes " * 1000 == file.read_text()


INTERACT = """
import sys, anyio
from llmsession import Chat, Session

async def main():
    async with Session() as session:
        chat = Chat(session, system_prompt="You reply with short answers.")
        await chat.interact(color=False, header="Talk to me.", stream=False)
        print("it said", chat.last)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_program_of_ones_own_can_have_the_chat(loop: str) -> None:
    """API 4: `Chat.interact`, in either event loop; without streaming the reply comes at once."""
    with terminal(loop, command=[sys.executable, "-W", "error", "-c", INTERACT]) as program:
        assert "Talk to me." in str(program.before)
        seen = ask(program, "hello", "Hello!")
        assert "Hell\r" not in seen
        program.sendline("!!")
        program.expect("system> .*You reply with short answers")
        ask(program, "\x15Talk like a pirate.", "is set")
        ask(program, "hello", "(?i)ahoy|arr|matey")
        program.sendintr()
        program.expect("it said")
        program.expect(pexpect.EOF)
    assert 0 == program.exitstatus
