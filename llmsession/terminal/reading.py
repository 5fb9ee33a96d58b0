"""Where a person's lines come from: a terminal with prompt_toolkit, or a pipe."""

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
    """`None` is the end."""

    async def read(self) -> str | None:
        r"""What is said next, with the lines that a `\` at the end of a line joins."""
        ...

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """An answer to a question of ours, with `given` to be edited; None if nothing is answered."""
        ...


class PipeReader:
    """Lines of standard input, in UTF-8; what is none becomes U+FFFD."""

    async def read(self) -> str | None:
        """Given up, and left to the end of the process, where the program is told to stop."""
        lines: list[str] = []
        while (line := await anyio.to_thread.run_sync(_read_line, abandon_on_cancel=True)) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """Nobody is there."""
        del question, given
        return None


def _read_line() -> str | None:
    if sys.stdin is None:  # it was closed before we began
        return None
    line = sys.stdin.buffer.readline()
    # Some programs put a byte-order mark before the first line.
    return line.decode("utf-8-sig", errors="replace").rstrip("\r\n") if line else None


class TerminalReader:
    """With editing, a history, and completion of commands with Tab. Ctrl-C and Ctrl-D are both the end."""

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
        """What was typed."""
        from prompt_toolkit.formatted_text import FormattedText

        return await _prompt(self._lines, FormattedText([("bold ansigreen", "> ")]))

    async def ask(self, question: str, *, given: str = "") -> str | None:
        """It is not kept in the history."""
        from prompt_toolkit.formatted_text import FormattedText

        return await _prompt(self._answers, FormattedText([("bold", question)]), default=given)


def _bind_enter() -> KeyBindings:
    r"""Enter ends it, unless the line ends with a `\`, or Alt is held."""
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
    """In the event loop where that is asyncio's, which prompt_toolkit uses; else in a thread with a loop of its own."""
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
    """Below what is asked, where that is short."""
    del line_number, wrap_count
    return " " * width if width <= 2 * len("system> ") else ""


def _is_asyncio() -> bool:
    from anyio.lowlevel import current_token

    return hasattr(current_token().native_token, "call_soon_threadsafe")


async def _prompt_in_thread(session: PromptSession[str], prompt: Callable[..., str]) -> str:
    """Cancelled, it puts the terminal back before it ends."""
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
    """Words for the model are not completed. A command that takes something has a space at its end."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = sorted(commands)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the line may become."""
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
    """One for each user of a memory, who may be called anything."""
    return folder / f"lines-{hashlib.sha256(user.encode(errors='replace')).hexdigest()[:16]}"


class LineHistory(FileHistory):
    """A disk that is full, or a file that is not ours, costs the history and not the chat."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        try:
            self._trim()
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """At the end of the file."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)

    def forget(self) -> None:
        """No line of it is left. Raises OSError."""
        self._loaded_strings = []
        self._path.unlink(missing_ok=True)

    def _trim(self) -> None:
        if not self._path.exists() or self._path.stat().st_size <= LIMIT:
            return
        _, _, kept = self._path.read_bytes()[-LIMIT // 2 :].partition(b"\n\n#")  # what an entry begins with
        write_atomically(self._path, b"\n#" + kept)
