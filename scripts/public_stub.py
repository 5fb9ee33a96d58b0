"""Writes llmsession/__init__.pyi, the public names for type checkers: scripts/public_stub.py

A test compares the file with what this would write.
"""

from __future__ import annotations

import importlib
from pathlib import Path

STUB = Path(__file__).parents[1] / "llmsession" / "__init__.pyi"


def make_stub() -> str:
    """The text of the stub, from the package's own table."""
    package = importlib.import_module("llmsession")
    modules: dict[str, str] = package._NAMES_BY_MODULE  # noqa: SLF001 - this script is its other half
    lines = ["# Written by scripts/public_stub.py."]
    for module, names in sorted(modules.items()):
        lines += [f"from llmsession.{module} import {name} as {name}" for name in sorted(names.split())]
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in package.__all__), "]", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    STUB.write_text(make_stub(), encoding="utf-8")
