"""Imports httpx without its command line, which it imports as well if click and rich are installed.

That is two thirds of httpx's import time, and a fifth of a program's time to its first token.
"""

from __future__ import annotations

import sys

_COMMAND_LINE = "httpx._main"

# A name that stands for None cannot be imported (https://docs.python.org/3/reference/import.html#the-module-cache), and
# httpx goes on without it, as where click is missing. Who imports it by name afterwards gets it.
_blocked = _COMMAND_LINE not in sys.modules
if _blocked:
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]
try:
    import httpx
finally:
    if _blocked:
        del sys.modules[_COMMAND_LINE]

__all__ = ["httpx"]
