"""KvCache, where the engine does not matter. What it saves and restores is tested with real ones."""

from __future__ import annotations

from typing import Any

import pytest

from llmsession.session.kv.cache import CachedTurn, KvCache
from llmsession.types.completion import Completion, StopReason, Usage
from llmsession.types.messages import Message


@pytest.mark.parametrize("place", ["_note_end", "slot_lock"])
def test_a_slot_is_free_whatever_fails_at_the_end_of_a_reply(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """A1: an exception there would have kept the slot for ever, and failed a reply that is whole."""
    cache = KvCache(2**30, is_idle=lambda: True)
    endpoint: Any = object()
    cache._engine = endpoint
    released: list[bool] = []

    def fail(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError("nobody has foreseen this")

    if place == "_note_end":
        monkeypatch.setattr(cache, "_note_end", fail)
    else:
        monkeypatch.setattr(cache, "_is_worth", lambda *_: True)
        monkeypatch.setattr(cache.slot_lock, "acquire", fail)
    turn = CachedTurn("a name", [Message.user("hi")])
    completion = Completion(id="reply-1", text="yes", stop_reason=StopReason.END, usage=Usage(), model="m", seed=1)
    cache.end(endpoint, turn, 0, completion, lambda: released.append(True))
    assert [True] == released
    assert "is not saved" in caplog.text


def test_whoever_leaves_while_waiting_makes_nobody_forget_a_slot() -> None:
    """F9: everybody's ownership was forgotten, and each conversation was read from its file again."""
    cache = KvCache(2**30, is_idle=lambda: True)
    cache._owners[0] = "somebody"
    cache.end(None, CachedTurn("another", [Message.user("hi")]), None, None, lambda: None)
    assert {0: "somebody"} == cache._owners
