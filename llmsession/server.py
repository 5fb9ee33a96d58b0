"""Server: the one engine of a session, started when it is needed and not there. Any task or thread may end it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from llmsession.backends.backend import Backend, Endpoint, Launch
from llmsession.backends.devices import cache_ram_mib, default_threads
from llmsession.backends.find import choose_backend
from llmsession.errors import ClosedError, ConfigError, ServerExitedError, UnknownModelError
from llmsession.latch import Latch
from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.gguf import ModelInfo, read_model_info
from llmsession.models.registry import load_known_llms
from llmsession.paths import cache_folder, logs_folder, records_folder
from llmsession.processes.child import describe_exit

if TYPE_CHECKING:
    from llmsession.errors import LLMSessionError
    from llmsession.options import Options
    from llmsession.processes.child import Child

# What a conversation may use where nobody says otherwise: enough for a chat, and no gigabytes of KV cache.
DEFAULT_CONTEXT = 8192

# So long, at most, lies between an engine's connections being closed and its end being known.
EXIT_LAG = 0.5


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The file to run, and how it is spoken to: by an encoding, or through the chat endpoint (None).

    A remote server has no `path` here, and a `name` once it was asked.
    """

    name: str
    path: Path | None
    encoding: PromptEncoding | None


class Server:
    """Started by the first who needs it; the others wait for that start. After `refuse_starts` there is no other."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.model, self._path = resolve_model(options)
        self.info: ModelInfo | None = None
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._child: Child | None = None
        self._starting: Latch | None = None
        self._closed = False

    @property
    def endpoint(self) -> Endpoint | None:
        """The last one that was ready; its child may have died since."""
        return self._endpoint

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def is_starting(self) -> bool:
        """Whether a start is under way."""
        return self._starting is not None

    async def ensure_ready(self) -> Endpoint:
        """The running engine, started where there is none. Raises ClosedError and what a start can raise."""
        while True:
            with self._lock:
                if self._closed:
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
                return await self._start()
            finally:
                with self._lock:
                    self._starting = None
                mine.set()

    async def _start(self) -> Endpoint:
        if self.info is None:
            self.info = await anyio.to_thread.run_sync(read_model_info, self._path)
        backend, launch = self._plan(self.info)
        endpoint = await backend.prepare(launch, self._keep_child)
        with self._lock:
            self._endpoint = endpoint
        return endpoint

    def _plan(self, info: ModelInfo) -> tuple[Backend, Launch]:
        options = self._options
        server_path = Path(options.server_path) if options.server_path is not None else None
        cache = cache_folder(Path(options.cache_dir) if options.cache_dir is not None else None)
        launch = Launch(
            model_path=self._path,
            alias=self.model.name,
            context_length=fit_context_length(options.context_length, info),
            parallel=options.parallel,
            threads=options.threads or default_threads(),
            cache_ram_mib=cache_ram_mib(),
            extra_args=options.extra_args,
            start_timeout=options.start_timeout,
            cache=cache,
            logs=logs_folder(cache),
            records=records_folder(cache),
            on_progress=options.on_progress,
        )
        return choose_backend(options.backend, server_path), launch

    def _keep_child(self, child: Child) -> None:
        """Called before each spawn, so that a close from elsewhere finds the child that is being started."""
        with self._lock:
            self._child = child
            closed = self._closed
        if closed:
            child.request_stop()

    def refuse_starts(self) -> None:
        """From now on there is no start. Thread-safe, does not wait."""
        with self._lock:
            self._closed = True

    def close_soon(self) -> None:
        """End the engine, without waiting for its end."""
        self.refuse_starts()
        if self._child is not None:
            self._child.request_stop()

    async def aclose(self) -> None:
        """End the engine and wait until it is gone. Shielded and bounded; any state, any number of times."""
        self.close_soon()
        if self._child is not None:
            await self._child.aclose()

    def rotate_log(self) -> None:
        """Keep the log of a long run within bounds."""
        if self._child is not None:
            self._child.log.rotate()

    async def has_died(self, endpoint: Endpoint) -> bool:
        """Whether it has, or does so within a moment: a dying engine hangs up before it can be waited for."""
        if endpoint.child is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(EXIT_LAG):
                await endpoint.child.exited.wait()
        return endpoint.has_exited

    async def explain(self, error: LLMSessionError) -> LLMSessionError:
        """A lost connection is the engine's death where it has died."""
        endpoint = self._endpoint
        if endpoint is None or endpoint.child is None or not await self.has_died(endpoint):
            return error
        if self._closed:
            return ClosedError("the session was closed")
        child = endpoint.child
        exited = ServerExitedError(
            f"{endpoint.backend} {describe_exit(child.returncode)} while it replied; the next call starts it again "
            f"(its last words are in {child.log.path})",
            returncode=child.returncode,
            log_tail=child.log.tail(),
        )
        exited.__cause__ = error
        return exited


def resolve_model(options: Options) -> tuple[Model, Path]:
    """What to run, and its file. Raises UnknownModelError and ConfigError."""
    encoding = resolve_encoding(options.prompt_encoding)
    if options.model is None or options.model == bundled.NAME:
        if options.prompt_encoding is None:
            encoding = load_known_llms().encodings[bundled.ENCODING]
        name, path = bundled.NAME, bundled.bundled_path()
    else:
        text = str(options.model)
        path = Path(text).expanduser().absolute()
        name = path.stem or text
        if isinstance(options.model, str) and not path.exists() and not _looks_like_path(text):
            raise UnknownModelError(
                f"no model is called {text!r}: give the path of a .gguf file, or {bundled.NAME!r} for the bundled one",
                candidates=(bundled.NAME,),
            )
    return Model(name=name, path=path, encoding=encoding), path


def fit_context_length(asked: int | None, info: ModelInfo) -> int:
    """The context of one conversation. Raises ConfigError where the model was not trained for so much."""
    trained = info.trained_context_length
    if asked is None:
        return min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if asked == 0:
        return trained or DEFAULT_CONTEXT
    if trained is not None and asked > trained:
        raise ConfigError(
            f"context_length={asked} is more than the {trained} tokens that this model was trained for: "
            "ask for less, or 0 for all of it"
        )
    return asked


def resolve_encoding(given: str | PromptEncoding | None) -> PromptEncoding | None:
    """By its name; None for the chat endpoint. Raises ConfigError."""
    if given is None or given == "chat" or isinstance(given, PromptEncoding):
        return given if isinstance(given, PromptEncoding) else None
    encodings = load_known_llms().encodings
    if given not in encodings:
        raise ConfigError(f"prompt_encoding={given!r} is unknown: use {', '.join(sorted(encodings))} or chat")
    return encodings[given]


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.lower().endswith(".gguf")
