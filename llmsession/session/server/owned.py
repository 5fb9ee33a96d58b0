"""OwnedServer: the engine process of a session, started when it is needed. Any task or thread may end it."""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from llmsession.backends.endpoint import LLAMA_SERVER_FEATURES, TRANSFORMERS_FEATURES, Endpoint, Feature
from llmsession.prompts.vocabulary import VocabularyLoader
from llmsession.session.server.hang_detector import HangDetector
from llmsession.session.server.launch_plan import LaunchPlanner
from llmsession.session.server.restart_policy import RestartPolicy
from llmsession.system.latch import Latch
from llmsession.types.errors import BackendError, ClosedError, FetchError, RestartLimitError, ServerExitedError

if TYPE_CHECKING:
    from llmsession.models.gguf import ModelInfo
    from llmsession.models.safetensors import WeightsInfo
    from llmsession.processes.child import Child
    from llmsession.prompts.vocabulary import Vocabulary
    from llmsession.prompts.writer import PromptWriter
    from llmsession.session.config.options import Options
    from llmsession.session.server.model_choice import ResolvedModel
    from llmsession.types.errors import LLMSessionError

# Seconds, at most, from when an engine closes its connections to when its exit is known.
EXIT_LAG = 0.5
# Replies between two checks of the log's size: each writes some hundred bytes.
ROTATE_EVERY = 64


class OwnedServer:
    """An engine process. The first call that needs it starts it; others wait for that start.

    After `refuse_starts`, it is not started any more.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._preparation = LaunchPlanner(options, keep_download=self._keep_download)
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._child: Child | None = None
        self._vocabulary: VocabularyLoader | None = None
        self._writer: PromptWriter | None = None
        self._writer_of: Endpoint | None = None
        self._end_download: Callable[[], None] | None = None
        self._starting: Latch | None = None
        self._closed = Latch()
        self._restarts = RestartPolicy(options.restart_limit)
        self._ended: Endpoint | None = None
        self._watch: HangDetector | None = None
        self._replies_since_rotation = 0
        _SERVERS.add(self)

    @property
    def model(self) -> ResolvedModel:
        """The model it runs, as far as it is known by now."""
        return self._preparation.model

    @property
    def info(self) -> ModelInfo | WeightsInfo | None:
        """The header of the model's file; None until it is read."""
        return self._preparation.info

    @property
    def parallel(self) -> int:
        """How many replies it generates at once: one with transformers, where the seed is set for the whole process."""
        return 1 if self.model.is_weights else self._options.parallel

    @property
    def features(self) -> frozenset[Feature]:
        """The features it has; before it is ready, those that it is expected to have."""
        if self._endpoint is not None:
            return self._endpoint.features
        return TRANSFORMERS_FEATURES if self.model.is_weights else LLAMA_SERVER_FEATURES

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint that was ready last; its process may have exited since."""
        return self._endpoint

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed.is_set()

    @property
    def is_started(self) -> bool:
        """Whether an engine was ever started."""
        return self._child is not None

    @property
    def is_starting(self) -> bool:
        """Whether a start is in progress."""
        return self._starting is not None

    async def ensure_ready(self) -> Endpoint:
        """Return the running engine, started if necessary.

        Raises ClosedError, RestartLimitError, and what a start can raise.
        """
        while True:
            with self._lock:
                if self._closed.is_set():
                    raise ClosedError("the session is closed: open another")
                endpoint = self._endpoint
                if endpoint is not None and not endpoint.has_exited:
                    return endpoint
                others_start = self._starting
                mine = self._starting = others_start or Latch()
            if others_start is not None:
                await others_start.wait()
                continue
            try:
                return await (self._start() if endpoint is None else self._start_again(endpoint))
            finally:
                with self._lock:
                    self._starting = None
                mine.set()

    async def _start(self) -> Endpoint:
        try:
            backend, launch = await self._preparation.plan()
        except FetchError:
            if self._closed.is_set():
                raise ClosedError("the session was closed while something was fetched for it") from None
            raise
        if self._vocabulary is None:
            self._vocabulary = VocabularyLoader(launch.model_path)
        endpoint = await backend.prepare(launch, self._keep_child)
        self._preparation.settle_encoding()
        with self._lock:
            self._endpoint = endpoint
            self._restarts.note_ready()
            self._watch = HangDetector(endpoint, self._options.idle_timeout)
        return endpoint

    async def _start_again(self, ended: Endpoint) -> Endpoint:
        """Restart it with the same model, context, slots and flags, after a pause that grows with repeated exits."""
        restarts = self._restarts
        if ended is not self._ended:
            self._ended = ended
            restarts.note_end()
        if restarts.is_exhausted:
            raise self._describe_spent(ended)
        with anyio.move_on_after(restarts.pause):
            await self._closed.wait()
        if self._closed.is_set():
            raise ClosedError("the session was closed")
        try:
            return await self._start()
        except BackendError:
            restarts.note_end()
            raise

    def _describe_spent(self, ended: Endpoint) -> RestartLimitError:
        limit, child = self._restarts.limit, ended.child
        tail = child.log.tail() if child is not None else ""
        if limit == 0:
            words = f"{ended.backend} has ended, and restart_limit=0 is not to start it again: open another session"
        else:
            words = (
                f"{ended.backend} has ended {self._restarts.count} times in {self._restarts.window:g} s, so it is not "
                f"started again for the next {self._restarts.next_in:.0f} s (restart_limit={limit})"
            )
        where = f"; its last words are in {child.log.path}" if child is not None else ""
        return RestartLimitError(words + where, restarts=self._restarts.count, log_tail=tail)

    def may_start_again(self, times: int) -> bool:
        """Whether it may be restarted for a reply during which it was restarted `times` times already."""
        return not self._closed.is_set() and not self._restarts.is_exhausted and times < self._restarts.limit

    def check_progress(self, endpoint: Endpoint, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Check for a hang: see HangDetector. An engine that was replaced is not checked: its replies end anyway."""
        watch = self._watch
        if watch is None or endpoint is not self._endpoint:
            return endpoint.has_exited
        watch.check(has_begun=has_begun, give_up=give_up)
        return True

    def _keep_download(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._end_download = end
            closed = self._closed.is_set()
        if closed:
            end()

    def _keep_child(self, child: Child) -> None:
        """Called before each spawn, so that a close from elsewhere finds the process that is being started."""
        with self._lock:
            self._child = child
            closed = self._closed.is_set()
        if closed:
            child.request_stop()

    async def prompt_writer(self, endpoint: Endpoint) -> PromptWriter:
        """Return the writer of prompts for this engine, in which no text becomes a special token."""
        from llmsession.prompts.writer import PromptWriter

        if self._writer is None or self._writer_of is not endpoint:
            assert self._vocabulary is not None  # noqa: S101 - the engine was started
            self._writer = PromptWriter(
                endpoint.client, await self._vocabulary.wait(), exact="pieces" in endpoint.features
            )
            self._writer_of = endpoint
        return self._writer

    async def known_vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of the model's own files, for a server that cannot be asked."""
        return await self._vocabulary.wait() if self._vocabulary is not None else None

    def refuse_starts(self) -> None:
        """Refuse further starts. Thread-safe; does not wait."""
        with self._lock:
            self._closed.set()

    def close_soon(self) -> None:
        """End the engine without waiting for its exit."""
        self._end_start()
        if self._child is not None:
            self._child.request_stop()

    def _end_start(self) -> None:
        """End a download that a start waits for, and refuse further starts."""
        self.refuse_starts()
        if self._end_download is not None:
            self._end_download()

    def end_at_exit(self) -> None:
        """End the engine while the interpreter exits: without starting a thread, and within a fraction of a second."""
        self._end_start()
        if self._child is not None:
            self._child.end_at_exit()

    async def aclose(self, *, within: float) -> None:
        """End the engine and wait for its exit: shielded, at most `within` seconds, in any state, repeatedly."""
        self._end_start()
        if self._child is not None:
            await self._child.aclose(within=within)

    def rotate_log(self) -> None:
        """Keep the log of a long run within bounds. Its size is checked once in `ROTATE_EVERY` replies."""
        self._replies_since_rotation += 1
        if self._replies_since_rotation >= ROTATE_EVERY and self._child is not None:
            self._replies_since_rotation = 0
            self._child.log.rotate()

    async def has_exited_soon(self, endpoint: Endpoint) -> bool:
        """Whether it has exited, or does within `EXIT_LAG` seconds: a dying engine closes its connections first."""
        if endpoint.child is not None:
            with anyio.move_on_after(EXIT_LAG, shield=True):
                await endpoint.child.exited.wait()
        return endpoint.has_exited

    async def diagnose(self, error: LLMSessionError, endpoint: Endpoint | None) -> LLMSessionError:
        """Return the cause of a lost connection: the engine's exit, if it has exited, else `error` itself."""
        if endpoint is None or endpoint.child is None or not await self.has_exited_soon(endpoint):
            return error
        if self._closed.is_set():
            return ClosedError("the session was closed")
        from llmsession.backends.diagnosis.explain import describe_end

        child = endpoint.child
        again = "; the next call starts it again" if self.may_start_again(0) else ""
        exited = ServerExitedError(
            f"{describe_end(endpoint)}{again} (its last words are in {child.log.path})",
            returncode=child.returncode,
            log_tail=child.log.tail(),
        )
        exited.__cause__ = error
        return exited


_SERVERS: weakref.WeakSet[OwnedServer] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    # These were never closed. Later, during the interpreter's finalization, no thread could be started to end them.
    for server in list(_SERVERS):
        if server.is_started and not server.is_closed:
            warnings.warn(
                f"a session of {server.model.name} was never closed: use `async with Session(…)`",
                ResourceWarning,
                stacklevel=1,
            )
        server.end_at_exit()


if hasattr(os, "register_at_fork"):
    # A forked copy of the process owns no engine, and must not wait for locks that its parent's threads held.
    os.register_at_fork(after_in_child=_SERVERS.clear)
