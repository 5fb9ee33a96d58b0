"""Which parts of a prompt a tokenizer would wrongly take for special tokens, and a prompt with stand-ins for them.

Pure: what the tokens are is for safe_prompt. A stand-in is one character of the private-use area, so that everything
around it is tokenized as it always is: splitting a prompt into pieces would change tokens at each joint.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmsession.models.encoding import Piece
from llmsession.types.messages import Text

Span = tuple[int, int]

# U+E000 to U+F8FF mean nothing to anyone.
_FIRST, _LAST = 0xE000, 0xF8FF


class Escaped(msgspec.Struct, frozen=True, kw_only=True):
    """`text` with stand-ins, and what each of them stands for."""

    text: str
    meant: dict[str, str]

    @property
    def count(self) -> int:
        """How many places were defused."""
        return sum(self.text.count(mark) for mark in self.meant)


def escape_pieces(pieces: Sequence[Piece], find: Callable[[str], list[Span]]) -> Escaped:
    """`find` says where special tokens are spelt. Of each that is not all control, the part in a text is replaced."""
    text = "".join(piece.text for piece in pieces)
    inside: list[Span] = []
    at = 0
    for piece in pieces:
        if isinstance(piece, Text):
            inside.append((at, at + len(piece.text)))
        at += len(piece.text)
    return replace_spans(text, _within(find(text), inside), Placeholders(text))


def _within(spans: Iterable[Span], inside: Sequence[Span]) -> list[Span]:
    """The parts of the spans that lie inside. Both are in order; those inside do not overlap."""
    found = []
    ends = [last for _, last in inside]
    for start, end in spans:
        for at in range(bisect.bisect_right(ends, start), len(inside)):
            first, last = inside[at]
            if first >= end:
                break
            found.append((max(start, first), min(end, last)))
    return found


class Placeholders:
    """Stand-ins that occur nowhere in the texts; the same one for the same part."""

    def __init__(self, *texts: str) -> None:
        used = {letter for text in texts for letter in text if _FIRST <= ord(letter) <= _LAST}
        self._free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in used)
        self._of: dict[str, str] = {}

    def mark(self, part: str) -> str:
        """The stand-in for it. Raises StopIteration where a text holds the whole area: nobody writes that."""
        if part not in self._of:
            self._of[part] = next(self._free)
        return self._of[part]


def replace_spans(text: str, spans: Iterable[Span], marks: Placeholders) -> Escaped:
    """With a stand-in for each span; those that overlap are one."""
    meant: dict[str, str] = {}
    written: list[str] = []
    at = 0
    for start, end in merge_spans(spans):
        mark = marks.mark(text[start:end])
        meant[mark] = text[start:end]
        written += [text[at:start], mark]
        at = end
    return Escaped(text="".join([*written, text[at:]]), meant=meant)


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """In order, without overlaps."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
