"""Where a person's lines come from: a terminal with prompt_toolkit, or a pipe."""

from __future__ import annotations

import sys
from typing import Protocol

import anyio.to_thread


class Reader(Protocol):
    """`None` is the end."""

    async def read(self) -> str | None:
        """The next line, without its end."""
        ...


class PipeReader:
    """Lines of standard input, in UTF-8; what is none becomes U+FFFD."""

    async def read(self) -> str | None:
        """Given up, and left to the end of the process, where the program is told to stop."""
        return await anyio.to_thread.run_sync(_read_line, abandon_on_cancel=True)


def _read_line() -> str | None:
    if sys.stdin is None:  # it was closed before we began
        return None
    line = sys.stdin.buffer.readline()
    return line.decode(errors="replace").rstrip("\r\n") if line else None


class TerminalReader:
    """With editing and a history of this chat. Ctrl-C and Ctrl-D are both the end. Under asyncio only."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession

        self._prompt: PromptSession[str] = PromptSession("> ")

    async def read(self) -> str | None:
        """What was typed."""
        try:
            return await self._prompt.prompt_async()
        except (KeyboardInterrupt, EOFError):
            return None
