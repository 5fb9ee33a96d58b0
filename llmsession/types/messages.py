"""The values of a conversation: Role, Message, ToolCall; and Control and Text, the pieces of a prompt.

Wherever messages are taken, a `str`, a `Message` or an OpenAI-style `dict` will do; `as_messages` converts them.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.types.errors import InvalidMessagesError

if TYPE_CHECKING:
    from llmsession.types.images import ImageLike
else:  # msgspec reads no union of bytes, texts and paths; what may be given is checked when a Message is made
    ImageLike = Any


class Role(enum.StrEnum):
    """The author of a message, made from any case. `bot` also means the assistant, `developer` the system."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        if not isinstance(value, str):
            return None
        lower = value.lower()
        lower = {"bot": "assistant", "developer": "system"}.get(lower, lower)
        return next((role for role in cls if role.value == lower), None)


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """The model's request to call `name`. `arguments` is a JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


class _Spoken(msgspec.Struct, frozen=True):
    """The two fields that may be given by position."""

    role: Role
    content: str = ""


class Message(_Spoken, frozen=True, kw_only=True):
    """One message. Make it with `Message.user("…")` and the like, or `Message(role, content)`.

    `images` of a user's message are bytes, paths or data URLs, for a model that can see.
    """

    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[ImageLike, ...] = ()

    def __post_init__(self) -> None:
        try:
            msgspec.structs.force_setattr(self, "role", Role(self.role))
        except ValueError:
            raise InvalidMessagesError(f"{self.role!r} is not a role: use system, user, assistant or tool") from None
        if not isinstance(self.content, str):
            raise InvalidMessagesError(f"the content of a message is a str, not {type(self.content).__name__}")
        msgspec.structs.force_setattr(self, "tool_calls", tuple(self.tool_calls))
        if self.images:
            self._check_images()

    def _check_images(self) -> None:
        given: Any = self.images
        images = (given,) if isinstance(given, bytes | str | Path) else tuple(given)
        if not all(isinstance(image, bytes | str | Path) for image in images):
            raise InvalidMessagesError("the images of a message are bytes, paths or data URLs")
        if self.role is not Role.USER:
            raise InvalidMessagesError(f"images are for a user's message, not for one of the role {self.role}")
        msgspec.structs.force_setattr(self, "images", images)

    @classmethod
    def system(cls, text: str) -> Message:
        """A system message: instructions before the conversation. Raises InvalidMessagesError."""
        return cls(Role.SYSTEM, text)

    @classmethod
    def user(cls, text: str, *, images: tuple[ImageLike, ...] = ()) -> Message:
        """A user message, perhaps with images: bytes, paths or data URLs. Raises InvalidMessagesError."""
        return cls(Role.USER, text, images=images)

    @classmethod
    def assistant(cls, text: str) -> Message:
        """A message of the model. Raises InvalidMessagesError."""
        return cls(Role.ASSISTANT, text)

    @classmethod
    def tool(cls, text: str, *, tool_call_id: str) -> Message:
        """The result of the tool call with this id. Raises InvalidMessagesError."""
        return cls(Role.TOOL, text, tool_call_id=tool_call_id)


class Control(msgspec.Struct, frozen=True):
    """A piece of a prompt that the library writes: special tokens spelled in it are those tokens."""

    text: str


class Text(msgspec.Struct, frozen=True):
    """A piece of a prompt that somebody wrote: nothing in it is ever a special token."""

    text: str
