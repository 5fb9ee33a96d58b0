"""What tests of conversations share."""

from __future__ import annotations

from llmsession import Completion, StopReason


def reply(text: str, **fields: object) -> Completion:
    """As a model would give it."""
    known: dict[str, object] = {"id": "r", "stop_reason": StopReason.END, "seed": 7, "model": "m", **fields}
    return Completion(text=text, **known)  # type: ignore[arg-type]
