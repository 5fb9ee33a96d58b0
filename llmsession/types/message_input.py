"""Converts everything that is accepted as messages: a `str`, a `Message`, an OpenAI-style `dict`, or a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from llmsession.types.errors import InvalidMessagesError
from llmsession.types.images import as_data_url
from llmsession.types.messages import Message, Role, ToolCall

if TYPE_CHECKING:
    from llmsession.types.images import ImageLike
else:  # msgspec reads no union of bytes, texts and paths; what may be given is checked when a Message is made
    ImageLike = Any

MessageLike: TypeAlias = str | Message | Mapping[str, Any]


MessagesLike: TypeAlias = MessageLike | Sequence[MessageLike]


def as_messages(value: MessagesLike, *, reply: bool = True) -> list[Message]:
    """Convert any accepted form to a list of messages, in an order that a model can answer with `reply`.

    Without `reply`, the last message may be the assistant's. Raises InvalidMessagesError, with the index of the first
    wrong message.
    """
    if isinstance(value, str | Message | Mapping):
        value = [value]
    if not isinstance(value, Iterable):
        raise InvalidMessagesError(f"messages are a str or a list of messages, not {type(value).__name__}")
    messages = [as_message(item, index) for index, item in enumerate(value)]
    check_order(messages, reply=reply)
    return messages


def with_data_urls(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with each image as a data URL. Raises InvalidMessagesError with the index."""
    return [
        msgspec.structs.replace(message, images=_read_images(message, index)) if message.images else message
        for index, message in enumerate(messages)
    ]


def _read_images(message: Message, index: int) -> tuple[str, ...]:
    try:
        return tuple(as_data_url(image) for image in message.images)
    except ValueError as error:
        raise InvalidMessagesError(f"message {index}: {error}", index=index) from error


def check_order(messages: Sequence[Message], *, reply: bool = True) -> None:
    """Raise InvalidMessagesError unless turns alternate, system first if at all, and with `reply` a user is last."""
    if not messages:
        raise InvalidMessagesError("there are no messages: give at least one user message")
    before: Message | None = None
    for index, message in enumerate(messages):
        if (fault := find_fault(message, before)) is not None:
            raise InvalidMessagesError(f"message {index} ({message.role}): {fault}", index=index)
        before = message
    if reply and messages[-1].role not in (Role.USER, Role.TOOL):
        raise InvalidMessagesError(
            f"message {len(messages) - 1} ({messages[-1].role}) leaves nothing to reply to: "
            "end with a user message or a tool result",
            index=len(messages) - 1,
        )


def find_fault(message: Message, before: Message | None) -> str | None:
    """Return what is wrong with this message after `before`, or as the first one; None if nothing is."""
    asked = before is not None and before.role is Role.ASSISTANT and bool(before.tool_calls)
    match message.role:
        case Role.SYSTEM if before is not None:
            return "a system message can only be the first"
        case Role.USER if before is not None and before.role in (Role.USER, Role.TOOL):
            return "the assistant has not answered yet: join the texts, or put its reply between them"
        case Role.USER if asked:
            return "the tool call before it has no result yet"
        case Role.ASSISTANT if before is None or before.role not in (Role.USER, Role.TOOL):
            return "an assistant message answers a user message: put one before it"
        case Role.TOOL if not asked and (before is None or before.role is not Role.TOOL):
            return "a tool result comes after the assistant message that made the call"
    return None


def as_message(item: object, index: int = 0) -> Message:
    """Convert any accepted form of one message. Raises InvalidMessagesError with the index."""
    try:
        message = _read(item)
    except InvalidMessagesError as error:
        raise InvalidMessagesError(f"message {index}: {error}", index=index) from None
    texts = [message.content, message.name or "", message.tool_call_id or ""]
    for call in message.tool_calls:
        texts += [call.id, call.name, repr(call.arguments)]
    if not all(is_unicode(text) for text in texts):
        raise InvalidMessagesError(
            f'message {index} holds a lone surrogate, which no UTF-8 text can: decode the input with errors="replace"',
            index=index,
        )
    return message


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8: Python's strings can hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(item: object) -> Message:
    match item:
        case Message():
            return item
        case str():
            return Message.user(item)
        case Mapping():
            return _read_openai(item)
    raise InvalidMessagesError(f"a message is a str, a Message or a dict, not {type(item).__name__}")


# Of a message in OpenAI's form. Those of the second line say nothing that the next reply depends on: a client that
# dumps what it was sent has them.
_KNOWN_FIELDS = frozenset({
    "role", "content", "name", "tool_calls", "tool_call_id", "refusal",
    "reasoning_content", "reasoning", "reasoning_details", "annotations", "audio", "id", "type", "status", "created_at",
})  # fmt: skip


def _read_openai(item: Mapping[str, Any]) -> Message:
    unknown = {key for key in set(item) - _KNOWN_FIELDS if item[key] not in (None, "", [], {}, ())}
    if "role" not in item or unknown:
        what = f"does not know {sorted(map(str, unknown))}" if unknown else "needs a 'role'"
        raise InvalidMessagesError(f"a message as a dict {what}: {{'role': 'user', 'content': '…'}}")
    content, images = _read_content(item.get("content"))
    return Message(
        item["role"],
        content or str(item.get("refusal") or ""),
        images=images,
        tool_calls=tuple(_read_call(call) for call in item.get("tool_calls") or ()),
        tool_call_id=item.get("tool_call_id"),
        name=item.get("name"),
    )


def _read_content(content: object) -> tuple[str, tuple[ImageLike, ...]]:
    """Return the text, and the images in it."""
    if content is None or isinstance(content, str):
        return content or "", ()
    if not isinstance(content, list):
        raise InvalidMessagesError("the content of a message is text, or a list of parts")
    texts, images = list[str](), list[ImageLike]()
    for part in content:
        match part:
            case {"type": "text" | "input_text" | "output_text", **rest}:
                texts.append(str(rest.get("text") or ""))
            case {"type": "refusal", "refusal": str(refusal)}:
                texts.append(refusal)
            case {"type": "image_url", "image_url": {"url": str(url)}} if url.startswith("data:"):
                images.append(url)
            case {"type": "image_url"}:
                raise InvalidMessagesError("an image as a part of a message is a data URL: nothing is fetched for it")
            case _:
                raise InvalidMessagesError("the parts of a message are of the types text and image_url")
    return "".join(texts), tuple(images)


def _read_call(call: object) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    match call:
        case {"function": {"name": str(name), "arguments": arguments}, **rest}:
            try:
                decoded = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
            except msgspec.DecodeError as error:
                raise InvalidMessagesError(f"the arguments of the call of {name!r} are no JSON") from error
            if isinstance(decoded, dict):
                return ToolCall(id=str(rest.get("id", "")), name=name, arguments=decoded)
    raise InvalidMessagesError("a tool call is a ToolCall or {'id': …, 'function': {'name': …, 'arguments': …}}")
