"""The keyboard during a reply: Ctrl-C ends only the reply, and keys are not echoed into it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import anyio

from llmsession.system.latch import call_soon, current_loop


class Stop:
    """The effect of Ctrl-C on a piece of work: calls `by` if given, else cancels the work."""

    def __init__(self) -> None:
        self.was_asked = False
        self.by: Callable[[], None] | None = None
        self._loop = current_loop()
        self.scope = anyio.CancelScope()

    def ask(self) -> None:
        """Stop the work. Called from a signal handler."""
        self.was_asked = True
        call_soon(self._loop, self.by if self.by is not None else self.scope.cancel)


@contextlib.contextmanager
def stoppable(*, is_interactive: bool) -> Iterator[Stop]:
    """Let the first Ctrl-C on a terminal end only the block; the next, or one in a pipe, ends the program."""
    stop = Stop()
    if not is_interactive or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not stop.was_asked:
            stop.ask()
        elif callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        with stop.scope:
            yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Turn off the echo of keys within the block. Windows does not echo keys that nobody reads."""
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
