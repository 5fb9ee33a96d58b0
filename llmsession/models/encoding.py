"""PromptEncoding: messages into control pieces and text pieces, by thirteen strings.

The pieces stay apart until they are tokens: what a user wrote is Text, and nothing in it is ever a special token.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmsession.messages import Control, Message, MessagesLike, Role, Text, as_messages

Piece = Control | Text


class PromptEncoding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around each part of a conversation. `stop` are the texts that end a reply besides the end token.

    `default_system_prompt` is used where the messages have no system message; empty: none.
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
    default_system_prompt: str = ""
    stop: tuple[str, ...] = ()

    def encode(self, messages: MessagesLike, *, reply: bool = True) -> list[Piece]:
        """The pieces of a prompt. With `reply` it ends with the assistant's start; without, after the last message.

        Raises InvalidMessagesError where no reply could follow.
        """
        turns = as_messages(messages, reply=reply)
        if self.default_system_prompt and turns[0].role is not Role.SYSTEM:
            turns.insert(0, Message.system(self.default_system_prompt))
        pieces: list[Piece] = [Control(self.begin_of_text)]
        for turn in turns:
            pieces += self._encode_turn(turn)
        if reply:
            pieces.append(Control(self.assistant_token_start))
        return _join(pieces)

    def render(self, messages: MessagesLike, *, reply: bool = True) -> str:
        """The pieces as one string: what the model reads, to be looked at. Not safe to send: see `encode`."""
        return "".join(piece.text for piece in self.encode(messages, reply=reply))

    def _encode_turn(self, turn: Message) -> list[Piece]:
        match turn.role:
            case Role.SYSTEM:
                start, end = self.system_token_start, self.system_token_end
            case Role.USER:
                start, end = self.user_token_start, self.user_token_end
            case Role.TOOL:
                start, end = self.tool_call_result_token_start, self.tool_call_result_token_end
            case Role.ASSISTANT:
                return self._encode_assistant(turn)
        return [Control(start), Text(turn.content), Control(end)]

    def _encode_assistant(self, turn: Message) -> list[Piece]:
        pieces: list[Piece] = [Control(self.assistant_token_start), Text(turn.content)]
        for number, call in enumerate(turn.tool_calls):
            if turn.content or number:
                pieces.append(Control("\n"))
            call_text = msgspec.json.encode({"name": call.name, "arguments": call.arguments}).decode()
            pieces += [
                Control(self.tool_call_token_start),
                Text(call_text),
                Control(self.tool_call_token_end),
            ]
        pieces.append(Control(self.assistant_token_end))
        return pieces


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    """Without empty pieces, and with neighbours of one kind made one: they are tokenized together."""
    joined: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if joined and type(joined[-1]) is type(piece):
            joined[-1] = type(piece)(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined
