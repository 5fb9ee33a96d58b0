"""Lines at the bottom of the screen that are redrawn as they change; settled lines scroll away above.

Only lines that differ are written, in one write, so nothing flickers. The cursor never goes above the screen's top, so
nothing is written twice.
"""

from __future__ import annotations

from typing import TypeAlias

from rich.console import Console
from rich.segment import Segment, Segments

Line: TypeAlias = list[Segment]

# Where a terminal thinks a character wider than we do, it cuts the line: were it to wrap it, the count of lines would
# be wrong, and every line after it.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


class LiveLines:
    """The lines being redrawn. The cursor stays at the end of the last one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[Line] = []
        self._width = console.width

    @property
    def width(self) -> int:
        """The longest line: the last column stays free, because terminals differ there."""
        return max(self._console.width - 1, 1)

    @property
    def height(self) -> int:
        """The number of lines that can be redrawn."""
        return max(self._console.height - 1, 1)

    def draw(self, lines: list[Line], *, settled: int = 0) -> None:
        """Show these lines in place of the previous ones; the first `settled` of them will not change any more."""
        self._follow_size()
        if len(lines) == settled:  # what comes next begins below them
            lines = [*lines, []]
        same = next(
            (index for index, (old, new) in enumerate(zip(self._drawn, lines, strict=False)) if old != new),
            min(len(self._drawn), len(lines)),
        )
        if same < max(len(self._drawn), len(lines)):
            self._write(self._go_to(same) + self._encode(lines[same:]))
        self._drawn = lines[settled:]

    def end(self) -> None:
        """Leave the lines as they are and put the cursor below them."""
        if self._drawn and self._drawn != [[]]:
            self._write("\n")
        self._drawn = []

    def _go_to(self, index: int) -> str:
        """Go to the start of that line, which may be the one below the last."""
        if not self._drawn:
            return "\r"
        up = len(self._drawn) - 1 - index
        return "\n\r" if up < 0 else "\r" + (f"\x1b[{up}A" if up else "")

    def _encode(self, lines: list[Line]) -> str:
        with self._console.capture() as capture:
            for number, line in enumerate(lines):
                self._console.print(Segments([Segment.line(), *line] if number else line), crop=False)
        shown = capture.get().replace("\n", f"{_CLEAR_LINE}\n")
        return f"{_NO_WRAP}{shown}{_CLEAR_LINE}{_CLEAR_BELOW}{_WRAP}"

    def _follow_size(self) -> None:
        """Adapt to a narrower terminal, which has wrapped our lines: start above all parts of them, if possible."""
        if (width := self._console.width) == self._width:
            return
        if width < self._width and self._drawn:
            rows = sum(max(1, -(-Segment.get_line_length(line) // width)) for line in self._drawn)
            up = min(rows, self._console.height) - 1
            self._write("\r" + (f"\x1b[{up}A" if up else "") + _CLEAR_BELOW)
            self._drawn = []
        self._width = width

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
