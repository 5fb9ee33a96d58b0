"""One reply, from its request to its last line on the screen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self

import anyio
import msgspec

from llmsession.completion import Completion
from llmsession.errors import LLMSessionError
from llmsession.terminal.echo import without_echo
from llmsession.terminal.reply_view import ReplyView
from llmsession.terminal.stopping import Stop, stoppable
from llmsession.wire.events import Event, ReasoningDelta, TextDelta


class Stream(Protocol):
    """What a reply is read from."""

    async def __aenter__(self) -> Self:
        """It begins."""
        ...

    async def __aexit__(self, *exc: Any) -> None:
        """It is over."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """What happens, to its end."""
        ...

    async def result(self) -> Completion:
        """The whole."""
        ...

    def cancel(self) -> None:
        """End it with what has come."""
        ...


class Shown(msgspec.Struct, frozen=True):
    """How it ended: with a completion, with an error, or with neither where it was stopped before it began."""

    completion: Completion | None = None
    error: LLMSessionError | None = None


async def show_reply(make_stream: Callable[[], Stream], view: ReplyView, *, is_interactive: bool) -> Shown:
    """Until it is all on the screen. Ctrl-C ends it."""
    shown = Shown()
    try:
        with without_echo(), stoppable(is_interactive=is_interactive) as stop:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(view.keep_drawn)
                shown = await _follow(make_stream, view, stop)
                tasks.cancel_scope.cancel()
    finally:
        view.finish()
    return shown


async def _follow(make_stream: Callable[[], Stream], view: ReplyView, stop: Stop) -> Shown:
    """An error is given back and not raised: it would leave the group of tasks wrapped into another."""
    try:
        async with make_stream() as stream:
            stop.by = stream.cancel
            if stop.was_asked:
                stream.cancel()
            async for event in stream.events():
                if isinstance(event, TextDelta):
                    view.say(event.text)
                elif isinstance(event, ReasoningDelta):
                    view.think(event.text)
            return Shown(completion=await stream.result())
    except LLMSessionError as error:
        return Shown(error=error)
