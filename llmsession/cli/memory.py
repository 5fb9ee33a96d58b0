"""`llmsession memory`: copy, check and export conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.memory.backup import MemoryReport, back_up, check
from llmsession.memory.memory import Memory
from llmsession.types.errors import StoreError, UsageError
from llmsession.types.units import describe_size


def back_up_memory(file: Path, target: Path, *, as_json: bool) -> None:
    """Copy the file, and print what the copy holds. Raises UsageError, StoreError."""
    _print(back_up(file, target), as_json=as_json)


def check_memory_file(file: Path, *, as_json: bool) -> bool:
    """Print what the file holds, and what is wrong with it; return whether it is whole. Raises StoreError."""
    report = check(file)
    _print(report, as_json=as_json)
    return not report.faults


def export_user(file: Path, user: str) -> None:
    """Print all that is stored of a user. Raises StoreError, and UsageError if nothing is."""
    print(msgspec.json.format(msgspec.json.encode(anyio.run(_export, file, user)), indent=2).decode())  # noqa: T201


async def _export(file: Path, user: str) -> dict[str, Any]:
    if not file.is_file():
        raise StoreError(f"{file} is not a file: name that of the memory")
    async with Memory.open(file) as memory:
        exported = await memory.export(user)
    if not exported["conversations"]:
        raise UsageError(f"{file} holds nothing of a user called {user!r}")
    return exported


def _print(report: MemoryReport, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(report).decode())  # noqa: T201
        return
    counts = f"{report.turns} turns in {report.conversations} conversations of {report.users} users"
    print(f"{report.path}: {counts}, {describe_size(report.size_bytes)}")  # noqa: T201
    for fault in report.faults:
        print(f"damaged: {fault}")  # noqa: T201
    if report.faults:
        print("restore a copy, or save what is left with `sqlite3 FILE .recover`")  # noqa: T201
