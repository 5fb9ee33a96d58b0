"""Every text in messages that somebody wrote, to be searched or changed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from llmsession.types.messages import Message, ToolCall

# A space of no width, and another for texts that hold the first.
_SPACES = ("\u200b", "\u2060")


def choose_space(texts: Sequence[str]) -> str:
    """Return a character that is in none of the texts, if there is one."""
    return next((space for space in _SPACES if not any(space in text for text in texts)), _SPACES[0])


def texts_of(messages: Sequence[Message]) -> Iterable[str]:
    """Yield every text in the messages that somebody wrote."""
    for message in messages:
        yield from (message.content, message.name or "", message.tool_call_id or "")
        for call in message.tool_calls:
            yield from (call.id, call.name)
            yield from strings_of(call.arguments)


def strings_of(value: Any) -> Iterable[str]:
    """Yield every string in a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_of(key)
            yield from strings_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_of(item)


def map_texts(message: Message, change: Callable[[str], str]) -> Message:
    """Return the message with each of its texts changed."""
    return msgspec.structs.replace(
        message,
        content=change(message.content),
        name=change(message.name) if message.name is not None else None,
        tool_call_id=change(message.tool_call_id) if message.tool_call_id is not None else None,
        tool_calls=tuple(
            ToolCall(id=change(call.id), name=change(call.name), arguments=map_strings(call.arguments, change))
            for call in message.tool_calls
        ),
    )


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return the JSON value with each string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
