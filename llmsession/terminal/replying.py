"""Shows one reply, from its request to its last line."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec

from llmsession.terminal.keyboard import Stop, stoppable, without_echo
from llmsession.terminal.reply_view import ReplyView
from llmsession.terminal.talk import TalkStream
from llmsession.types.completion import Completion
from llmsession.types.errors import LLMSessionError
from llmsession.types.events import ReasoningDelta, TextDelta


class Shown(msgspec.Struct, frozen=True):
    """How a reply ended: with a completion, with an error, or with neither if it was stopped before it began."""

    completion: Completion | None = None
    error: LLMSessionError | None = None


async def show_reply(make_stream: Callable[[], TalkStream], view: ReplyView, *, is_interactive: bool) -> Shown:
    """Show a reply until it is complete. Ctrl-C ends it."""
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


async def _follow(make_stream: Callable[[], TalkStream], view: ReplyView, stop: Stop) -> Shown:
    """Follow the stream; return an error instead of raising it, since the task group would wrap it."""
    try:
        stream = make_stream()
        stop.by = stream.cancel
        async with stream:
            async for event in stream.events():
                if isinstance(event, TextDelta):
                    view.say(event.text)
                elif isinstance(event, ReasoningDelta):
                    view.think(event.text)
            return Shown(completion=await stream.result())
    except LLMSessionError as error:
        return Shown(error=error)
