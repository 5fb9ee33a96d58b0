"""The engines that there are, for people: where each lies, its version, or what would bring it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgspec

from llmsession.backends.capabilities import ask_version as ask_server_version
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.find import BINARY_HINT, HINT, LLAMAFILE_HINT, find_llama_server, find_llamafile
from llmsession.backends.llama_server import LlamaServer
from llmsession.errors import BackendNotFoundError, StartFailedError


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
    from llmsession.backends.transformers_server import TransformersServer, ask_version, find_python

    python = find_python(None)
    try:
        version = await ask_version(python)
    except BackendNotFoundError as error:
        return Candidate(backend=TransformersServer.name, hint=error.hint)
    return Candidate(backend=TransformersServer.name, path=str(python), version=version)
