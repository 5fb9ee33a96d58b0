"""PromptEncoding: converts messages into control and text pieces, with thirteen strings.

The pieces stay apart until they are tokenized: user text is Text, and nothing in it becomes a special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.message_input import MessagesLike, as_messages
from llmsession.types.messages import Control, Message, Role, Text

Piece = Control | Text
Part = tuple[Role | None, list[Piece]]


class PromptEncoding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around each part of a conversation.

    The first thirteen are the parts' own. `generation_prompt` is what the model goes on from, where that is not the
    assistant's start. `default_system_prompt` is used where the messages have no system message; empty: an empty system
    turn, None: no system turn. `system_position`: a turn of its own, or the beginning of the first or of the last user
    turn. `results_in_user_turn`: results that follow one another share a user turn. `trim`: whose texts lose the white
    space around them. `stop` are the texts that end a reply besides the end token.
    """

    begin_of_text: str = ""
    system_token_start: str = ""
    system_token_end: str = ""
    user_token_start: str = ""
    user_token_end: str = ""
    assistant_token_start: str = ""
    assistant_token_end: str = ""
    tools_available_token_start: str = ""
    tools_available_token_end: str = ""
    tool_call_token_start: str = ""
    tool_call_token_end: str = ""
    tool_call_result_token_start: str = ""
    tool_call_result_token_end: str = ""
    generation_prompt: str | None = None
    default_system_prompt: str | None = None
    system_position: Literal["turn", "first_user", "last_user"] = "turn"
    results_in_user_turn: bool = False
    trim: tuple[Role, ...] = ()
    stop: tuple[str, ...] = ()

    def encode(
        self, messages: MessagesLike, *, tools: Sequence[Mapping[str, Any]] = (), reply: bool = True
    ) -> list[Piece]:
        """The pieces of a prompt. With `reply` it ends with the generation prompt; without, after the last message.

        `tools` are functions in OpenAI's form. Raises InvalidMessagesError if no reply could follow, and
        UnsupportedFeatureError where tools are spoken of that this encoding has no words for.
        """
        return join_pieces(piece for _, part in self.encode_parts(messages, tools=tools, reply=reply) for piece in part)

    def encode_parts(
        self, messages: MessagesLike, *, tools: Sequence[Mapping[str, Any]] = (), reply: bool = True
    ) -> list[Part]:
        """Like `encode`, in parts: each with the role that it belongs to. Raises what `encode` raises."""
        turns = as_messages(messages, reply=reply)
        if self.default_system_prompt is not None and turns[0].role is not Role.SYSTEM:
            turns.insert(0, Message.system(self.default_system_prompt))
        system = turns.pop(0) if turns and turns[0].role is Role.SYSTEM else None
        parts: list[Part] = [(None, [Control(self.begin_of_text)])]
        if self.system_position == "turn":
            parts.append((Role.SYSTEM, self._encode_system(system, tools)))
        elif tools:
            raise _no_words("tools on offer")
        users = [number for number, turn in enumerate(turns) if turn.role is Role.USER]
        host = (
            None
            if system is None or self.system_position == "turn" or not users
            else users[0 if self.system_position == "first_user" else -1]
        )
        for number, turn in enumerate(turns):
            before = turns[number - 1].role if number else None
            after = turns[number + 1].role if number + 1 < len(turns) else None
            parts += self._encode_turn(turn, before, after, system if number == host else None)
        if reply:
            starts = self.assistant_token_start if self.generation_prompt is None else self.generation_prompt
            parts.append((Role.ASSISTANT, [Control(starts)]))
        return parts

    def render(self, messages: MessagesLike, *, tools: Sequence[Mapping[str, Any]] = (), reply: bool = True) -> str:
        """The pieces as one string: what the model reads, to be looked at. Not safe to send: see `encode`."""
        return "".join(piece.text for piece in self.encode(messages, tools=tools, reply=reply))

    def _encode_system(self, system: Message | None, tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
        if system is None and not tools:
            return []
        pieces: list[Piece] = [Control(self.system_token_start)]
        if system is not None:
            pieces.append(self._text(system))
        if tools:
            if not self.tools_available_token_start:
                raise _no_words("tools on offer")
            pieces += [
                Control(("\n\n" if system is not None else "") + self.tools_available_token_start),
                Text("\n".join(write_json(tool) for tool in tools)),
                Control(self.tools_available_token_end),
            ]
        return [*pieces, Control(self.system_token_end)]

    def _encode_turn(
        self, turn: Message, before: Role | None, after: Role | None, system: Message | None
    ) -> list[Part]:
        """`system` where its text stands in this user turn."""
        match turn.role:
            case Role.ASSISTANT:
                return [(Role.ASSISTANT, self._encode_assistant(turn))]
            case Role.TOOL:
                return [(Role.TOOL, self._encode_result(turn, before, after))]
        parts: list[Part] = [(Role.USER, [Control(self.user_token_start)])]
        if system is not None:
            hosted: list[Piece] = [Control(self.system_token_start), self._text(system), Control(self.system_token_end)]
            parts.append((Role.SYSTEM, hosted))
        return [*parts, (Role.USER, [self._text(turn), Control(self.user_token_end)])]

    def _encode_result(self, turn: Message, before: Role | None, after: Role | None) -> list[Piece]:
        start, end = self.tool_call_result_token_start, self.tool_call_result_token_end
        if not start:
            raise _no_words("results of tools")
        if self.results_in_user_turn:
            start = ("\n" if before is Role.TOOL else self.user_token_start) + start
            end = end if after is Role.TOOL else end + self.user_token_end
        return [Control(start), self._text(turn), Control(end)]

    def _encode_assistant(self, turn: Message) -> list[Piece]:
        text = self._text(turn)
        pieces: list[Piece] = [Control(self.assistant_token_start), text]
        if turn.tool_calls and not self.tool_call_token_start:
            raise _no_words("calls of tools")
        for number, call in enumerate(turn.tool_calls):
            if text.text or number:
                pieces.append(Control("\n"))
            pieces += [
                Control(self.tool_call_token_start),
                Text(write_json({"name": call.name, "arguments": call.arguments})),
                Control(self.tool_call_token_end),
            ]
        pieces.append(Control(self.assistant_token_end))
        return pieces

    def _text(self, turn: Message) -> Text:
        return Text(turn.content.strip() if turn.role in self.trim else turn.content)


def write_json(value: Any) -> str:
    """Return JSON as the templates' `tojson` writes it, with spaces and no escapes; models were trained on that."""
    return json.dumps(value, ensure_ascii=False)


def _no_words(what: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        f'this prompt encoding has no words for {what}: use prompt_encoding="chat", the model\'s own template',
        feature=what,
        backend="encoding",
    )


def join_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces without empty ones, with neighbours of one kind joined: they are tokenized together."""
    joined: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if joined and type(joined[-1]) is type(piece):
            joined[-1] = type(piece)(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined
