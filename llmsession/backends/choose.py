"""Which engine to run: what the user named; otherwise the first that can use the best device of this machine.

The order is that of `find`; last a pinned release, which is downloaded. On a machine with a GPU each engine is asked
which devices it sees, and one that sees the GPU goes before one that does not.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.find import (
    BINARY_HINT,
    HINT,
    Engine,
    find_engines,
    find_program,
    is_llamafile,
    require_embedded,
    require_llamafile,
)
from llmsession.backends.gpus import ListsGpus
from llmsession.backends.llama_server import LlamaServer
from llmsession.backends.machine import may_have_gpu
from llmsession.system.latch import Latch
from llmsession.types.device import Gpu, parse_device
from llmsession.types.errors import (
    BackendNotFoundError,
    ConfigError,
    FetchError,
    LLMSessionError,
    StartFailedError,
    UsageError,
)
from llmsession.types.progress import ProgressCallback

if TYPE_CHECKING:
    from llmsession.backends.install.pinned import Chosen

_log = logging.getLogger("llmsession.engines")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The engine to run, and the reason, as the end of "it was chosen because …"."""

    engine: Engine
    why: str


async def ensure_backend(
    name: str = "auto",
    server_path: Path | None = None,
    *,
    cache: Path,
    offline: bool | None = None,
    on_progress: ProgressCallback | None = None,
    on_start: Callable[[Callable[[], None]], None] | None = None,
    device: str = "best",
) -> Backend:
    """Return the backend to start, like choose_backend; if none is installed, install a pinned release of llama.cpp.

    `offline`: None means that HF_HUB_OFFLINE decides. `on_start` is called with a function that ends the download from
    any thread. Raises what choose_backend raises, FetchError, and StartFailedError.
    """
    try:
        return await choose_backend(name, server_path, cache=cache, device=device)
    except BackendNotFoundError:
        from llmsession.models.hub.cache import is_offline

        if name not in ("auto", LlamaServer.name) or (chosen := _find_pinned()) is None or is_offline(offline):
            raise
    from llmsession.backends.install.installer import install

    ended, installed, failure = Latch(), None, None
    if on_start is not None:
        on_start(ended.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_after, ended, tasks.cancel_scope)
        try:
            installed = await install(chosen, cache, on_progress=on_progress)
        except LLMSessionError as error:  # the group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if installed is None:
        raise FetchError(f"the download of {chosen.name} was ended; it goes on next time")
    return LlamaServer(installed.binary)


async def _cancel_after(ended: Latch, scope: anyio.CancelScope) -> None:
    await ended.wait()
    scope.cancel()


async def choose_backend(
    name: str = "auto", server_path: Path | None = None, *, cache: Path, device: str = "best"
) -> Backend:
    """Return the backend to start. Raises BackendNotFoundError with a hint, ConfigError if a name or path is wrong."""
    if server_path is not None or name in ("llamafile", "embedded"):
        return choose_named(name, server_path)
    return (await choose_engine(name, cache=cache, device=device)).engine.backend


async def choose_engine(name: str = "auto", *, cache: Path, device: str = "best") -> Choice:
    """Return the best of the installed engines, or of the installed llama-servers.

    Raises BackendNotFoundError, ConfigError.
    """
    if name not in ("auto", LlamaServer.name):
        choose_named(name, None)
    engines = (engine for engine in find_engines(cache) if name in ("auto", engine.backend.name))
    first = next(engines, None)
    if first is None:
        raise _none_installed(name)
    by_order = Choice(engine=first, why="it is the first in the order of choice that is installed")
    if parse_device(device).kind == "cpu" or not _is_worth_asking() or not (others := list(engines)):
        return by_order
    for engine in itertools.chain([first], others):
        if gpus := await find_gpus(engine):
            blind = f"{first.title} sees no GPU, and " if engine is not first else ""
            return Choice(engine=engine, why=f"{blind}it sees {', '.join(gpu.text for gpu in gpus)}")
    return by_order


def _is_worth_asking() -> bool:
    """Whether one engine may compute faster than another: there may be a GPU, or the Metal of a Mac."""
    return sys.platform == "darwin" or may_have_gpu()


# By the engine's file, its size and the time of its last change. Only in this process: a driver may be installed later.
_gpus: dict[tuple[Path, int, int], list[Gpu]] = {}


async def find_gpus(engine: Engine) -> list[Gpu]:
    """Return the GPUs that an engine sees; an empty list if it cannot be asked, which is logged. It is asked once."""
    if not isinstance(engine.backend, ListsGpus):
        return []
    try:
        found = engine.path.stat()
    except OSError as error:
        _log.warning("%s cannot be asked which GPUs it sees: %s", engine.title, error)
        return []
    key = (engine.path, found.st_size, found.st_mtime_ns)
    if key not in _gpus:
        try:
            _gpus[key] = await engine.backend.list_gpus()
        except (OSError, StartFailedError) as error:  # cached: one that hangs would delay every start by its time limit
            _log.warning("%s cannot be asked which GPUs it sees: %s", engine.title, error)
            _gpus[key] = []
    return _gpus[key]


def choose_named(name: str, server_path: Path | None) -> Backend:
    """Return the backend of this name, or the one for the file. Raises BackendNotFoundError, ConfigError."""
    match name:
        case "auto" if server_path is not None and is_llamafile(server_path):
            return require_llamafile(server_path)
        case "auto" | "llama-server" if (program := find_program("llama-server", server_path)) is not None:
            return LlamaServer(program)
        case "llamafile":
            return require_llamafile(server_path)
        case "embedded":
            return require_embedded(server_path)
        case "transformers":
            raise ConfigError("transformers runs safetensors, not GGUF files: name a folder of them, or hf:author/repo")
    raise ConfigError(f"backend={name!r} is unknown: use auto, llama-server, llamafile, embedded or transformers")


def _none_installed(name: str) -> BackendNotFoundError:
    if name == "auto":
        return BackendNotFoundError(f"there is no engine to run: {HINT} brings one", hint=HINT)
    return BackendNotFoundError(
        f"there is no llama-server on PATH: install llama.cpp, or {BINARY_HINT} (it compiles for ten minutes), "
        "or name a binary with server_path=",
        hint=BINARY_HINT,
    )


def choose_for_weights(name: str, server_path: Path | None, python_path: str | Path | None) -> Backend:
    """Return the backend that runs safetensors. Raises ConfigError if another one was named."""
    from llmsession.backends.transformers_serve import TransformersServe, find_python

    if name not in ("auto", TransformersServe.name):
        raise ConfigError(f'backend={name!r} runs GGUF files and not safetensors: omit it, or use "transformers"')
    if server_path is not None:
        raise ConfigError("server_path= is for GGUF files; python_path= names the environment of transformers")
    return TransformersServe(find_python(python_path))


def _find_pinned() -> Chosen | None:
    """Return the build of the first pinned release for this machine, if the digests of all its files are known."""
    from llmsession.backends.install.pinned import choose_build, read_table
    from llmsession.backends.install.platforms import present_accelerators, this_platform

    table, platform = read_table(), this_platform()
    if not table.releases or platform is None:
        return None
    with contextlib.suppress(UsageError):
        chosen = choose_build(table.releases[0], platform, present_accelerators())
        return chosen if chosen.build.is_pinned else None
    return None
