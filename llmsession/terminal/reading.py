"""Reads the user's lines from a terminal, with prompt_toolkit, or from a pipe."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from llmsession.system.atomic_file import write_atomically
from llmsession.system.latch import Latch, call_soon

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings


# prompt_toolkit leaves its prompt in one turn of its loop; a terminal that is stopped (Ctrl-S) may hold it back.
LEFT_WITHIN = 2.0


class Reader(Protocol):
    """Reads lines; `None` is the end."""

    async def read(self) -> str | None:
        r"""Return the next message, with lines joined where one ends with a `\`."""
        ...

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """Ask the user and return the answer, with `given` to edit; None if there is no answer."""
        ...


class PipeReader:
    """Reads lines of standard input as UTF-8; invalid bytes become U+FFFD."""

    async def read(self) -> str | None:
        """Return the next line. The thread is abandoned when the program is told to stop."""
        lines: list[str] = []
        while (line := await anyio.to_thread.run_sync(_read_line, abandon_on_cancel=True)) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """Return None: there is nobody to ask."""
        del question, given
        return None


def _read_line() -> str | None:
    if sys.stdin is None:  # it was closed before we began
        return None
    line = sys.stdin.buffer.readline()
    # Some programs put a byte-order mark before the first line.
    return line.decode("utf-8-sig", errors="replace").rstrip("\r\n") if line else None


class TerminalReader:
    """Reads with editing, a history, and Tab completion of commands. Ctrl-C and Ctrl-D are both the end."""

    def __init__(self, history: History, *, commands: Sequence[str] = (), color: bool = True) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import DummyHistory
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.shortcuts import CompleteStyle

        shared: dict[str, Any] = {
            "color_depth": None if color else ColorDepth.MONOCHROME,
            "complete_style": CompleteStyle.READLINE_LIKE,
            "complete_while_typing": False,
            "multiline": True,
            "key_bindings": _bind_enter(),
            "enable_history_search": False,
        }
        self._lines: PromptSession[str] = PromptSession(history=history, completer=CommandCompleter(commands), **shared)
        self._answers: PromptSession[str] = PromptSession(history=DummyHistory(), **shared)

    async def read(self) -> str | None:
        """Return the typed text."""
        from prompt_toolkit.formatted_text import FormattedText

        return await _prompt(self._lines, FormattedText([("bold ansigreen", "> ")]))

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """Ask the user; the answer is not kept in the history."""
        from prompt_toolkit.formatted_text import FormattedText

        return await _prompt(self._answers, FormattedText([("bold", question)]), default=given)


def _bind_enter() -> KeyBindings:
    r"""Make Enter finish the input, unless the line ends with a `\` or Alt is held."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\") and not buffer.document.current_line_after_cursor:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    del enter, new_line
    return bindings


async def _prompt(session: PromptSession[str], message: Any, **keywords: Any) -> str | None:
    """Prompt in the running event loop if it is asyncio's; else in a thread with its own loop."""
    keywords["prompt_continuation"] = _continue_under
    try:
        if _is_asyncio():
            typed = await session.prompt_async(message, **keywords)
        else:
            typed = await _prompt_in_thread(session, partial(session.prompt, message, **keywords))
    except (KeyboardInterrupt, EOFError):
        return None
    return typed.encode(errors="replace").decode()  # a key may have sent half a character


def _continue_under(width: int, line_number: int, wrap_count: int) -> str:
    """Return the indentation of continued lines, below a short question."""
    del line_number, wrap_count
    return " " * width if width <= 2 * len("system> ") else ""


def _is_asyncio() -> bool:
    from anyio.lowlevel import current_token

    return hasattr(current_token().native_token, "call_soon_threadsafe")


async def _prompt_in_thread(session: PromptSession[str], prompt: Callable[..., str]) -> str:
    """Prompt in a thread. If cancelled, restore the terminal before returning."""
    lock = threading.Lock()
    begun = given_up = False
    over = Latch()

    def leave() -> None:
        future = session.app.future
        if given_up and future is not None and not future.done():
            session.app.exit(exception=EOFError)

    def run() -> str:
        nonlocal begun
        with lock:
            if given_up:
                raise EOFError
            begun = True
        try:
            return prompt(pre_run=leave)
        finally:
            over.set()

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        with lock:
            given_up = True
        if begun:
            if (loop := session.app.loop) is not None:
                call_soon(loop, leave)
            with anyio.move_on_after(LEFT_WITHIN, shield=True):
                await over.wait()
        raise


class CommandCompleter(Completer):
    """Completes commands; messages are not completed. A command with an argument is followed by a space."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = sorted(commands)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return the completions of the line."""
        line = document.text_before_cursor
        if not line.startswith("!") or line.startswith("!!"):
            return
        name, space, path = line[1:].partition(" ")
        if space:
            if name.lower() == "save":
                yield from self._paths.get_completions(Document(path, len(path)), complete_event)
            return
        for command in self._commands:
            if command.startswith(name.lower()):
                yield Completion(command, start_position=-len(name))


# Of a file that has grown beyond this many bytes, the newest half is kept.
LIMIT = 1_000_000


def history_file(folder: Path, user: str) -> Path:
    """Return the history file of a user, whose name may hold anything."""
    return folder / f"lines-{hashlib.sha256(user.encode(errors='replace')).hexdigest()[:16]}"


class LineHistory(FileHistory):
    """The history file. A full disk or a broken file costs the history, not the chat."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """Return the entries, newest first."""
        try:
            self._trim()
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Append to the file."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)

    def forget(self) -> None:
        """Delete all lines. Raises OSError."""
        self._loaded_strings = []
        self._path.unlink(missing_ok=True)

    def _trim(self) -> None:
        if not self._path.exists() or self._path.stat().st_size <= LIMIT:
            return
        _, _, kept = self._path.read_bytes()[-LIMIT // 2 :].partition(b"\n\n#")  # what an entry begins with
        write_atomically(self._path, b"\n#" + kept)
