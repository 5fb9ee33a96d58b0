"""Runs a chat in a terminal or a pipe. `Chat.interact` and `llmsession chat` both start here."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.theme import Theme

from llmsession.system.paths import cache_folder, history_folder
from llmsession.terminal.chat_loop import ChatLoop
from llmsession.terminal.commands import COMMANDS
from llmsession.terminal.reading import PipeReader, TerminalReader
from llmsession.terminal.reply_view import Reasoning
from llmsession.terminal.talk import Talk

if TYPE_CHECKING:
    from llmsession.memory.memory import Memory


# rich would put code on black, whatever the terminal's own background is.
_THEME = Theme({"markdown.code": "cyan"})


def is_interactive() -> bool:
    """Return whether stdin and stdout are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


async def interact(
    chat: Talk,
    *,
    color: bool = True,
    header: str | None = None,
    stream: bool = True,
    reasoning: Reasoning = Reasoning.DIM,
    memory: Memory | None = None,
    system_prompt: str | None = None,
    cache_dir: str | Path | None = None,
    keywords: dict[str, Any] | None = None,
) -> None:
    """Run until the input ends. Raises LLMSessionError in a pipe; on a terminal errors are shown and the chat goes on.

    `header` None shows the model's facts. `memory` stores the conversation, if given, and `system_prompt` is for a new
    one in its place. `keywords` are passed with each message.
    """
    _have_all_text_written()
    if not is_interactive():
        console = Console(stderr=True, highlight=False, emoji=False)
        plain = ChatLoop(
            chat, PipeReader(), console, commands={}, is_interactive=False, stream=stream, keywords=keywords
        )
        await plain.run()
        return
    from llmsession.terminal.reading import LineHistory, history_file

    console = Console(highlight=False, emoji=False, no_color=None if color else True, theme=_THEME)
    user = chat.conversation.user if memory is not None else ""
    folder = history_folder(cache_folder(cache_dir))
    history = LineHistory(history_file(folder, user))
    loop = ChatLoop(
        chat,
        TerminalReader(
            history, commands=[f"{name} " if command.usage else name for name, command in COMMANDS.items()], color=color
        ),
        console,
        commands=COMMANDS,
        is_interactive=True,
        reasoning=reasoning,
        stream=stream,
        memory=memory,
        system_prompt=system_prompt,
        history=history,
        keywords=keywords,
    )
    loop.greet(header)
    await loop.run()


def _have_all_text_written() -> None:
    """Make a terminal or pipe that is not UTF-8 show `?` for unknown characters instead of a traceback."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")
