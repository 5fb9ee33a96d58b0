"""`llmsession doctor`: what would run here, why, and whether it does."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.backends.devices import default_threads, describe_machine
from llmsession.backends.find import Candidate, find_engines
from llmsession.device import parse_device
from llmsession.errors import LLMSessionError
from llmsession.models import bundled
from llmsession.options import Options
from llmsession.paths import cache_folder, logs_folder, records_folder
from llmsession.processes.records import read_records
from llmsession.session import Session

PROMPT = 'reply with "ok"'


class Report(msgspec.Struct, kw_only=True):
    """What was found. `engines` in the order in which they are chosen; `chosen` is the first that is there."""

    llmsession: str
    python: str
    system: str
    machine: str
    threads: int
    engines: list[Candidate]
    chosen: str | None
    why: str
    model: str
    cache: str
    logs: str
    log_count: int
    running: int
    reply: str | None = None
    seconds: float | None = None
    error: str | None = None


def examine(*, options: dict[str, Any], as_json: bool) -> bool:
    """Print the report; whether a first reply came. Raises UsageError where the options are wrong."""
    report = anyio.run(_examine, Options.load(**options))
    if as_json:
        print(msgspec.json.encode(report).decode())  # noqa: T201
    else:
        _print(report)
    return report.error is None


async def _examine(options: Options) -> Report:
    cache = cache_folder(Path(options.cache_dir) if options.cache_dir is not None else None)
    engines = await find_engines(options.server_path, cache=cache)
    found = [engine for engine in engines if engine.path is not None]
    if options.backend != "auto":
        chosen: str | None = options.backend
        why = "it was asked for"
    else:
        chosen = found[0].backend if found else None
        why = "it is the first in the order of choice that is there" if found else "there is none"
    logs = logs_folder(cache)
    report = Report(
        llmsession=importlib.metadata.version("llmsession"),
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        machine=describe_machine(),
        threads=options.threads or parse_device(options.device).threads or default_threads(),
        engines=engines,
        chosen=chosen,
        why=why,
        model=str(options.model or bundled.NAME),
        cache=str(cache),
        logs=str(logs),
        log_count=sum(1 for _ in logs.glob("*.log")),
        running=sum(record.is_alive for record in read_records(records_folder(cache)).values()),
    )
    begun = time.monotonic()
    try:
        async with Session(options) as session:
            reply = await session.prompt(PROMPT, temperature=0, max_tokens=20)
        report.reply, report.seconds = reply.text, time.monotonic() - begun
    except LLMSessionError as error:
        report.error = str(error)
    return report


def _print(report: Report) -> None:
    lines = [
        ("llmsession", report.llmsession),
        ("Python", report.python),
        ("system", report.system),
        ("machine", f"{report.machine}; threads for an engine: {report.threads}"),
    ]
    for engine in report.engines:
        mark = " (chosen)" if engine.backend == report.chosen else ""
        source = f" ({engine.source})" if engine.source is not None else ""
        found = f"{engine.version}, {engine.path}{source}" if engine.path is not None else f"not here: {engine.hint}"
        lines.append((f"{engine.backend}{mark}", found))
    lines += [
        ("why", report.why),
        ("model", report.model),
        ("cache", report.cache),
        ("logs", f"{report.logs} ({report.log_count} files)"),
        ("running now", str(report.running)),
    ]
    if report.error is None:
        lines.append(("first reply", f"{report.reply!r} after {report.seconds:.2f} s, start and end included"))
    else:
        lines.append(("first reply", f"none: {report.error}"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")  # noqa: T201
