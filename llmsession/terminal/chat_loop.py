"""The chat: a line is read, its answer is shown as it comes. Ctrl-C ends the answer and not the chat."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from rich.console import Console
from rich.status import Status

from llmsession.completion import Completion, StopReason
from llmsession.errors import ClosedError, ContextOverflowError, LLMSessionError
from llmsession.messages import Message
from llmsession.session import Session
from llmsession.terminal.reading import PipeReader, Reader, TerminalReader

# A model's words may hold anything; these would move the cursor or recolour the screen.
_CONTROL = {code: "�" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


async def chat(session: Session, *, system: str | None = None, keywords: dict[str, Any] | None = None) -> None:
    """Until the input ends. Raises LLMSessionError in a pipe; a person is told, and may go on."""
    interactive = is_interactive()
    loop = ChatLoop(session, TerminalReader() if interactive else PipeReader(), interactive=interactive)
    await loop.run([Message.system(system)] if system else [], keywords or {})


class ChatLoop:
    """One chat. What is said about it goes to stderr, the answers alone to stdout."""

    def __init__(self, session: Session, reader: Reader, *, interactive: bool) -> None:
        self._session = session
        self._reader = reader
        self._interactive = interactive
        self._console = Console(stderr=True, highlight=False)

    async def run(self, messages: list[Message], keywords: dict[str, Any]) -> None:
        """Answer each line. An empty one is passed over."""
        if self._interactive:
            self._say_what_it_is()
        first = len(messages)
        while (line := await self._reader.read()) is not None:
            if not line.strip():
                continue
            asked = Message.user(line)
            try:
                reply = await self._answer([*messages, asked], keywords, first, messages)
            except LLMSessionError as error:
                if not self._interactive or isinstance(error, ClosedError):
                    raise
                self._console.print(f"{error}", style="red", markup=False)
                continue
            if reply.text or reply.stop_reason is not StopReason.INTERRUPTED:
                messages += [asked, Message.assistant(reply.text)]

    def _say_what_it_is(self) -> None:
        session = self._session
        facts = [session.model, f"{session.backend} {session.version}"]
        with contextlib.suppress(LLMSessionError):  # a remote one may not tell
            facts.append(f"{session.context_length} tokens of context")
        self._console.print(" · ".join(facts), style="bold", markup=False)
        self._console.print("Ctrl-C stops an answer; at the prompt it leaves, as Ctrl-D does.", style="dim")

    async def _answer(
        self, conversation: list[Message], keywords: dict[str, Any], first: int, messages: list[Message]
    ) -> Completion:
        """Shown as it comes. The oldest exchanges are forgotten where all of it is too long."""
        while True:
            try:
                return await self._stream(conversation, keywords)
            except ContextOverflowError:
                if len(messages) <= first:
                    raise
                del messages[first : first + 2]
                del conversation[first : first + 2]
                self._console.print("(the oldest exchange no longer fits, and was forgotten)", style="dim")

    async def _stream(self, conversation: list[Message], keywords: dict[str, Any]) -> Completion:
        shown = False
        waiting = self._show_waiting()
        try:
            with self._interrupted_by_ctrl_c():
                async with self._session.prompt_streaming(conversation, **keywords) as stream:
                    async for piece in stream:
                        waiting.stop()
                        sys.stdout.write(piece.translate(_CONTROL) if self._interactive else piece)
                        sys.stdout.flush()
                        shown = True
                    reply = await stream.result()
        finally:
            waiting.stop()
            if shown:
                sys.stdout.write("\n")
                sys.stdout.flush()
        if not shown and not self._interactive:  # a line for each question, also where nothing was said
            sys.stdout.write("\n")
            sys.stdout.flush()
        if reply.stop_reason is StopReason.INTERRUPTED:
            self._console.print("(stopped)", style="dim")
        elif reply.stop_reason is StopReason.LENGTH:
            self._console.print("(the answer was cut: its limit was reached)", style="dim")
        elif self._interactive and not reply.text:
            self._console.print("(it said nothing)", style="dim")
        return reply

    def _show_waiting(self) -> Status:
        status = self._console.status("", spinner="dots")
        if self._interactive and self._console.is_terminal:
            status.start()
        return status

    @contextlib.contextmanager
    def _interrupted_by_ctrl_c(self) -> Iterator[None]:
        """A person's Ctrl-C ends the answer; in a pipe it ends the program, as ever."""
        if not self._interactive or threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._session.interrupt()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
