"""Server: the one engine of a session, started when it is needed and not there. Any task or thread may end it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from llmsession.backends.backend import LLAMA_SERVER_FEATURES, TRANSFORMERS_FEATURES, Backend, Endpoint, Feature, Launch
from llmsession.backends.devices import cache_ram_mib, default_threads
from llmsession.backends.find import choose_backend, choose_for_weights
from llmsession.chosen_model import BLANK, TRANSFORMERS, fit_context_length, name_file, resolve_encoding, resolve_model
from llmsession.errors import ClosedError, FetchError, ServerExitedError, UnsupportedFeatureError
from llmsession.latch import Latch
from llmsession.models.gguf import ModelInfo, read_model_info
from llmsession.models.safetensors import WeightsInfo, read_weights_info
from llmsession.paths import cache_folder, logs_folder, records_folder
from llmsession.processes.child import describe_exit
from llmsession.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from llmsession.backends.safe_prompt import PromptWriter
    from llmsession.backends.vocabulary import Vocabulary
    from llmsession.errors import LLMSessionError
    from llmsession.options import Options
    from llmsession.processes.child import Child

# So long, at most, lies between an engine's connections being closed and its end being known.
EXIT_LAG = 0.5


class Reading:
    """A vocabulary that is read while the engine loads: of a large one that takes half a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = Latch()
        self._found: Vocabulary | Exception | None = None
        threading.Thread(target=self._work, name="llmsession-vocabulary", daemon=True).start()

    def _work(self) -> None:
        from llmsession.backends.vocabulary import read_vocabulary_of

        try:
            self._found = read_vocabulary_of(self._path)
        except Exception as error:  # noqa: BLE001 - the thread's end: whoever waits gets it
            self._found = error
        self._read.set()

    async def wait(self) -> Vocabulary:
        """It, once it is read. Raises InvalidModelError where the file has changed meanwhile."""
        await self._read.wait()
        if isinstance(self._found, Exception):
            raise self._found
        assert self._found is not None  # noqa: S101 - the thread has set it
        return self._found


class Server:
    """Started by the first who needs it; the others wait for that start. After `refuse_starts` there is no other."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.model = resolve_model(options)
        self.info: ModelInfo | WeightsInfo | None = None
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._child: Child | None = None
        self._vocabulary: Reading | None = None
        self._writer: PromptWriter | None = None
        self._writer_of: Endpoint | None = None
        self._end_download: Callable[[], None] | None = None
        self._starting: Latch | None = None
        self._closed = False

    @property
    def endpoint(self) -> Endpoint | None:
        """The last one that was ready; its child may have died since."""
        return self._endpoint

    @property
    def parallel(self) -> int:
        """How many replies it generates at once: transformers one after the other, by a seed that is the process's."""
        return 1 if self.model.is_weights else self._options.parallel

    @property
    def features(self) -> frozenset[Feature]:
        """What the engine can do, also while it is being started."""
        if self._endpoint is not None:
            return self._endpoint.features
        return TRANSFORMERS_FEATURES if self.model.is_weights else LLAMA_SERVER_FEATURES

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
        path = self.model.path or await self._fetch()
        if self.info is None:
            self.info = await anyio.to_thread.run_sync(_read_info, path, self.model.is_weights)
        backend, launch = self._plan(path, self.info)
        if self._vocabulary is None:
            self._vocabulary = Reading(path)
        endpoint = await backend.prepare(launch, self._keep_child)
        self._choose_encoding(self.info)
        with self._lock:
            self._endpoint = endpoint
        return endpoint

    async def _fetch(self) -> Path:
        """The file of a reference: from the cache, or from Hugging Face."""
        from llmsession.models.hub import ensure_model, ensure_weights

        options, ref, repo = self._options, self.model.ref, self.model.repo
        try:
            if repo is not None:
                path = await ensure_weights(
                    repo,
                    hf_token=options.hf_token,
                    offline=options.offline,
                    on_progress=options.on_progress,
                    on_start=self._keep_download,
                )
                self.model = msgspec.structs.replace(self.model, path=path)
                return path
            assert ref is not None  # noqa: S101 - a model has a path or a reference
            path = await ensure_model(
                ref,
                hf_token=options.hf_token,
                offline=options.offline,
                on_progress=options.on_progress,
                on_start=self._keep_download,
            )
        except FetchError:
            if self._closed:
                raise ClosedError("the session was closed while its model was fetched") from None
            raise
        self.model = msgspec.structs.replace(self.model, path=path, name=name_file(path.name))
        return path

    def _keep_download(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._end_download = end
            closed = self._closed
        if closed:
            end()

    def _choose_encoding(self, info: ModelInfo | WeightsInfo) -> None:
        """A base model without a template is spoken to without markers: its text goes on from ours."""
        if self.model.encoding is None and self._options.prompt_encoding is None and info.chat_template is None:
            warnings.warn(
                f"{self.model.name} has no chat template, so it is a base model: it goes on from the texts, without "
                'roles (prompt_encoding="blank" says that this is meant)',
                stacklevel=2,
            )
            self.model = msgspec.structs.replace(self.model, encoding=resolve_encoding(self._options, BLANK))

    def _plan(self, path: Path, info: ModelInfo | WeightsInfo) -> tuple[Backend, Launch]:
        options = self._options
        server_path = Path(options.server_path) if options.server_path is not None else None
        cache = cache_folder(Path(options.cache_dir) if options.cache_dir is not None else None)
        launch = Launch(
            model_path=path,
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
            on_progress=_tell_loading(options.on_progress, info.size_bytes),
        )
        if isinstance(info, ModelInfo):
            return choose_backend(options.backend, server_path), launch
        if info.chat_template is None:
            raise UnsupportedFeatureError(
                f"{path} has no chat template, and transformers serves chats only: take a model that is tuned for them",
                feature="chat template",
                backend=TRANSFORMERS,
            )
        return choose_for_weights(options.backend, server_path, options.python_path), launch

    def _keep_child(self, child: Child) -> None:
        """Called before each spawn, so that a close from elsewhere finds the child that is being started."""
        with self._lock:
            self._child = child
            closed = self._closed
        if closed:
            child.request_stop()

    async def prompt_writer(self, endpoint: Endpoint) -> PromptWriter:
        """What writes prompts for this engine, of which no text can be a special token."""
        from llmsession.backends.safe_prompt import PromptWriter

        if self._writer is None or self._writer_of is not endpoint:
            assert self._vocabulary is not None  # noqa: S101 - the engine was started
            self._writer = PromptWriter(endpoint.client, await self._vocabulary.wait())
            self._writer_of = endpoint
        return self._writer

    async def known_vocabulary(self) -> Vocabulary | None:
        """What the model's own files say of its tokens, for a server that cannot be asked."""
        return await self._vocabulary.wait() if self._vocabulary is not None else None

    def refuse_starts(self) -> None:
        """From now on there is no start. Thread-safe, does not wait."""
        with self._lock:
            self._closed = True

    def close_soon(self) -> None:
        """End the engine, without waiting for its end."""
        self.refuse_starts()
        if self._end_download is not None:
            self._end_download()
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


def _read_info(path: Path, is_weights: bool) -> ModelInfo | WeightsInfo:  # noqa: FBT001 - for a thread
    return read_weights_info(path) if is_weights else read_model_info(path)


def _tell_loading(callback: ProgressCallback | None, size: int) -> Callable[[float], None] | None:
    """The engine's share of what is loaded, in bytes of the file."""
    if callback is None:
        return None
    return lambda share: callback(Progress(stage="load", done=round(share * size), total=size))
