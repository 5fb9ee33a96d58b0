"""KvCache: saves what the engine has evaluated of a conversation to disk, and restores it before the next prompt.

The engine itself compares tokens: whatever is restored, it continues from the part that the next prompt begins with. So
the names and digests here only decide whether a restore is worth its time, and never affect a reply. Nothing is pinned
to a slot (LLAMA_SERVER trap 1): the engine chooses the slot most similar to the prompt, which is the restored one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from llmsession.session.kv.slot_lock import Hold, SlotLock
from llmsession.session.kv.store import KvStore, Saved, stamp_engine
from llmsession.system.latch import Latch
from llmsession.system.service_thread import ServiceThread, run_in_thread
from llmsession.types.errors import BackendError, LLMSessionError, ServerError, UndecodableError

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.types.completion import Completion
    from llmsession.types.messages import Message
    from llmsession.wire.body import ByteStream

_log = logging.getLogger("llmsession.kv")

# Fewer tokens than this are evaluated as fast as a file is read.
LEAST_TOKENS = 96
# The fixed cost of a restore or save in seconds, and the rate in bytes per second to assume until one is measured.
OVERHEAD = 0.003
FIRST_RATE = 400e6
# Restoring must be this many times as fast as evaluating.
MARGIN = 2.0
# Saving pauses the engine. It may do so for this fraction of the time that replies take; unused time adds up to a limit
# in seconds.
SHARE, MOST_CREDIT = 0.1, 1.0
# An engine without work for this many seconds is idle, and may be paused for longer.
IDLE_AFTER = 0.3
# Seconds that a close waits for saves, at most: a third of what it may take in all.
CLOSE_WAIT = 0.5
# After this many useless restores in a row, no more are tried: this engine cannot continue from them.
MOST_FAILURES = 3
SLOT_TIMEOUT = 120.0
# Seconds that a slot is held back for a save, at most. Then the next request gets it, and perhaps nothing is saved.
RELEASE_AFTER = 0.05
_THREAD_LIFE = 2.0


class _Action(msgspec.Struct):
    n_saved: int = 0
    n_restored: int = 0


class CachedTurn:
    """A reply of a conversation; with `only_reads`, a request that only evaluates the prompt.

    `expected`: the tokens that the engine should find in its cache after a restore.
    """

    def __init__(self, conversation: str, messages: Sequence[Message], *, only_reads: bool = False) -> None:
        self.conversation = conversation
        self.only_reads = only_reads
        self.prefixes, self.lengths = _digest(messages)
        self._messages = messages
        self.expected = 0

    def after(self, reply: Message) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the prefixes and lengths with the reply appended."""
        return _digest([*self._messages, reply])

    def share(self, saved: Saved) -> float:
        """Return how much of the saved conversation this prompt begins with, from 0 to 1, measured in characters."""
        count = 0
        for ours, theirs in zip(self.prefixes, saved.prefixes, strict=False):
            if ours != theirs:
                break
            count += 1
        return saved.lengths[count - 1] / max(1, saved.lengths[-1]) if count else 0.0


@dataclass(kw_only=True)
class _Job:
    endpoint: Endpoint
    slot: int
    conversation: str
    saved: Saved
    launches: int
    hold: Hold | None
    granted: threading.Event
    release: Callable[[], None]


class KvCache:
    """Saves and restores the KV of one session's conversations.

    `budget`: bytes on disk. `is_idle` returns whether no reply is in progress.
    """

    def __init__(self, budget: int, *, is_idle: Callable[[], bool]) -> None:
        self.slot_lock = SlotLock()
        self._budget = budget
        self._is_idle = is_idle
        self._lock = threading.Lock()
        self._files: KvStore | None = None
        self._engine: Endpoint | None = None
        self._owners: dict[int, str] = {}
        self._dirty: dict[int, _Job] = {}
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._busy = 0
        self._done = Latch()
        self._service = ServiceThread("llmsession-kv")
        self._is_working = False
        self._closing = False
        self._credit = 0.25
        self._prompt_rate = 0.0
        self._read_rate = self._write_rate = FIRST_RATE
        self._bytes_per_token = 0.0
        self._failures = 0

    # Before a reply.

    async def send(
        self, endpoint: Endpoint, turn: CachedTurn | None, send: Callable[[], Awaitable[ByteStream]]
    ) -> ByteStream:
        """Send a request once no slot is being saved or restored.

        Before that, the conversation is restored if that is faster than evaluating it.
        """
        saved = await self._find_worthy(endpoint, turn) if turn is not None else None
        granted = Latch()
        hold = self.slot_lock.acquire(granted.set, alone=saved is not None)
        try:
            await granted.wait()
            if saved is not None and turn is not None:
                await self._restore(endpoint, turn, saved)
            return await send()
        finally:
            self.slot_lock.release(hold)

    async def _find_worthy(self, endpoint: Endpoint, turn: CachedTurn) -> Saved | None:
        self._turn_to(endpoint)
        with self._lock:
            is_there = turn.conversation in self._owners.values()
        if is_there or self._failures >= MOST_FAILURES:
            return None
        return await run_in_thread(self._look, endpoint, turn)

    def _look(self, endpoint: Endpoint, turn: CachedTurn) -> Saved | None:
        try:
            files = self._open(endpoint)
        except OSError:  # for example, the model's file is gone
            return None
        saved = files.find(turn.conversation) if files is not None else None
        if files is None or saved is None:
            return None
        tokens = saved.tokens * turn.share(saved)
        if not self._is_worth(tokens, saved.size, self._prompt_rate or saved.prompt_rate):
            return None
        begun = time.monotonic()
        if not files.is_whole(turn.conversation, saved):
            return None
        self._read_rate = _blend(self._read_rate, saved.size / max(1e-4, time.monotonic() - begun))
        turn.expected = int(tokens)
        return saved

    def _is_worth(self, tokens: float, size: float, prompt_rate: float) -> bool:
        if tokens < LEAST_TOKENS or prompt_rate <= 0:
            return False
        # The file is read twice: for its checksum, and by the engine.
        return tokens / prompt_rate > MARGIN * (OVERHEAD + 2 * size / self._read_rate)

    async def _restore(self, endpoint: Endpoint, turn: CachedTurn, saved: Saved) -> None:
        """Restore a conversation into an idle slot, preferably one whose own conversation does not wait to be saved."""
        from llmsession.wire.metrics import parse_slots

        try:
            slots = [slot for slot in parse_slots(await endpoint.client.get("/slots")) if not slot.is_processing]
            with self._lock:
                order = list(self._owners)
                slots.sort(key=lambda slot: (slot.id in self._dirty, order.index(slot.id) if slot.id in order else -1))
            if not slots:
                turn.expected = 0
                return
            await self._act(endpoint, slots[0].id, "restore", saved.file)
            with self._lock:
                self._dirty.pop(slots[0].id, None)
                self._owners.pop(slots[0].id, None)
                self._owners[slots[0].id] = turn.conversation
        except (ServerError, UndecodableError) as error:
            turn.expected = 0
            if isinstance(error, ServerError) and error.status in (404, 501):
                self._failures = MOST_FAILURES
            elif self._files is not None:
                self._files.forget(turn.conversation)

    # After a reply.

    def end(
        self, endpoint: Endpoint | None, turn: CachedTurn | None, slot: int | None, completion: Completion | None,
        release: Callable[[], None],
    ) -> None:  # fmt: skip
        """Note the end of a reply, and save its slot if that is worth it.

        `release` is called when the slot may be given to the next request: after the save, or at once.
        """
        if endpoint is None or endpoint is not self._engine or slot is None or completion is None:
            if endpoint is not None:  # else it was left while it waited, and nothing was sent
                with self._lock:
                    self._owners.clear()  # it used one of the slots, but did not report which
            release()
            return
        job = None
        try:
            job = self._note_end(endpoint, turn, slot, completion, release)
            if job is not None:
                job.hold = self.slot_lock.acquire(job.granted.set, alone=True)
        except Exception:  # noqa: BLE001 - the reply is whole, and its slot must not be lost
            _log.exception("what the engine has evaluated of a conversation is not saved")
        if job is None or job.hold is None:
            release()
        else:
            self._put(job)

    def _note_end(
        self,
        endpoint: Endpoint,
        turn: CachedTurn | None,
        slot: int,
        completion: Completion,
        release: Callable[[], None],
    ) -> _Job | None:
        from llmsession.types.messages import Message

        usage, timings = completion.usage, completion.timings
        with self._lock:
            self._owners.pop(slot, None)
            self._dirty.pop(slot, None)
            self._owners[slot] = turn.conversation if turn is not None else ""
            if timings.prompt.count >= LEAST_TOKENS // 2 and timings.prompt.seconds > 0:
                self._prompt_rate = _blend(self._prompt_rate, timings.prompt.rate)
            self._credit = min(MOST_CREDIT, self._credit + SHARE * (timings.prompt.seconds + timings.generated.seconds))
            if turn is None:
                return None
            if turn.expected:
                self._failures = 0 if usage.cached_tokens >= turn.expected // 2 else self._failures + 1
            size = usage.total_tokens * self._bytes_per_token
            if self._closing or turn.only_reads or not self._is_worth(usage.total_tokens, size, self._prompt_rate):
                return None
            prefixes, lengths = turn.after(Message.assistant(completion.text))
            job = _Job(
                endpoint=endpoint,
                slot=slot,
                conversation=turn.conversation,
                saved=Saved(
                    file="",
                    tokens=usage.total_tokens,
                    size=0,
                    checksum=0,
                    prefixes=prefixes,
                    lengths=lengths,
                    prompt_rate=self._prompt_rate,
                ),
                launches=self.slot_lock.launches,
                hold=None,
                granted=threading.Event(),
                release=release,
            )
            cost = OVERHEAD + size / self._write_rate
            if cost > self._credit:
                job.release = _nothing
                with contextlib.suppress(BackendError):
                    self._start()
                    self._dirty[slot] = job
                return None
            self._credit -= cost
            return job

    # The thread that saves.

    def _put(self, job: _Job) -> None:
        try:
            with self._lock:
                self._start()
                self._busy += 1
                self._jobs.put(job)
        except BackendError:  # no thread can be started, so it is not saved
            self._leave(job)

    def _start(self) -> None:
        if not self._is_working:
            self._service.submit(lambda: anyio.run(self._work), self._give_up)
            self._is_working = True

    def _give_up(self, error: BaseException) -> None:
        """Called when the saver has failed, which is logged: drop the waiting saves and release their slots."""
        del error
        left = list[_Job | None]()
        with self._lock:  # a job that is added from now on starts the saver again
            with contextlib.suppress(queue.Empty):
                while True:
                    left.append(self._jobs.get_nowait())
            self._is_working, self._busy = False, 0
            self._dirty.clear()
        for job in left:
            if job is not None:
                self._leave(job)
        self._done.set()

    async def _work(self) -> None:
        """Run until there is nothing more to save. It may block: nothing else runs in this event loop."""
        idle_since = time.monotonic()
        while True:
            job = None
            with contextlib.suppress(queue.Empty):
                job = self._jobs.get(block=not self._closing, timeout=IDLE_AFTER)
            job = job or (self._next_dirty() if self._jobs.empty() else None)
            if job is not None:
                await self._save(job)
                idle_since = time.monotonic()
                continue
            with self._lock:
                over = self._closing or (not self._dirty and time.monotonic() - idle_since > _THREAD_LIFE)
                if over and self._jobs.empty():
                    self._is_working = False
                    if self._closing:
                        self._done.set()
                    return

    def _next_dirty(self) -> _Job | None:
        """Return a save that was postponed until no reply is in progress, if any and if that is now."""
        with self._lock:
            if not self._is_idle() or not self._dirty:
                return None
            job = self._dirty.pop(next(iter(self._dirty)))
            self._busy += 1
        job.hold = self.slot_lock.acquire(job.granted.set, alone=True)
        return job

    async def _save(self, job: _Job) -> None:
        path: Path | None = None
        saved = job.saved
        try:
            endpoint = job.endpoint
            files = self._open(endpoint)
            size = int(saved.tokens * self._bytes_per_token)
            if files is None or not files.has_room(size):
                return
            if not job.granted.wait(RELEASE_AFTER):
                self._release(job)  # the next request does not wait for this save
                if not job.granted.wait(SLOT_TIMEOUT):
                    return
            if self.slot_lock.launches != job.launches and not await self._holds(endpoint, job):
                return
            path, begun = files.new_file(job.conversation), time.monotonic()
            action = await self._act(endpoint, job.slot, "save", path.name)
            seconds = time.monotonic() - begun
            self._leave(job)
            size = path.stat().st_size
            self._bytes_per_token = size / max(1, action.n_saved)
            self._write_rate = _blend(self._write_rate, size / max(1e-4, seconds))
            if action.n_saved >= saved.tokens // 2:
                files.keep(job.conversation, path, msgspec.structs.replace(saved, tokens=action.n_saved))
                path = None
        except (LLMSessionError, OSError):
            return  # not saved: the conversation will be evaluated again
        except Exception:  # noqa: BLE001 - an unforeseen answer must not prevent later saves
            _log.exception("what the engine has evaluated of a conversation could not be saved")
        finally:
            self._leave(job)
            if path is not None:
                path.unlink(missing_ok=True)
            with self._lock:
                self._busy -= 1

    def _leave(self, job: _Job) -> None:
        hold, job.hold = job.hold, None
        if hold is not None:
            self.slot_lock.release(hold)
        self._release(job)

    def _release(self, job: _Job) -> None:
        release, job.release = job.release, _nothing
        release()

    async def _holds(self, endpoint: Endpoint, job: _Job) -> bool:
        """Whether the slot is still as the reply left it, although other requests were sent since."""
        from llmsession.wire.metrics import parse_slots

        with self._lock:
            if self._owners.get(job.slot, job.conversation) != job.conversation:
                return False
        slot = next((slot for slot in parse_slots(await endpoint.client.get("/slots")) if slot.id == job.slot), None)
        held = slot.n_prompt_tokens if slot is not None and not slot.is_processing else None
        return held is not None and abs(held - job.saved.tokens) <= 2

    async def _act(self, endpoint: Endpoint, slot: int, action: str, file: str) -> _Action:
        body = msgspec.json.encode({"filename": file})
        answer = await endpoint.client.post(f"/slots/{slot}?action={action}", body, timeout=SLOT_TIMEOUT)
        try:
            return msgspec.json.decode(answer, type=_Action)
        except msgspec.DecodeError as error:
            raise UndecodableError(f"the answer to {action} cannot be read: {error}", payload=answer[:1000]) from error

    def _turn_to(self, endpoint: Endpoint) -> None:
        """Reset what is known of the slots if this is another engine: its slots are empty."""
        with self._lock:
            if endpoint is not self._engine:
                self._engine, self._files, self._failures = endpoint, None, 0
                self._owners.clear()
                self._dirty.clear()

    def _open(self, endpoint: Endpoint) -> KvStore | None:
        launch = endpoint.launch
        if launch is None or launch.kv_folder is None:
            return None
        if self._files is None:
            child = endpoint.child
            engine = Path(child.command.argv[0]) if child is not None and endpoint.backend == "llama-server" else None
            stamp = stamp_engine(launch, endpoint.backend, endpoint.version, engine)
            self._files = KvStore(launch.kv_folder, stamp, self._budget)
        return self._files

    async def aclose(self) -> None:
        """Save what still waits for it, for at most `CLOSE_WAIT` seconds, and stop."""
        with self._lock:
            self._closing = True
            pending = self._is_working and (self._busy > 0 or (bool(self._dirty) and self._is_idle()))
        self._jobs.put(None)
        if pending:
            with anyio.move_on_after(CLOSE_WAIT, shield=True):
                await self._done.wait()
        self._service.stop()


def _digest(messages: Sequence[Message]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return digests of the conversation after each turn, and about how many characters it has up to there."""
    running, prefixes, lengths, length = hashlib.sha256(), [], [], 0
    for message in messages:
        encoded = msgspec.json.encode(message)
        running.update(len(encoded).to_bytes(8, "big") + encoded)
        prefixes.append(running.hexdigest()[:16])
        length += len(message.content) + 16
        lengths.append(length)
    return tuple(prefixes), tuple(lengths)


def _blend(old: float, new: float) -> float:
    return new if old <= 0 else 0.7 * old + 0.3 * new


def _nothing() -> None:
    """Do nothing: the slot has been released already."""
