"""A terminal of so many columns and lines, as far as the chat writes to one. What leaves its top is kept."""

from __future__ import annotations

import io
import re

from rich.console import Console

_PART = re.compile(r"\x1b\[(\??\d*(?:;\d+)*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen(io.StringIO):
    """`history` has scrolled away, `lines` are there. It refuses what it does not know."""

    def __init__(self, columns: int, height: int) -> None:
        super().__init__()
        self.columns = columns
        self.height = height
        self.history: list[str] = []
        self.lines = [""]
        self.row = self.column = 0
        self.wraps = True
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def console(self) -> Console:
        return Console(
            file=self,
            force_terminal=True,
            width=self.columns,
            height=self.height,
            highlight=False,
            color_system="standard",
            legacy_windows=False,
        )

    @property
    def all_lines(self) -> list[str]:
        """From the first that was written, without spaces at their ends."""
        return [line.rstrip() for line in [*self.history, *self.lines]]

    def narrow(self, columns: int) -> None:
        """As a terminal does that breaks its lines again; the cursor stays on its character."""
        before, at, self.columns = self.lines, (self.row, self.column), columns
        self.lines, self.row, self.column = [], 0, 0
        for row, line in enumerate(before):
            parts = [line[start : start + columns] for start in range(0, max(len(line), 1), columns)]
            if row == at[0]:
                self.row = len(self.lines) + min(at[1] // columns, len(parts) - 1)
                self.column = at[1] - (self.row - len(self.lines)) * columns
            self.lines += parts
        while len(self.lines) > self.height:
            self.history.append(self.lines.pop(0))
            self.row -= 1

    def write(self, text: str) -> int:
        self.writes.append(text)
        position = 0
        while position < len(text):
            part = _PART.match(text, position)
            assert part is not None, text[position : position + 20]
            position = part.end()
            code, letter, move, words = part.groups()
            if letter is not None:
                self._obey(code, letter)
            elif move == "\r":
                self.column = 0
            elif move == "\n":
                self._go_down()
            else:
                self._put(words)
        return len(text)

    def _obey(self, code: str, letter: str) -> None:
        match letter, code:
            case "m", _:
                pass
            case "A", up:
                assert int(up) <= self.row, "above the screen"
                self.row -= int(up)
            case "K", "":
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "J", "":
                self.lines[self.row] = self.lines[self.row][: self.column]
                del self.lines[self.row + 1 :]
            case (("l" | "h"), "?7"):
                self.wraps = letter == "h"
            case _:
                raise AssertionError((code, letter))

    def _go_down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")
        if len(self.lines) > self.height:
            self.history.append(self.lines.pop(0))
            self.row -= 1

    def _put(self, words: str) -> None:
        for character in words:
            if self.column >= self.columns:
                if not self.wraps:
                    continue
                self._go_down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1
