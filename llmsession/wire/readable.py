"""Readable: how a reply is read, whoever gives it: its pieces or its events, then the whole."""

from __future__ import annotations

import abc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TextIO

from llmsession.types.completion import Completion
from llmsession.types.errors import UsageError
from llmsession.types.events import Event, TextDelta


class Readable(abc.ABC):
    """Iterate it for pieces of text or `events()`, then `await result()`; inside of its block."""

    _entered = False
    _left = False
    _way: str | None = None
    _completion: Completion | None = None
    _error: BaseException | None = None

    @abc.abstractmethod
    async def _next(self) -> Event | None:
        """The next event, or None after the last. It ends with a completion or an error."""

    async def __anext__(self) -> str:
        self._go("text")
        while True:
            event = await self._next()
            if isinstance(event, TextDelta) and event.text:
                return event.text
            if event is None:
                raise StopAsyncIteration

    def __aiter__(self) -> AsyncIterator[str]:
        self._go("text")
        return self

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens, to the Finished. Either this or plain iteration, not both."""
        self._go("events")
        return _Events(self._next)

    async def result(self) -> Completion:
        """Read what is left and give the whole. Raises what ended the reply, with its `partial`."""
        if self._completion is None and self._error is None:
            self._check_inside()
            while await self._next() is not None:
                pass
        if self._error is not None:
            raise self._error
        assert self._completion is not None  # noqa: S101 - _next ends with one of the two
        return self._completion

    async def print(self, file: TextIO | None = None, *, end: str = "\n", flush: bool = True) -> Completion:
        """Write the pieces to `file` (stdout) as they arrive; give the Completion."""
        out = file if file is not None else sys.stdout
        async for piece in self:
            out.write(piece)
            if flush:
                out.flush()
        out.write(end)
        if flush:
            out.flush()
        return await self.result()

    def _go(self, way: str) -> None:
        self._check_inside()
        if self._way is not None and self._way != way:
            raise UsageError("iterate a reply for its text or for its events(), not for both")
        self._way = way

    def _enter(self) -> None:
        if self._entered:
            raise UsageError("a reply can be entered once: ask for another")
        self._entered = True

    def _check_inside(self) -> None:
        if not self._entered:
            raise UsageError("a reply is read inside its block: async with session.prompt_streaming(…) as stream: …")
        if self._left and self._completion is None and self._error is None:
            raise UsageError("the block of this reply was left, and its connection closed: read it inside the block")


class _Events:
    """Not a generator: one that is not read out is trouble under trio."""

    def __init__(self, read_next: Callable[[], Awaitable[Event | None]]) -> None:
        self._read_next = read_next

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> Event:
        event = await self._read_next()
        if event is None:
            raise StopAsyncIteration
        return event
