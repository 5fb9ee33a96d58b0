"""Makes foreign text safe to show."""

from __future__ import annotations

# These would move the cursor, recolour the screen, ring, or (the last two ranges) turn a line around.
_UNSAFE = [*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: "�" for code in _UNSAFE if chr(code) not in "\n\t\r"} | {0x0D: None}
_ON_ONE_LINE = _SHOWN | {0x09: " ", 0x0A: " "}


def printable(text: str) -> str:
    """Return text that is safe to write to a terminal: line feeds and tabs are its only control characters."""
    return text.translate(_SHOWN)


def printable_line(text: str) -> str:
    """Return the same as one line, with spaces for line feeds and tabs."""
    return text.translate(_ON_ONE_LINE)
