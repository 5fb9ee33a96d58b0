"""No echo of keys while a reply is drawn: it would stand in the middle of it. What was typed is read afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """As it was before, at the end. Windows shows no key that nobody reads."""
    if sys.platform == "win32":
        yield
        return
    import termios

    try:
        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (OSError, ValueError, termios.error):  # not a terminal
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(number, termios.TCSANOW, quiet)
        yield
    finally:
        with contextlib.suppress(termios.error):  # it may be gone
            termios.tcsetattr(number, termios.TCSANOW, before)
