"""Device: what an engine can compute on. And the request that the text of `device=` stands for."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from llmsession.types.errors import ConfigError

_FORM = re.compile(r"(?P<kind>best|cpu|gpu)(?::(?P<number>\d{1,4}))?")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A processor that an engine on this machine can use. `id` is what `device=` takes: `cpu`, `gpu:0`, `gpu:1`."""

    id: str
    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    free_bytes: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as an engine's build sees it.

    `name`: the engine's name for it, such as CUDA0. `index`: its place in the list.
    """

    name: str
    index: int
    text: str
    memory_bytes: int
    free_bytes: int


class DeviceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parsed `device=`. `index`: of the GPU; `threads`: of the CPU; None if the text does not name them."""

    kind: Literal["best", "cpu", "gpu"] = "best"
    index: int | None = None
    threads: int | None = None


def parse_device(text: object) -> DeviceRequest:
    """Parse `best`, `cpu`, `cpu:THREADS`, `gpu` or `gpu:INDEX`. Raises ConfigError."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    number = int(found["number"]) if found is not None and found["number"] is not None else None
    match found["kind"] if found is not None else None, number:
        case "best", None:
            return DeviceRequest()
        case "gpu", index:
            return DeviceRequest(kind="gpu", index=index)
        case "cpu", threads if threads != 0:
            return DeviceRequest(kind="cpu", threads=threads)
    raise ConfigError(
        f"device={text!r} is unknown: use best, cpu, cpu:THREADS, gpu or gpu:INDEX "
        "(`llmsession devices` lists those that there are)"
    )


def device_id(given: object) -> str:
    """Return the id of the Device or text that `device=` was given. Raises ConfigError."""
    text = given.id if isinstance(given, Device) else given
    parse_device(text)
    return str(text)
