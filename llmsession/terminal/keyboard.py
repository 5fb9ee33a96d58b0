"""The keyboard while the chat works: Ctrl-C ends that work only, and keys are not echoed into a reply."""

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
    """What Ctrl-C does to a piece of work: `by` where it was given, else the work is cancelled."""

    def __init__(self) -> None:
        self.was_asked = False
        self.by: Callable[[], None] | None = None
        self._loop = current_loop()
        self.scope = anyio.CancelScope()

    def ask(self) -> None:
        """From a signal handler."""
        self.was_asked = True
        call_soon(self._loop, self.by if self.by is not None else self.scope.cancel)


@contextlib.contextmanager
def stoppable(*, is_interactive: bool) -> Iterator[Stop]:
    """A person's first Ctrl-C ends what is in the block; the next, or one in a pipe, the program as ever."""
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
