"""Converts between the rows of the database and values. Texts are UTF-8 blobs, since they may hold NUL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from llmsession.memory.turn import Turn, TurnState
from llmsession.types.completion import Completion
from llmsession.types.messages import Message, Role, ToolCall

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

CONVERSATION_COLUMNS = (
    "id, user, channel, started, last_update, version, head, system_prompt, rendered_system, rendered_for"
)
TURN_COLUMNS = "id, parent, role, message, state, created, key, pinned, left_out, summary, tokens, completion"


class ConversationRow(msgspec.Struct, kw_only=True):
    """A conversation without its turns. `version` counts the changes by all processes."""

    id: int
    user: str
    channel: str
    started: datetime
    last_update: datetime
    version: int = 0
    head: int | None = None
    system_prompt: str | None = None
    rendered: tuple[str, str] | None = None


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message without its role. Images are data URLs."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[str, ...] = ()


_encoder = msgspec.json.Encoder()
_kept = msgspec.json.Decoder(_Kept)
_completion = msgspec.json.Decoder(Completion)


def as_microseconds(moment: datetime) -> int:
    """Return microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def as_hour(microseconds: int) -> int:
    """Return hours since 1970."""
    return microseconds // 3_600_000_000


def as_moment(microseconds: int) -> datetime:
    """Return an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def as_blob(text: str | None) -> bytes | None:
    """Encode a text for the database."""
    return None if text is None else text.encode()


def as_text(blob: bytes | None) -> str | None:
    """Decode a text from the database."""
    return None if blob is None else blob.decode()


def read_conversation(row: Any) -> ConversationRow:
    """Convert a row of CONVERSATION_COLUMNS."""
    number, user, channel, started, last_update, version, head, system_prompt, rendered, rendered_for = row
    return ConversationRow(
        id=number,
        user=user.decode(),
        channel=channel.decode(),
        started=as_moment(started),
        last_update=as_moment(last_update),
        version=version,
        head=head,
        system_prompt=as_text(system_prompt),
        rendered=None if rendered is None else (rendered.decode(), rendered_for.decode()),
    )


def write_turn(turn: Turn) -> tuple[Any, ...]:
    """Return the values of TURN_COLUMNS without the id."""
    message, completion = turn.message, turn.completion
    images = tuple(image for image in message.images if isinstance(image, str))
    kept = _Kept(message.content, message.tool_calls, message.tool_call_id, message.name, images)
    if completion is not None:  # what the message holds is not kept twice
        completion = replace(completion, text="", tool_calls=())
    return (
        turn.parent,
        message.role.value,
        _encoder.encode(kept),
        turn.state.value,
        as_microseconds(turn.created),
        as_blob(turn.key),
        turn.is_pinned,
        turn.is_left_out,
        turn.is_summary,
        turn.tokens,
        None if completion is None else _encoder.encode(completion),
    )


def read_turn(row: Any) -> Turn:
    """Convert a row of TURN_COLUMNS."""
    number, parent, role, blob, state, created, key, pinned, left_out, summary, tokens, known = row
    kept = _kept.decode(blob)
    message = Message(
        Role(role),
        kept.content,
        tool_calls=kept.tool_calls,
        tool_call_id=kept.tool_call_id,
        name=kept.name,
        images=kept.images,
    )
    completion = None
    if known is not None:
        completion = replace(_completion.decode(known), text=kept.content, tool_calls=kept.tool_calls)
    return Turn(
        id=number,
        parent=parent,
        message=message,
        state=TurnState(state),
        created=as_moment(created),
        key=as_text(key),
        is_pinned=bool(pinned),
        is_left_out=bool(left_out),
        is_summary=bool(summary),
        tokens=tokens,
        completion=completion,
    )
