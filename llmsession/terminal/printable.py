"""What may be shown of words that are not ours."""

from __future__ import annotations

# These would move the cursor, recolour the screen, ring, or (the last two ranges) turn a line around.
_UNSAFE = [*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN = {code: "�" for code in _UNSAFE if chr(code) not in "\n\t\r"} | {0x0D: None}
_ON_ONE_LINE = _SHOWN | {0x09: " ", 0x0A: " "}


def printable(text: str) -> str:
    """Safe to write to a terminal: of control characters only line feeds and tabs are left."""
    return text.translate(_SHOWN)


def printable_line(text: str) -> str:
    """The same on one line: those two as spaces."""
    return text.translate(_ON_ONE_LINE)
