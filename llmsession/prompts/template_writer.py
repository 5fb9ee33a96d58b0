"""TemplateWriter: prompts written by the model's own template, which the server applies. Texts in them stay texts.

The template gets a placeholder for each spelling of a special token, and for nothing else, because templates trim
contents and branch on them. Its output is then cut at the placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.models.encoding import Part, Piece
from llmsession.prompts.message_texts import map_texts, texts_of
from llmsession.prompts.next_turn import open_next
from llmsession.prompts.pieces import find_contents
from llmsession.prompts.placeholders import Placeholders, Span, replace_spans
from llmsession.prompts.writer import Prompt, PromptWriter, says_token, write_begun
from llmsession.types.errors import ServerError
from llmsession.types.messages import Control, Message, Role, Text
from llmsession.wire import openai_api
from llmsession.wire.http import HttpClient
from llmsession.wire.stream_filters import THINK, THINK_END

if TYPE_CHECKING:
    from llmsession.wire.resume import Delivered

# Where a place in a text is marked, rather than a spelling.
_PLACE = "\0place"
_WITHOUT_REPLY = {"add_generation_prompt": False}
_EMPTY_THOUGHT = re.compile(rf"{THINK}\s*{THINK_END}\s*")


class ChatPrompt(Prompt, frozen=True, kw_only=True):
    """A rendered prompt. `in_thought`: it ends inside a thought. `think_token`: a thought starts with a token."""

    in_thought: bool
    think_token: bool


class TemplateWriter:
    """Writes the chats of one model on one server. `extra`: further fields of the request, such as tools."""

    def __init__(self, writer: PromptWriter, client: HttpClient, *, model: str, extra: Mapping[str, Any]) -> None:
        self._writer = writer
        self._client = client
        self._model = model
        self._extra = dict(extra)

    async def is_plain(self, messages: Sequence[Message]) -> bool:
        """Whether no text of the messages spells a special token, or a part of one at an edge."""
        return not any((await self._find(messages)).values())

    async def can_continue(self, messages: Sequence[Message], begun: Delivered, *, may_close: bool = False) -> bool:
        """Whether the server's template writes a started reply as it is: some write what no model was trained on.

        `may_close`: also accept an empty thought before it.
        """
        before, after = [await self.apply(messages, begun=reply) for reply in (None, begun)]
        if begun.reasoning:
            return after.startswith(before) and after.endswith(begun.text or begun.reasoning)
        if before.rstrip().endswith(THINK):
            return False
        if may_close and after.startswith(before) and after.endswith(begun.text):
            between = after[len(before) : len(after) - len(begun.text)]
            return not between or _EMPTY_THOUGHT.fullmatch(between) is not None
        return after == before + begun.text

    async def write(
        self, messages: Sequence[Message], *, start: str = "", begun: Delivered | None = None
    ) -> ChatPrompt | None:
        """Return the prompt for a reply; None if no text spells a special token, so that the chat is sent as it is.

        `start`: what the reply begins with. With a `begun` reply, None if it is unknown how the model marks its
        thoughts, or whether it quotes a token.
        """
        spans = await self._find(messages)
        if begun is None and not start and not any(spans.values()):
            return None
        rendering = _Rendering(self, messages, spans)
        rendered = await rendering.apply()
        in_thought = rendered.rstrip().endswith(THINK)
        if start:
            rendered, in_thought = await rendering.open_answer(rendered), False
        pieces = [*rendering.cut(rendered), *([Text(start)] if start else [])]
        vocabulary = await self._writer.learn([start])
        think_token = THINK in vocabulary.special.values()
        if begun is not None:
            if begun.reasoning and not (in_thought or think_token):
                return None
            pieces += write_begun(begun, in_thought=in_thought)
            vocabulary = await self._writer.learn([begun.text, begun.reasoning])
            if says_token(begun.text, vocabulary) or says_token(begun.reasoning, vocabulary):
                return None
        written = await self._writer.write_marked(pieces)
        if begun is None and not start and not written.neutralized:  # the template made it harmless
            return None
        return ChatPrompt(
            prompt=written.prompt,
            neutralized=written.neutralized,
            in_thought=in_thought,
            think_token=think_token,
        )

    async def write_next(self, messages: Sequence[Message], *, typing: bool = False) -> Prompt:
        """Return what the next prompt will begin with. See next_turn.open_next."""
        rendering, place = await self._open_next(messages, typing=typing)
        rendered = await rendering.apply(_WITHOUT_REPLY)
        return await self._writer.write_marked(rendering.cut(rendered.partition(place)[0]))

    async def read_parts(self, messages: Sequence[Message], *, reply: bool) -> list[Part]:
        """Return the prompt for a reply, or what the next prompt will begin with, in parts."""
        if reply:
            rendering = _Rendering(self, messages, await self._find(messages))
            rendered, skeleton = await rendering.apply(), await rendering.apply_marked()
        else:
            rendering, place = await self._open_next(messages)
            rendered = (await rendering.apply(_WITHOUT_REPLY)).partition(place)[0]
            skeleton = (await rendering.apply_marked(_WITHOUT_REPLY, place)).partition(place)[0]
        pieces = rendering.cut(rendered)
        last = Role.ASSISTANT if reply else Role.TOOL if messages[-1].tool_calls else Role.USER
        found = find_contents("".join(piece.text for piece in pieces), skeleton, rendering.contents, last)
        return found if found is not None else [(None, pieces)]

    async def _open_next(self, messages: Sequence[Message], *, typing: bool = False) -> tuple[_Rendering, str]:
        place = Placeholders(*texts_of(messages)).mark(_PLACE)
        said = open_next(messages, place, typing=typing)
        return _Rendering(self, said, await self._find(said)), place

    async def apply(
        self, messages: Sequence[Message], begun: Delivered | None = None, extra: Mapping[str, Any] | None = None
    ) -> str:
        """Return what the server's template makes of the messages."""
        body = openai_api.encode_template(
            messages, model=self._model, extra={**self._extra, **(extra or {})}, begun=begun
        )
        return openai_api.decode_template(await self._client.post(openai_api.TEMPLATE_PATH, body))

    async def _find(self, messages: Sequence[Message]) -> dict[str, list[Span]]:
        """Return where each text spells a special token, or a part of one at an edge."""
        texts = [*texts_of(messages)]
        vocabulary = await self._writer.learn(texts)
        return {text: vocabulary.find(text) + vocabulary.find_edges(text) for text in texts}


class _Rendering:
    """What the template makes of one conversation, with placeholders in its texts."""

    def __init__(self, chat: TemplateWriter, messages: Sequence[Message], spans: Mapping[str, Sequence[Span]]) -> None:
        self.contents: dict[str, tuple[Role, str]] = {}
        self._said = messages
        self._chat = chat
        self._spans = spans
        self._marks = Placeholders(*spans)
        self._meant: dict[str, str] = {}
        self._messages = [map_texts(message, self._replace) for message in messages]

    def _replace(self, text: str) -> str:
        replaced = replace_spans(text, self._spans.get(text, ()), self._marks)
        self._meant.update(replaced.meant)
        return replaced.text

    async def apply(self, extra: Mapping[str, Any] | None = None) -> str:
        """Return the whole rendering, with the generation prompt unless `extra` says otherwise."""
        return await self._chat.apply(self._messages, extra=extra)

    async def apply_marked(self, extra: Mapping[str, Any] | None = None, place: str = "") -> str:
        """Return the rendering with a mark for each content, which is then in `contents`, except for the `place`."""
        marked: list[Message] = []
        for number, message in enumerate(self._messages):
            if message.content not in ("", place):
                mark = self._marks.mark(f"\0{number}")
                self.contents[mark] = (message.role, self._said[number].content)
                message = msgspec.structs.replace(message, content=mark)  # noqa: PLW2901 - the same, marked
            marked.append(message)
        return await self._chat.apply(marked, extra=extra)

    def cut(self, rendered: str) -> list[Piece]:
        """Cut at the placeholders. Only what the template's own words did not make harmless again stays replaced."""
        split = re.split(f"([{''.join(self._meant)}])", rendered) if self._meant else [rendered]
        return [Text(self._meant[part]) if part in self._meant else Control(part) for part in split if part]

    async def open_answer(self, rendered: str) -> str:
        """Return the rendering with the start of an answer in place of the generation prompt.

        What the template writes before the answer of an earlier turn shows it: a closed thought, or the name of a
        channel. Unchanged if the template does not tell the two apart.
        """
        place = self._marks.mark(_PLACE)
        said = [*self._messages, Message.assistant(place), Message.user("x")]
        try:
            before = await self._chat.apply(self._messages, extra=_WITHOUT_REPLY)
            answered = await self._chat.apply(said, extra=_WITHOUT_REPLY)
        except ServerError:  # a template that refuses such a conversation
            before, answered = rendered, ""
        opened = answered.partition(place)[0] if place in answered else ""
        if opened.startswith(before) and not rendered.startswith(opened):
            return opened
        return f"{rendered.rstrip()}\n{THINK_END}\n\n" if rendered.rstrip().endswith(THINK) else rendered
