"""HangDetector: checks whether an engine that produces no token still works, and kills one that hangs.

Its replies then continue on the restarted engine. An engine may hang while its /health stays "ok"; but its slots make
no progress. It is asked for them rarely, since each answer keeps it from noticing clients that have disconnected
(LLAMA_SERVER trap 3).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from llmsession.system.service_thread import start_thread
from llmsession.types.errors import BackendError, LLMSessionError, UndecodableError

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.wire.metrics import Place

# Seconds: the longest that a working engine takes to answer while it generates.
ANSWER_TIMEOUT = 10.0


class HangDetector:
    """Watches one engine. `interval`: the idle_timeout, in seconds, which is also the least time between two checks."""

    def __init__(self, endpoint: Endpoint, interval: float) -> None:
        self._endpoint = endpoint
        self._interval = interval
        self._lock = threading.Lock()
        self._looked_at = -interval
        self._places: dict[int, Place] | None = None

    def check(self, *, has_begun: bool, give_up: Callable[[], None]) -> None:
        """Check the engine in a thread, if the last check is long enough ago.

        `give_up` is called if no slot is generating, or the engine does not report them. Before its first token
        (`has_begun` is False), a reply may wait for a long prompt, of which one step can take minutes on a small
        machine: then only an engine that does not answer counts as hung.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < self._interval:
                return
            self._looked_at = now
        name = f"llmsession-look-{self._endpoint.child.pid if self._endpoint.child is not None else 0}"
        with contextlib.suppress(BackendError):  # no thread can be started: the next check tries again
            start_thread(partial(self._work, has_begun, give_up), name)

    def _work(self, has_begun: bool, give_up: Callable[[], None]) -> None:  # noqa: FBT001 - a thread's arguments
        try:
            places = anyio.run(self._ask)
        except UndecodableError:
            places = None
        except LLMSessionError as error:
            self._kill(f"did not answer any more ({error})")
            return
        before, self._places = self._places, places
        if not has_begun or before is None:
            return
        if not places:
            give_up()
        elif any(before.get(id_) == place for id_, place in places.items()):
            self._kill(f"gave no token for {self._interval:g} s and more, while its slots stood still,")

    async def _ask(self) -> dict[int, Place]:
        """Return the progress of the busy slots, by id; empty if this build does not report its slots."""
        from llmsession.wire.metrics import parse_slots

        client, timeout = self._endpoint.client, min(ANSWER_TIMEOUT, max(1.0, self._interval))
        if "slots" not in self._endpoint.features:
            await client.get_status("/health", timeout=timeout)
            return {}
        slots = parse_slots(await client.get("/slots", timeout=timeout))
        return {slot.id: slot.place for slot in slots if slot.is_processing}

    def _kill(self, why: str) -> None:
        child = self._endpoint.child
        if child is not None and not child.exited.is_set():
            child.kill(f"{why} and was killed")
