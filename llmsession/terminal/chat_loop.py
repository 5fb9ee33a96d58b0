"""The chat loop: reads a line and shows the reply as it arrives. Ctrl-C ends the reply, not the chat."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from llmsession.terminal.facts import header_of
from llmsession.terminal.input_line import (
    BeginReply,
    Intent,
    Nothing,
    Run,
    Say,
    SetSystemPrompt,
    find_near,
    parse_command,
    parse_line,
)
from llmsession.terminal.keyboard import stoppable
from llmsession.terminal.printable import printable, printable_line
from llmsession.terminal.reading import Reader
from llmsession.terminal.reply_view import MarkdownView, PlainView, Reasoning, ReplyView
from llmsession.terminal.replying import Shown, show_reply
from llmsession.terminal.talk import Talk, TalkStream
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import ClosedError, LLMSessionError, UsageError
from llmsession.types.messages import Role

if TYPE_CHECKING:
    from llmsession.memory.memory import Memory
    from llmsession.terminal.reading import LineHistory

# Of what was said before, so many lines are shown again.
SHOWN_AGAIN = 8
_STOPPED = "(stopped: Enter gives another reply)"


class Command(msgspec.Struct, frozen=True):
    """The action of `!name`. `run` may raise LLMSessionError, which is shown."""

    usage: str
    description: str
    run: Callable[[ChatLoop, str], Awaitable[None]]


class ChatLoop:
    """One chat. In a pipe only replies go to stdout; on a terminal everything does.

    `memory`: where the conversation is stored, so that it can be forgotten; `system_prompt` is for a new one.
    """

    def __init__(
        self,
        chat: Talk,
        reader: Reader,
        console: Console,
        *,
        commands: Mapping[str, Command],
        is_interactive: bool,
        reasoning: Reasoning = Reasoning.DIM,
        stream: bool = True,
        memory: Memory | None = None,
        system_prompt: str | None = None,
        history: LineHistory | None = None,
        keywords: dict[str, Any] | None = None,
    ) -> None:
        self.chat = chat
        self.commands = commands
        self.reader = reader
        self.console = console
        self.can_reroll = False
        self.is_over = False
        self._is_interactive = is_interactive
        self._reasoning = reasoning
        self._stream = stream
        self._memory = memory
        self._history = history
        self._keywords = keywords or {}
        self._reply_start = ""
        self._system_prompt = system_prompt

    def greet(self, header: str | None = None) -> None:
        """Show the header, how to leave, and where the conversation continues."""
        self.console.print(header if header is not None else header_of(self.chat.session), style="bold", markup=False)
        self.note("!help lists the commands. Ctrl-C stops an answer; at the prompt it leaves.")
        if count := len(self.chat.conversation.path):
            last = self.chat.conversation.last_update.astimezone()
            messages = "1 message is" if count == 1 else f"{count} messages are"
            of = f" of {self.whose}" if self.whose else ""
            self.note(f"It goes on: {messages} remembered{of}, the last from {last:%Y-%m-%d %H:%M}.")
            self.console.print()
            self.show_last_exchange()
        self.console.print()

    async def run(self) -> None:
        """Run until the input ends.

        Raises LLMSessionError in a pipe; on a terminal errors are shown and the chat goes on.
        """
        while not self.is_over:
            line = await self.reader.read()
            if line is None:
                return
            if not self._is_interactive:
                if line.strip():
                    await self._say(line)
                continue
            try:
                await self._act(parse_line(line))
            except ClosedError:
                raise
            except LLMSessionError as error:
                self._tell(error)
            if line.strip() and not self.is_over:
                self.console.print()

    def note(self, words: str) -> None:
        """Show a note about the chat."""
        self.console.print(words, style="dim", markup=False, soft_wrap=not self._is_interactive)

    async def reroll(self) -> None:
        """Generate another reply to the last message."""
        keywords = {name: value for name, value in self._keywords.items() if name != "seed"}
        await self._answer(lambda: self.chat.stream_retry(**keywords, **self._take_start()))

    async def answer_last(self) -> None:
        """Generate a reply to the last message, which has none."""
        await self._answer(lambda: self.chat.stream_retry(**self._keywords, **self._take_start()))

    @property
    def is_remembered(self) -> bool:
        """Return whether a memory stores the conversation."""
        return self._memory is not None

    @property
    def whose(self) -> str:
        """The user and channel of the conversation."""
        return printable_line(self.chat.conversation.user)

    async def forget(self) -> None:
        """Delete the user's conversations from the memory, and the typed lines, and start a new conversation.

        Without a memory, the conversation starts over.
        """
        self.can_reroll = False
        if self._memory is None:
            await self.chat.conversation.clear()
        else:
            old = self.chat.conversation
            await self._memory.forget_user(old.user)
            fresh = await self._memory.get(old.user, old.channel, system_prompt=self._system_prompt)
            self.chat = self.chat.with_conversation(fresh)
        if self._history is not None:
            try:
                self._history.forget()
            except OSError as error:
                raise UsageError(f"the lines that you typed are still kept: {error}") from error

    def show_last_exchange(self) -> None:
        """Show the last exchange, so that a user knows where the conversation continues."""
        path = self.chat.conversation.path
        last = max((index for index, turn in enumerate(path) if turn.message.role is Role.USER), default=None)
        if last is None:
            return
        for turn in path[last:]:
            if turn.message.role in (Role.USER, Role.ASSISTANT):
                mark = "> " if turn.message.role is Role.USER else ""
                lines = printable(turn.message.content).splitlines()
                more = ["…"] if len(lines) > SHOWN_AGAIN else []
                self.note("\n".join([f"{mark}{line}" for line in lines[:SHOWN_AGAIN]] + more))

    async def _act(self, intent: Intent) -> None:
        match intent:
            case Nothing():
                if self.can_reroll:
                    await self.reroll()
                    self.console.print()
            case Say(text):
                await self._say(text)
            case BeginReply(text):
                await self._begin_reply(text)
            case SetSystemPrompt(text):
                await self._set_system_prompt(text)
            case Run("", _):
                await self.commands["help"].run(self, "")
                if (line := await self.reader.ask("! ")) is not None and line.strip():
                    await self._run(parse_command(line))
            case Run():
                await self._run(intent)

    async def _say(self, text: str) -> None:
        await self._answer(lambda: self.chat.stream(text, **self._keywords, **self._take_start()))

    def _take_start(self) -> dict[str, Any]:
        start, self._reply_start = self._reply_start, ""
        return {"reply_start": start} if start else {}

    async def _begin_reply(self, text: str | None) -> None:
        if text is None:
            text = await self.reader.ask("begin with> ", given=self._reply_start)
        self._reply_start = (text or "").strip()
        if not self._reply_start:
            self.note("(the next reply begins as it likes)")
        elif self.can_reroll:
            await self.reroll()
        else:
            self.note("(what you say next gets a reply that begins so)")

    async def _set_system_prompt(self, text: str | None) -> None:
        before = self.chat.system_prompt or ""
        if text is None:
            text = await self.reader.ask("system> ", given=before)
        if text is None or text.strip() == before:
            self.note("(the system prompt is as it was)")
            return
        await self.chat.set_system_prompt(text.strip() or None)
        self.note("(the system prompt is set)" if text.strip() else "(there is no system prompt any more)")

    async def _run(self, asked: Run) -> None:
        command = self.commands.get(asked.name)
        if command is None:
            near = find_near(asked.name, self.commands)
            instead = f"did you mean !{near}?" if near is not None else "!help lists them."
            self.console.print(f"There is no command !{printable_line(asked.name)}: {instead}", markup=False)
            self.note("A space before it says it to the model.")
            return
        with stoppable(is_interactive=self._is_interactive) as stop:
            await command.run(self, asked.argument)
        if stop.was_asked:
            self.note("(stopped)")

    async def _answer(self, make_stream: Callable[[], TalkStream]) -> None:
        shown = await show_reply(make_stream, self._make_view(), is_interactive=self._is_interactive)
        if shown.error is not None:
            if not self._is_interactive or isinstance(shown.error, ClosedError):
                raise shown.error
            self._tell(shown.error)
            self.can_reroll = not isinstance(shown.error, UsageError)
        else:
            self._tell_end(shown)

    def _make_view(self) -> ReplyView:
        if not self._is_interactive:
            return PlainView(sys.stdout, is_safe=False, stream=self._stream)
        if self.console.is_dumb_terminal or self.console.legacy_windows:
            return PlainView(sys.stdout, is_safe=True, stream=self._stream)
        return MarkdownView(self.console, reasoning=self._reasoning, stream=self._stream)

    def _tell_end(self, shown: Shown) -> None:
        reply = shown.completion
        self.can_reroll = reply is None or reply.stop_reason is StopReason.INTERRUPTED
        if reply is None:
            self.note(_STOPPED)
            return
        if dropped := sum(message.role is Role.USER for message in reply.dropped):
            these = "exchange no longer fits" if dropped == 1 else f"{dropped} exchanges no longer fit"
            self.note(f"(the oldest {these}, and the model does not see that part any more)")
        if (end := _describe_end(reply, is_interactive=self._is_interactive)) is not None:
            self.note(end)

    def _tell(self, error: LLMSessionError) -> None:
        self.console.print(printable(str(error)), style="red", markup=False)


def _describe_end(reply: Completion, *, is_interactive: bool) -> str | None:
    if reply.stop_reason is StopReason.INTERRUPTED:
        return _STOPPED if is_interactive else "(stopped)"
    if reply.stop_reason is StopReason.LENGTH:
        return "(the answer was cut: its limit was reached)"
    if not is_interactive:
        return None
    if reply.tool_calls:
        return f"(it asks for {', '.join(printable_line(call.name) for call in reply.tool_calls)})"
    return None if reply.text.strip() else "(it said nothing)"
