"""Fills in `{now}` and `{model}` in a system prompt. Other text, and other braces, are left unchanged."""

from __future__ import annotations

from datetime import datetime


def render_system_prompt(text: str, *, model: str, now: datetime | None = None) -> str:
    """Fill in the model's name and the local time, such as `Friday 2026-11-20 19:19`.

    The time has minutes only, so that a prompt's start stays the same, and cached, for a minute. Braces in the name are
    not filled in.
    """
    if "{now}" not in text and "{model}" not in text:
        return text
    moment = now or datetime.now().astimezone()
    parts = text.split("{model}")
    return model.join(part.replace("{now}", f"{moment:%A %Y-%m-%d %H:%M}") for part in parts)
