"""What the next prompt will begin with: the part of a conversation that stays the same whatever is said next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmsession.types.messages import Control, Message, Role, Text

if TYPE_CHECKING:
    from llmsession.models.encoding import Part, PromptEncoding

# A text that stands for a place in another: a letter of the private-use area, which means nothing to anyone.
_PLACE = "\uf8ff"


def open_next(messages: Sequence[Message], place: str, *, typing: bool = False) -> list[Message]:
    """Return the messages with `place` where the next text goes.

    That is in a new turn, or with `typing` at the end of the last one.
    """
    last = messages[-1]
    if typing and last.role is Role.USER:
        return [*messages[:-1], msgspec.structs.replace(last, content=last.content + place)]
    if last.tool_calls:
        return [*messages, Message.tool(place, tool_call_id=last.tool_calls[0].id)]
    return [*messages, Message.user(place)]


def encode_next(encoding: PromptEncoding, turns: Sequence[Message], *, typing: bool = False) -> list[Part]:
    """Return what the next prompt will begin with, in parts. See `open_next`."""
    place = _PLACE
    while any(place in turn.content for turn in turns):
        place += _PLACE
    parts: list[Part] = []
    for role, pieces in encoding.encode_parts(open_next(turns, place, typing=typing), reply=False):
        kept: list[Control | Text] = []
        parts.append((role, kept))
        for piece in pieces:
            before, found, _ = piece.text.partition(place)
            kept.append(type(piece)(before))
            if found:
                return parts
    return parts
