"""LaunchPlanner: prepares what an engine needs before it starts: the model's file, the engine, and its settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.choose import choose_for_weights, ensure_backend
from llmsession.backends.flags.extra_args import normalize_flag
from llmsession.backends.flags.launch_table import KV_FOLDER
from llmsession.backends.launch import Launch
from llmsession.backends.machine import cache_ram_mib, default_threads
from llmsession.models.gguf import ModelInfo, read_model_info
from llmsession.models.safetensors import WeightsInfo, read_weights_info
from llmsession.session.config.options import Options
from llmsession.session.server.model_choice import (
    BLANK,
    TRANSFORMERS,
    describe_found,
    fit_context,
    resolve_encoding,
    resolve_model,
)
from llmsession.session.server.model_files import EngineFiles, find_engine_files
from llmsession.system.paths import cache_folder, kv_folder, locate_cache, logs_folder, records_folder
from llmsession.system.service_thread import run_in_thread
from llmsession.types.device import parse_device
from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.message_input import is_unicode
from llmsession.types.progress import Progress, ProgressCallback

# Options for llama.cpp that transformers does not support.
_LLAMA_CPP_ONLY = (
    "gpu_layers", "flash_attention", "cache_type_k", "cache_type_v", "rope_freq_base", "lora", "draft_model", "mmproj",
    "chat_template",
)  # fmt: skip


class LaunchPlanner:
    """Plans the launch of one session.

    `keep_download` is called with a function that ends a download from any thread.
    """

    def __init__(self, options: Options, *, keep_download: Callable[[Callable[[], None]], None]) -> None:
        self.model = resolve_model(options)
        self.info: ModelInfo | WeightsInfo | None = None
        self._options = options
        self._keep_download = keep_download
        self._cache = locate_cache(options.cache_dir)  # now: the working directory may change
        self._threads = options.threads or parse_device(options.device).threads
        self._planned: tuple[Backend, Launch] | None = None

    async def plan(self) -> tuple[Backend, Launch]:
        """Return the engine and how to launch it: the same each time, so that a restarted engine is as it was before.

        Raises what a download can raise, ConfigError, and UnsupportedFeatureError.
        """
        if self._planned is not None:
            _make_folders(self._planned[1])  # somebody may have emptied the cache since
            if (template := self._planned[1].chat_template) is not None and not template.exists():
                self._planned = None
        if self._planned is None:
            path = self.model.path or await self._fetch()
            info = self.info = await run_in_thread(_read_info, path, self.model.is_weights)
            if isinstance(info, ModelInfo):
                files = await find_engine_files(self._options, info, self._cache_folder(), self._fetch_file)
                backend = await self.choose_backend()
            else:
                self._check_weights(path, info)
                files, backend = (
                    EngineFiles(),
                    choose_for_weights(self._options.backend, self._server_path(), self._options.python_path),
                )
            self._planned = backend, self.make_launch(backend, path, info, files)
        return self._planned

    def settle_encoding(self) -> None:
        """Prompt a model without a chat template as a base model, which continues plain text, and warn about it."""
        options = self._options
        said = options.prompt_encoding is not None or options.chat_template is not None
        if self.model.encoding is None and not said and self.info is not None and self.info.chat_template is None:
            warnings.warn(
                f"{self.model.name} has no chat template, so it is a base model: it goes on from the texts, without "
                'roles (prompt_encoding="blank" says that this is meant)',
                stacklevel=2,
            )
            self.model = msgspec.structs.replace(self.model, encoding=resolve_encoding(options, BLANK))

    async def choose_backend(self) -> Backend:
        """Return the engine to run. It is downloaded if none is installed and a release is pinned."""
        options = self._options
        return await ensure_backend(
            options.backend,
            self._server_path(),
            cache=self._cache_folder(),
            offline=options.offline,
            on_progress=options.on_progress,
            on_start=self._keep_download,
            device=str(options.device),
        )

    def make_launch(self, backend: Backend, path: Path, info: ModelInfo | WeightsInfo, files: EngineFiles) -> Launch:
        """Return what the engine is asked to run. Raises ConfigError."""
        options = self._options
        context = fit_context(options, info, can_stretch=getattr(backend, "reads_metadata_otherwise", False))
        cache = self._cache_folder()
        return Launch(
            model_path=path,
            info=info if isinstance(info, ModelInfo) else None,
            check_memory=options.check_memory,
            alias=self.model.name,
            context_length=context.length,
            parallel=options.parallel,
            threads=self._threads or default_threads(),
            cache_ram_mib=0 if files.lora else cache_ram_mib(),
            device=parse_device(options.device),
            gpu_layers=options.gpu_layers,
            flash_attention=options.flash_attention,
            kv_offload=options.kv_offload,
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
            rope_freq_base=context.rope_freq_base,
            metadata=context.metadata,
            lora=files.lora,
            draft_model=files.draft_model,
            mmproj=files.mmproj,
            chat_template=files.chat_template,
            kv_folder=kv_folder(cache) if self._keeps_kv(backend, files) else None,
            extra_args=options.extra_args,
            start_timeout=options.start_timeout,
            cache=cache,
            logs=logs_folder(cache),
            records=records_folder(cache),
            on_progress=_tell_loading(options.on_progress, info.size_bytes),
        )

    def _keeps_kv(self, backend: Backend, files: EngineFiles) -> bool:
        """Whether the KV of conversations is kept on disk.

        Not with adapters, since a saved file does not show which of them evaluated it; not with images, and not with a
        draft model, whose state is not in the file.
        """
        if files.lora or files.mmproj is not None or files.draft_model is not None:
            return False
        theirs = any(normalize_flag(argument) == KV_FOLDER for argument in self._options.extra_args)
        if not is_unicode(str(self._cache_folder())):
            return False  # the engine takes the folder's path in UTF-8
        return self._options.kv_cache_bytes > 0 and backend.name in ("llama-server", "embedded") and not theirs

    async def _fetch(self) -> Path:
        """Return the model's file, or the folder of its weights, downloaded if necessary."""
        model, options = self.model, self._options
        if model.repo is not None:
            from llmsession.models.hub.ensure import ensure_weights

            path = await ensure_weights(
                model.repo,
                hf_token=options.hf_token,
                offline=options.offline,
                on_progress=options.on_progress,
                on_start=self._keep_download,
            )
            self.model = msgspec.structs.replace(model, path=path)
            return path
        assert model.ref is not None  # noqa: S101 - a model has a path, a reference or a repository
        path = await self._fetch_file(model.ref)
        self.model = await run_in_thread(describe_found, options, model, path)
        return path

    async def _fetch_file(self, ref: str) -> Path:
        """Return the file of a reference, from the cache or from Hugging Face."""
        from llmsession.models.hub.ensure import ensure_model

        options = self._options
        return await ensure_model(
            ref,
            hf_token=options.hf_token,
            offline=options.offline,
            on_progress=options.on_progress,
            on_start=self._keep_download,
        )

    def _check_weights(self, path: Path, info: WeightsInfo) -> None:
        given = [name for name in _LLAMA_CPP_ONLY if getattr(self._options, name) not in (None, ())]
        given += [] if self._options.kv_offload else ["kv_offload"]
        if given:
            raise UnsupportedFeatureError(
                f"{', '.join(given)}: for GGUF files, which llama.cpp runs; transformers cannot be given it",
                feature=given[0],
                backend=TRANSFORMERS,
            )
        if info.chat_template is None:
            raise UnsupportedFeatureError(
                f"{path} has no chat template, and transformers serves chats only: take a model that is tuned for them",
                feature="chat template",
                backend=TRANSFORMERS,
            )

    def _server_path(self) -> Path | None:
        return Path(self._options.server_path) if self._options.server_path is not None else None

    def _cache_folder(self) -> Path:
        return cache_folder(self._cache)


def _make_folders(launch: Launch) -> None:
    """Make those that an engine and its log need. Raises ConfigError."""
    cache_folder(launch.cache)
    logs_folder(launch.cache)
    records_folder(launch.cache)
    if launch.kv_folder is not None:
        kv_folder(launch.cache)


def _read_info(path: Path, is_weights: bool) -> ModelInfo | WeightsInfo:  # noqa: FBT001 - for a thread
    return read_weights_info(path) if is_weights else read_model_info(path)


def _tell_loading(callback: ProgressCallback | None, size: int) -> Callable[[float], None] | None:
    """Return a function that turns the loaded share of the model (0 to 1) into a Progress in bytes of its file."""
    if callback is None:
        return None
    return lambda share: callback(Progress(stage="load", done=round(share * size), total=size))
