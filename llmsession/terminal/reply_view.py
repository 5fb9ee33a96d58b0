"""Shows a reply as it arrives: as Markdown on a terminal, as plain text elsewhere."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

import anyio
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from llmsession.terminal.live_lines import Line, LiveLines
from llmsession.terminal.printable import printable

# Drawing takes at most about this share of the time, so that a long block does not slow its own arrival.
SHARE = 0.2
# As often as a spinner needs it.
TICK = 0.08
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_FRAMES = "|/-\\"
_DIM = Style(dim=True)


class Reasoning(enum.StrEnum):
    """How reasoning is shown: as it is, dimmed, or not at all."""

    SHOW = "show"
    DIM = "dim"
    HIDE = "hide"


class ReplyView(Protocol):
    """Shows one reply. `finish` is called once, however the reply ended."""

    def think(self, text: str) -> None:
        """Show a piece of reasoning."""
        ...

    def say(self, text: str) -> None:
        """Show a piece of the answer."""
        ...

    async def keep_drawn(self) -> None:
        """Redraw until cancelled."""
        ...

    def finish(self) -> None:
        """Show the rest, and put the cursor on a line of its own."""
        ...


class PlainView:
    """Writes text as it arrives, and a line end after each reply, even an empty one."""

    def __init__(self, out: TextIO, *, is_safe: bool, stream: bool = True) -> None:
        self._out = out
        self._is_safe = is_safe
        self._stream = stream

    def think(self, text: str) -> None:
        """Do nothing: reasoning is not part of the answer."""

    def say(self, text: str) -> None:
        """Write at once; on a terminal without control characters."""
        self._out.write(printable(text) if self._is_safe else text)
        if self._stream:
            self._out.flush()

    async def keep_drawn(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Write the line end."""
        self._out.write("\n")
        self._out.flush()


class MarkdownView:
    """Settles finished blocks and redraws the current one. A spinner turns until the first text."""

    def __init__(self, console: Console, *, reasoning: Reasoning = Reasoning.DIM, stream: bool = True) -> None:
        self._lines = LiveLines(console)
        self._console = console
        self._reasoning = reasoning
        self._stream = stream
        self._thoughts = ""
        self._source = ""
        self._skip = 0  # so many lines of the block that comes are settled
        self._has_above = False
        self._is_stale = True
        self._begun = time.monotonic()
        self._wait_until = 0.0

    def think(self, text: str) -> None:
        """Show reasoning as text, not as Markdown."""
        self._thoughts += printable(text)
        self._refresh()

    def say(self, text: str) -> None:
        """Add to what will be drawn next."""
        if self._stream and not self._source:
            self._settle_thoughts()
        self._source += printable(text)
        self._refresh()

    async def keep_drawn(self) -> None:
        """Draw what could not be drawn on arrival, and the spinner."""
        while True:
            self._refresh(is_tick=True)
            await anyio.sleep(TICK)

    def finish(self) -> None:
        """Draw the final state."""
        self._settle_thoughts()
        self._draw_source(is_last=True)
        self._lines.end()

    def _refresh(self, *, is_tick: bool = False) -> None:
        self._is_stale = self._is_stale or not is_tick
        before = time.monotonic()
        if before < self._wait_until:
            return
        if not self._has_something_to_show():
            self._lines.draw([self._spinner()])
            return
        if not self._is_stale:
            return
        if self._source:
            self._draw_source()
        else:
            self._draw_thoughts()
        self._is_stale = False
        now = time.monotonic()
        self._wait_until = now + (now - before) * (1 / SHARE - 1)

    def _has_something_to_show(self) -> bool:
        if not self._stream:
            return False
        return bool(self._source.strip()) or (bool(self._thoughts.strip()) and self._reasoning != Reasoning.HIDE)

    def _spinner(self) -> Line:
        frames = _ASCII_FRAMES if self._console.options.ascii_only else _FRAMES
        frame = frames[math.floor((time.monotonic() - self._begun) / TICK) % len(frames)]
        words = " thinking" if self._thoughts and not self._source else ""
        return [Segment(frame + words, _DIM)]

    def _draw_thoughts(self) -> None:
        self._draw_block(self._thought_lines())

    def _settle_thoughts(self) -> None:
        if self._thoughts.strip() and self._reasoning != Reasoning.HIDE:
            lines = self._thought_lines()[self._skip :]
            self._lines.draw(lines, settled=len(lines))
            self._skip, self._has_above = 0, True
        self._thoughts = ""

    def _thought_lines(self) -> list[Line]:
        from llmsession.terminal.markdown_lines import to_lines

        style = "dim italic" if self._reasoning == Reasoning.DIM else "italic"
        return to_lines(self._console, Text(self._thoughts.strip(), style=style), self._lines.width)

    def _draw_source(self, *, is_last: bool = False) -> None:
        from llmsession.terminal.markdown_lines import is_table, split_finished, without_undecided

        finished, rest = split_finished(self._source)
        settled: list[Line] = []
        if finished:
            settled = self._render(finished)[self._skip :]
            self._has_above = self._has_above or bool(settled)
            self._source, self._skip = rest, 0
        lines = self._render(self._source if is_last else without_undecided(self._source))
        if is_last:
            self._lines.draw([*settled, *lines[self._skip :]])
        elif len(lines) > self._lines.height and is_table(self._source):
            self._lines.draw([*settled, *lines[-self._lines.height :]], settled=len(settled))
        else:
            self._draw_block(lines, settled)

    def _render(self, source: str) -> list[Line]:
        """Render, with an empty line before the block if something stands above."""
        from llmsession.terminal.markdown_lines import markdown_lines

        lines = markdown_lines(self._console, source, self._lines.width)
        return [[], *lines] if lines and self._has_above else lines

    def _draw_block(self, lines: list[Line], settled: Sequence[Line] = ()) -> None:
        """Draw a block. If it is longer than the screen, what has scrolled off is settled."""
        rest = lines[self._skip :]
        beyond = max(0, len(rest) - self._lines.height)
        self._skip += beyond
        self._lines.draw([*settled, *rest], settled=len(settled) + beyond)
