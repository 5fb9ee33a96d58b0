"""Finds the parts of a prompt that a tokenizer would wrongly read as special tokens, and puts placeholders there.

Pure: the writer asks for the tokens. A placeholder is one character of the private-use area, so that everything around
it is tokenized as usual: splitting a prompt into pieces would change the tokens at each joint.
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
    """`text` with placeholders, and what each of them stands for."""

    text: str
    meant: dict[str, str]

    @property
    def count(self) -> int:
        """The number of places that were escaped."""
        return sum(self.text.count(mark) for mark in self.meant)


def escape_pieces(pieces: Sequence[Piece], find: Callable[[str], list[Span]]) -> Escaped:
    """Replace the part of each special token's spelling that lies in a text. `find` returns where they are spelled."""
    text = "".join(piece.text for piece in pieces)
    inside: list[Span] = []
    at = 0
    for piece in pieces:
        if isinstance(piece, Text):
            inside.append((at, at + len(piece.text)))
        at += len(piece.text)
    return replace_spans(text, _within(find(text), inside), Placeholders(text))


def _within(spans: Iterable[Span], inside: Sequence[Span]) -> list[Span]:
    """Return the parts of the spans that lie inside. Both are in order, and those of `inside` do not overlap."""
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
    """Placeholders that occur in none of the texts. The same part gets the same one."""

    def __init__(self, *texts: str) -> None:
        used = {letter for text in texts for letter in text if _FIRST <= ord(letter) <= _LAST}
        self._free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in used)
        self._of: dict[str, str] = {}

    def mark(self, part: str) -> str:
        """Return the placeholder for a part. Raises StopIteration if a text uses the whole private-use area."""
        if part not in self._of:
            self._of[part] = next(self._free)
        return self._of[part]


def replace_spans(text: str, spans: Iterable[Span], marks: Placeholders) -> Escaped:
    """Replace each span with a placeholder. Overlapping spans become one."""
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
    """Return the spans in order, without overlaps."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
