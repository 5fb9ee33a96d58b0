"""Saves a conversation as Markdown, JSON or plain text, by the file's extension."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from llmsession.system.atomic_file import write_atomically
from llmsession.types.errors import UsageError
from llmsession.types.messages import Message, Role

_NAMES = {Role.SYSTEM: "System", Role.USER: "You", Role.TOOL: "Tool"}


def write_conversation(path: Path, messages: Sequence[Message], *, model: str) -> None:
    """Write the file atomically. Raises UsageError with the reason."""
    now = datetime.now(UTC).replace(microsecond=0)
    match path.suffix.lower():
        case ".json":
            text = _as_json(messages, model, now)
        case ".md" | ".markdown":
            text = _as_markdown(messages, model, now)
        case _:
            text = _as_text(messages, model)
    try:
        write_atomically(path, text.encode(), durable=True, mode=0o666)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path} ({reason}): nothing was changed; name another file") from error


def _as_json(messages: Sequence[Message], model: str, now: datetime) -> str:
    whole = {"model": model, "saved": now, "messages": [_plain(message) for message in messages]}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n"


def _plain(message: Message) -> dict[str, object]:
    """Return an OpenAI-style dict with the fields that are set."""
    fields: dict[str, object] = msgspec.to_builtins(message, enc_hook=str)
    return {name: value for name, value in fields.items() if name in ("role", "content") or value}


def _as_markdown(messages: Sequence[Message], model: str, now: datetime) -> str:
    parts = [f"# A conversation with {model}", f"{now:%Y-%m-%d %H:%M} UTC"]
    for message in messages:
        parts += [f"**{_NAMES.get(message.role, model)}:**", _words(message)]
    return "\n\n".join(parts) + "\n"


def _as_text(messages: Sequence[Message], model: str) -> str:
    return "\n\n".join(f"{_NAMES.get(message.role, model)}: {_words(message)}" for message in messages) + "\n"


def _words(message: Message) -> str:
    calls = [f"{call.name}({msgspec.json.encode(call.arguments).decode()})" for call in message.tool_calls]
    return "\n".join([*([message.content] if message.content or not calls else []), *calls])
