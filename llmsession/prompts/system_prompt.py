"""What a system prompt may hold: `{now}` and `{model}`. Nothing else in braces is touched, and no other text at all."""

from __future__ import annotations

from datetime import datetime


def render_system_prompt(text: str, *, model: str, now: datetime | None = None) -> str:
    """With the model's name and the local time, to the minute: so a prompt's start stays the same, and cached, for one.

    As `Friday 2026-11-20 19:19`. The name is not looked through for braces again.
    """
    if "{now}" not in text and "{model}" not in text:
        return text
    moment = now or datetime.now().astimezone()
    parts = text.split("{model}")
    return model.join(part.replace("{now}", f"{moment:%A %Y-%m-%d %H:%M}") for part in parts)
