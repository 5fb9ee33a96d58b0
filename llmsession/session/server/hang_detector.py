"""HangDetector: whether an engine that gives no token still works. One that hangs is killed, which its replies outlive.

An engine may hang and its /health stay "ok": then its slots stand still. It is asked for them rarely, since each answer
keeps it from noticing clients that left (LLAMA_SERVER trap 3).
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

# The longest that a working engine takes to answer beside its work.
ANSWER_TIMEOUT = 10.0


class HangDetector:
    """Over one engine of ours. `interval` is idle_timeout, in seconds: two checks are at least as far apart."""

    def __init__(self, endpoint: Endpoint, interval: float) -> None:
        self._endpoint = endpoint
        self._interval = interval
        self._lock = threading.Lock()
        self._looked_at = -interval
        self._places: dict[int, Place] | None = None

    def check(self, *, has_begun: bool, give_up: Callable[[], None]) -> None:
        """In a thread of its own, if the last check is long enough ago. `give_up` is called where nothing is to be had.

        Before its first token a reply may wait for a long prompt, of which one step can take minutes on a small
        machine: then only an engine that does not answer is taken for hung.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < self._interval:
                return
            self._looked_at = now
        name = f"llmsession-look-{self._endpoint.child.pid if self._endpoint.child is not None else 0}"
        with contextlib.suppress(BackendError):  # without a thread nothing is known: the next check tries again
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
        """The slots that work; empty where this build does not tell."""
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
