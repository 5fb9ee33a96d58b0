"""Replies in progress, shared by all calls in this process that send the same key."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from llmsession.system.latch import Latch

if TYPE_CHECKING:
    from llmsession.memory.conversation import Conversation
    from llmsession.types.completion import Completion
    from llmsession.types.events import Event
    from llmsession.types.messages import Message


class Broadcast:
    """The events that one call reads, for the others. If it ends without a Completion, another call takes over."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._is_over = False
        self._completion: Completion | None = None
        self._news: Latch | None = None

    def publish(self, event: Event) -> None:
        """Add the next event."""
        self._add([event], is_over=False)

    def end(self, completion: Completion | None) -> None:
        """End it with the whole reply, or with None if its reader left early. Only the first call has an effect."""
        with self._lock:
            if self._is_over:
                return
            self._completion = completion
        self._add([], is_over=True)

    def _add(self, events: list[Event], *, is_over: bool) -> None:
        with self._lock:
            self._events += events
            self._is_over = self._is_over or is_over
            news, self._news = self._news, None
        if news is not None:
            news.set()

    async def next_event(self, index: int) -> Event | None:
        """Wait for the event with this index and return it; None after the last."""
        while True:
            with self._lock:
                if index < len(self._events):
                    return self._events[index]
                if self._is_over:
                    return None
                news = self._news = self._news or Latch()
            await news.wait()

    @property
    def completion(self) -> Completion | None:
        """The whole reply once it has ended; None before, or if its reader left early."""
        return self._completion


_running: weakref.WeakKeyDictionary[Conversation, dict[str, Broadcast]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def find_running(conversation: Conversation, key: str) -> Broadcast | None:
    """Return the reply in progress for this key in this process, if any."""
    with _lock:
        return _running.get(conversation, {}).get(key)


def begin_running(conversation: Conversation, key: str, message: Message) -> Broadcast:
    """Start a broadcast, which calls with the same key and message can join from now on."""
    with _lock:
        found = _running.setdefault(conversation, {})[key] = Broadcast(message)
    return found


def end_running(conversation: Conversation, key: str, completion: Completion | None) -> None:
    """End the broadcast, so that no further call joins it."""
    with _lock:
        broadcast = _running.get(conversation, {}).pop(key, None)
    if broadcast is not None:
        broadcast.end(completion)
