"""Sizes, and how to show them to people."""

from __future__ import annotations

from typing import Final

MIB: Final = 2**20


def describe_size(size: float) -> str:
    """Return a size in bytes such as `4.9 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
