"""The JSON of the Go package, version 1, in and out.

    {"v":1,"c":[{"u":user,"c":channel,"s":started,"l":last_update,"m":[{"r":role,"c":text}]}]}

Roles: 0 system, 1 user, 2 assistant, 3 the tools that there are, 4 a tool call, 5 its result. Go leaves out 0 and empty
text. A later version has `sp`, the system prompt; the first one's reader refuses it, so it is read and never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from llmsession.memory.turn import Turn, TurnState
from llmsession.system.atomic_file import replacing
from llmsession.types.errors import StoreError, StoreVersionError
from llmsession.types.message_input import find_fault
from llmsession.types.messages import Message, Role, ToolCall

_SYSTEM, _USER, _ASSISTANT, _, _CALL, _RESULT = range(6)
# What a Go program that never set a time writes.
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


class _GoMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    r: int = 0
    c: str = ""


class _GoConversation(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    u: str = ""
    c: str = ""
    s: str = "0001-01-01T00:00:00Z"
    l: str = "0001-01-01T00:00:00Z"  # noqa: E741 - the format's own name
    m: list[_GoMessage] | None = None
    sp: str = ""


class _GoMemory(msgspec.Struct):
    v: int = 0
    c: list[msgspec.Raw] | None = None


class FormatNote(msgspec.Struct, kw_only=True):
    """A conversation, independent of a memory. Turns are numbered from 1; parents come before their replies."""

    user: str
    channel: str
    started: datetime
    last_update: datetime
    system_prompt: str | None = None
    turns: list[Turn]
    head: int | None = None


# Reading.


def read_json(path: Path) -> tuple[list[FormatNote], int]:
    """Return all conversations and the number of tool lists that were left out.

    Raises StoreError with the place of the fault, and StoreVersionError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
    try:
        whole = msgspec.json.decode(data, type=_GoMemory)
    except ValueError as error:
        raise StoreError(f"{path} is not a memory of the Go package's: {error}") from error
    if whole.v != 1:
        raise StoreVersionError(f"{path} is of version {whole.v} of the Go package's format: only version 1 is known")
    told, left_out = [], 0
    for index, raw in enumerate(whole.c or ()):
        try:
            conversation = msgspec.json.decode(raw, type=_GoConversation)
            one, tools = _read_conversation(conversation)
        except (ValueError, OverflowError) as error:
            raise StoreError(f"{path}, conversation {index}: {error}; nothing was loaded") from error
        told.append(one)
        left_out += tools
    return told, left_out


def _read_conversation(go: _GoConversation) -> tuple[FormatNote, int]:
    """Return the conversation and the number of its tool lists."""
    started, last_update = _read_moment(go.s), _read_moment(go.l)
    builder = _Builder(started)
    for index, message in enumerate(go.m or ()):
        try:
            builder.add(message)
        except ValueError as error:
            raise ValueError(f"message {index} (of {go.u!r} in {go.c!r}): {error}") from error
    told = FormatNote(
        user=go.u,
        channel=go.c,
        started=started,
        last_update=max(started, last_update),
        system_prompt=go.sp or builder.system_prompt or None,
        turns=builder.turns,
        head=builder.head,
    )
    return told, builder.lists_of_tools


class _Builder:
    """Builds the turns of one conversation from its messages."""

    def __init__(self, created: datetime) -> None:
        self.turns: list[Turn] = []
        self.head: int | None = None
        self.system_prompt = ""
        self.lists_of_tools = 0
        self._created = created
        self._open_calls: list[str] = []

    def add(self, go: _GoMessage) -> None:
        """Add the next message. Raises ValueError if it cannot come next."""
        match go.r:
            case 0 if not self.turns and not self.system_prompt:
                self.system_prompt = go.c
            case 0:
                raise ValueError("a system message can only be the first")
            case 1:
                self._leave_unanswered()
                self._put(Message.user(go.c))
            case 2:
                self._put(Message.assistant(go.c))
            case 3:
                self.lists_of_tools += 1
            case 4:
                self._call(_read_calls(go.c, len(self.turns)))
            case 5:
                answered = self._open_calls.pop(0) if self._open_calls else ""
                self._put(Message.tool(go.c, tool_call_id=answered))
            case _:
                raise ValueError(f"{go.r} is not a role: 0 to 5 are")

    def _call(self, calls: tuple[ToolCall, ...]) -> None:
        """Merge an assistant's text and the calls that follow it into one message."""
        last = None if self.head is None else self.turns[self.head - 1]
        if last is None or last.message.role is not Role.ASSISTANT:
            self._put(Message(Role.ASSISTANT, tool_calls=calls))
            self._open_calls = [call.id for call in calls]
        else:
            message = replace(last.message, tool_calls=(*last.message.tool_calls, *calls))
            self.turns[last.id - 1] = replace(last, message=message)
            self._open_calls += [call.id for call in calls]

    def _leave_unanswered(self) -> None:
        """Take an unanswered question off the path, as FAILED: a Go bot that failed to answer kept it."""
        if self.head is None or self.turns[self.head - 1].message.role is not Role.USER:
            return
        left = self.turns[self.head - 1]
        self.turns[self.head - 1] = replace(left, state=TurnState.FAILED)
        self.head = left.parent

    def _put(self, message: Message) -> None:
        before = None if self.head is None else self.turns[self.head - 1].message
        if (fault := find_fault(message, before)) is not None:
            raise ValueError(fault)
        new = Turn(
            id=len(self.turns) + 1,
            parent=self.head,
            message=message,
            state=TurnState.COMPLETE,
            created=self._created,
        )
        self.turns.append(new)
        self.head = new.id


def _read_calls(text: str, number: int) -> tuple[ToolCall, ...]:
    """Parse `{"name":…,"arguments":{…}}`, or a list of such, as models write them."""
    try:
        found: Any = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"the tool call {text[:60]!r} is not JSON") from error
    calls = []
    for position, call in enumerate(found if isinstance(found, list) else [found]):
        match call:
            case {"name": str(name), **rest}:
                calls.append((rest.get("id") or f"call-{number}-{position}", name, rest.get("arguments", {})))
            case _:
                raise ValueError(f'the tool call {text[:60]!r} is not {{"name":…,"arguments":{{…}}}}')
    if not calls:
        raise ValueError("an empty list is not a tool call")
    return tuple(
        msgspec.convert({"id": identity, "name": name, "arguments": arguments}, ToolCall)
        for identity, name, arguments in calls
    )


def _read_moment(text: str) -> datetime:
    """Parse an RFC 3339 time with up to nine fractional digits."""
    moment = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
    return moment.astimezone(UTC) if moment.year > 1 else _NEVER


# Writing.


def write_json(path: Path, conversations: Iterable[FormatNote]) -> int:
    """Write all conversations or nothing; return the number of images that were left out. Raises StoreError."""
    images = 0
    try:
        with replacing(path, durable=True) as file:
            before = b'{"v":1,"c":['
            for told in conversations:
                file.write(before + msgspec.json.encode(_write_conversation(told)))
                images += sum(len(turn.message.images) for turn in told.turns)
                before = b",\n"
            file.write(b"]}\n" if before == b",\n" else b'{"v":1,"c":[]}\n')
    except OSError as error:
        raise StoreError(f"{path} could not be written ({error.strerror}); what was there before is there") from error
    return images


def _write_conversation(told: FormatNote) -> _GoConversation:
    first = [_GoMessage(r=_SYSTEM, c=told.system_prompt)] if told.system_prompt else []
    return _GoConversation(
        u=told.user,
        c=told.channel,
        s=_write_moment(told.started),
        l=_write_moment(told.last_update),
        m=[*first, *(part for turn in told.turns for part in _write_message(turn.message))],
    )


def _write_message(message: Message) -> Iterator[_GoMessage]:
    match message.role:
        case Role.USER:
            yield _GoMessage(r=_USER, c=message.content)
        case Role.TOOL:
            yield _GoMessage(r=_RESULT, c=message.content)
        case _:
            if message.content or not message.tool_calls:
                yield _GoMessage(r=_ASSISTANT, c=message.content)
            if message.tool_calls:
                yield _GoMessage(r=_CALL, c=msgspec.json.encode(message.tool_calls).decode())


def _write_moment(moment: datetime) -> str:
    written: str = msgspec.to_builtins(moment)
    return written
