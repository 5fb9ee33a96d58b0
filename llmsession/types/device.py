"""Device: what an engine can compute on; and what `device=` asks for, by its text."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from llmsession.types.errors import ConfigError

_FORM = re.compile(r"(?P<kind>best|cpu|gpu)(?::(?P<number>\d{1,4}))?")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A processor that an engine of this machine can use. `id` is what `device=` takes: `cpu`, `gpu:0`, `gpu:1`."""

    id: str
    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    free_bytes: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One as an engine's build sees it: `name` is what the engine calls it, such as CUDA0, `index` its place there."""

    name: str
    index: int
    text: str
    memory_bytes: int
    free_bytes: int


class DeviceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`device=`, understood: `index` of the one GPU, `threads` of the CPU; None if the text names none."""

    kind: Literal["best", "cpu", "gpu"] = "best"
    index: int | None = None
    threads: int | None = None


def parse_device(text: object) -> DeviceRequest:
    """`best`, `cpu`, `cpu:THREADS`, `gpu` or `gpu:INDEX`. Raises ConfigError."""
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
    """The id of what `device=` was given. Raises ConfigError."""
    text = given.id if isinstance(given, Device) else given
    parse_device(text)
    return str(text)
