"""`llmsession metrics`: the tokens and rates of running servers."""

from __future__ import annotations

import time
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from llmsession.processes.records import read_records
from llmsession.session.config.options import Options
from llmsession.session.session import Session
from llmsession.system.paths import cache_folder, records_folder
from llmsession.types.errors import LLMSessionError, UnsupportedFeatureError
from llmsession.wire.metrics import Metrics

PAUSE = 1.0
WIDE = 1000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One server, and its metrics since it started: None if it has none.

    `seconds`: its age. It and `pid` are None for a remote server.
    """

    model: str
    url: str
    metrics: Metrics | None
    pid: int | None = None
    seconds: float | None = None


def show_metrics(*, remote: str | None, watch: bool, as_json: bool) -> None:
    """Print the metrics once, or with `watch` every second until Ctrl-C. Raises LLMSessionError."""
    anyio.run(_show, remote, watch, as_json)


async def _show(remote: str | None, watch: bool, as_json: bool) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # lines are not wrapped in a file or a pipe
        console.width = WIDE
    if as_json or not (watch and console.is_terminal):
        while True:
            rows = await _read(remote)
            if as_json:
                print(msgspec.json.encode(rows).decode(), flush=True)  # noqa: T201
            else:
                console.print(_table(rows))
            if not watch:
                return
            await anyio.sleep(PAUSE)
    with Live(_table(await _read(remote)), console=console, auto_refresh=False) as live:
        while True:
            await anyio.sleep(PAUSE)
            live.update(_table(await _read(remote)), refresh=True)


async def _read(remote: str | None) -> list[Row]:
    if remote is None:
        return [row for record in _own() if (row := await _ask(record)) is not None]
    async with Session(Options.load(remote=remote)) as session:
        return [Row(model=session.model, url=session.base_url, metrics=await session.get_metrics())]


def _own() -> list[dict[str, Any]]:
    """Return the records of this user's running servers, the oldest first."""
    records = [record for record in read_records(records_folder(cache_folder())).values() if record.is_alive]
    return [
        {**record.note, "pid": record.pid, "seconds": time.time() - record.started}
        for record in sorted(records, key=lambda record: record.started)
        if "url" in record.note
    ]


async def _ask(record: dict[str, Any]) -> Row | None:
    """Return the server's row; None if it has exited meanwhile."""
    try:
        async with Session(remote=record["url"], api_key=record["key"]) as session:
            metrics = await session.get_metrics()
    except UnsupportedFeatureError:
        metrics = None
    except LLMSessionError:
        return None
    return Row(model=record["model"], url=record["url"], metrics=metrics, pid=record["pid"], seconds=record["seconds"])


def _table(rows: list[Row]) -> Table | str:
    if not rows:
        return "no server of yours runs now"
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in ("pid", "prompt", "cached", "generated", "a second", "busy", "waiting", "KV cache"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.model, str(row.pid or row.url), *_cells(row.metrics))
    return table


def _cells(metrics: Metrics | None) -> list[str]:
    """Return the cells of a row; unknown values are question marks."""
    if metrics is None:
        return ["?"] * 7
    cached, usage, generated = metrics.cached_prompt_tokens, metrics.kv_cache_usage, metrics.generated
    return [
        str(metrics.prompt.count),
        str(cached) if cached is not None else "?",
        str(generated.count),
        f"{generated.rate:.0f}" if generated.seconds or not generated.count else "?",
        str(metrics.requests_processing),
        str(metrics.requests_pending),
        f"{usage:.0%}" if usage is not None else "?",
    ]
