"""`llmsession devices`: the devices that the engine on this machine can compute on."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.table import Table

from llmsession.backends.survey import available_devices
from llmsession.session.config.options import Options
from llmsession.types.device import Device


def show_devices(*, options: dict[str, Any], as_json: bool) -> None:
    """Print the devices as a table, or as JSON. Raises LLMSessionError."""
    devices = anyio.run(_ask, Options.load(**options))
    if as_json:
        print(msgspec.json.encode(devices).decode())  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("id")
    table.add_column("name")
    for heading in ("memory", "free"):
        table.add_column(heading, justify="right", no_wrap=True)
    for device in devices:
        table.add_row(device.id, device.name, _describe(device.memory_bytes), _describe(device.free_bytes))
    Console(highlight=False, markup=False).print(table)


async def _ask(options: Options) -> list[Device]:
    return await available_devices(backend=options.backend, server_path=options.server_path)


def _describe(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
