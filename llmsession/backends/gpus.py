"""The GPUs that an engine's build lists, and the choice of the requested one."""

from __future__ import annotations

import re
from typing import Protocol, runtime_checkable

from llmsession.types.device import DeviceRequest, Gpu
from llmsession.types.errors import ConfigError
from llmsession.types.units import MIB

_LISTED = re.compile(
    r"^ {2}(?P<name>\S+): (?P<text>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)\s*$", re.MULTILINE
)


@runtime_checkable
class ListsGpus(Protocol):
    """A backend whose build can list its GPUs."""

    async def list_gpus(self) -> list[Gpu]:
        """Return the GPUs that it sees, in its order."""
        ...


def parse_listed_gpus(said: str) -> list[Gpu]:
    """Parse the output of llama-server's --list-devices. Devices without memory, such as BLAS, are not GPUs."""
    found_gpus = [found for found in _LISTED.finditer(said) if int(found["total"])]
    return [
        Gpu(
            name=found["name"],
            index=index,
            text=found["text"],
            memory_bytes=int(found["total"]) * MIB,
            free_bytes=int(found["free"]) * MIB,
        )
        for index, found in enumerate(found_gpus)
    ]


def pick_gpu(choice: DeviceRequest, gpus: list[Gpu], engine: str) -> Gpu | None:
    """Return the requested GPU; None if it may be any of them. Raises ConfigError if it does not exist."""
    if not gpus:
        raise ConfigError(
            f'a GPU was asked for, but {engine} sees none here: use device="cpu", or name a llama-server that was '
            "built for yours (CUDA, ROCm, Vulkan or Metal) with server_path="
        )
    if choice.index is None:
        return None
    if choice.index >= len(gpus):
        there = ", ".join(f"gpu:{gpu.index} ({gpu.text})" for gpu in gpus)
        raise ConfigError(f"device='gpu:{choice.index}' is not there: {engine} sees {there}")
    return gpus[choice.index]
