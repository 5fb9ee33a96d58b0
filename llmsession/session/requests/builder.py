"""RequestBuilder: chooses the kind of request for a call.

A prompt is written either by a prompt encoding or by the model's template; with images, always by the template. The
choice is made here for prompt, ingest, count_tokens and inspect_prompt alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmsession.prompts.system_prompt import render_system_prompt
from llmsession.types.errors import UnsupportedFeatureError, UsageError
from llmsession.types.message_input import MessagesLike, as_messages, is_unicode, with_data_urls
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.models.encoding import Part, PromptEncoding
    from llmsession.prompts.template_writer import TemplateWriter
    from llmsession.session.requests.completion import Request
    from llmsession.session.server_info import ServerInfo
    from llmsession.types.inspection import PromptPiece
    from llmsession.wire.request import GenerationRequest


class RequestBuilder:
    """Builds the requests of one session. `can_see`: whether images may be sent, as far as the client knows."""

    def __init__(self, info: ServerInfo, *, can_see: bool) -> None:
        self._info = info
        self._server = info.server
        self._can_see = can_see

    def read(self, messages: MessagesLike, *, reply: bool = True) -> list[Message]:
        """Return the messages as they are sent: images loaded, `{now}` and `{model}` in the system prompt filled in.

        Raises InvalidMessagesError if the messages are malformed.
        """
        turns = with_data_urls(as_messages(messages, reply=reply))
        if turns[0].role is Role.SYSTEM:
            rendered = render_system_prompt(turns[0].content, model=self._server.model.name)
            if rendered != turns[0].content:
                turns[0] = msgspec.structs.replace(turns[0], content=rendered)
        return turns

    def find_encoding(self, turns: Sequence[Message]) -> PromptEncoding | None:
        """Return the encoding that writes these messages, or None if the server applies the model's template.

        Raises UnsupportedFeatureError if there are images and the model cannot see them.
        """
        if any(turn.images for turn in turns):
            if not self._can_see:
                raise UnsupportedFeatureError(
                    f"{self._server.model.name} was opened without a projector, so it cannot see images: "
                    "give the projector's file with mmproj=",
                    feature="images",
                    backend=self._info.endpoint.backend,
                )
            return None
        return self._server.model.encoding

    def check(self, request: GenerationRequest) -> None:
        """Raise UnsupportedFeatureError if a text-only prompt cannot be sent with these settings."""
        if self._server.model.encoding is not None:
            self._info.require("completion")
        else:
            self._check_chat(request)

    def prompt(self, turns: list[Message], encoding: PromptEncoding | None, request: GenerationRequest) -> Request:
        """Return the request for a reply to these messages. Raises UsageError and UnsupportedFeatureError."""
        if encoding is not None:
            from llmsession.session.requests.completion import EncodedRequest

            self._info.require("completion")
            return EncodedRequest(self._server, encoding.encode(turns), request)
        from llmsession.session.requests.chat import ChatRequest

        self._check_chat(request)
        return ChatRequest(self._server, turns, request, self._info.features)

    def prefix(self, turns: list[Message], request: GenerationRequest, *, typing: bool) -> Request:
        """Return the request that evaluates what the next prompt will begin with.

        `typing`: the user is still writing the last message. Raises UnsupportedFeatureError.
        """
        if turns[-1].role in (Role.USER, Role.TOOL) and not typing:
            return self.prompt(turns, self.find_encoding(turns), request)
        self._refuse_images(turns, "way to evaluate a part of a conversation with images")
        if (encoding := self._server.model.encoding) is not None:
            from llmsession.prompts.next_turn import encode_next
            from llmsession.session.requests.completion import EncodedRequest

            parts = encode_next(encoding, turns, typing=typing)
            return EncodedRequest(self._server, [piece for _, pieces in parts for piece in pieces], request)
        from llmsession.session.requests.chat import PrefixRequest

        self._info.require("template")
        self._info.require("pieces")
        return PrefixRequest(self._server, turns, request, typing=typing)

    def raw(self, prompt: str | Sequence[int], request: GenerationRequest) -> Request:
        """Return the request that continues raw text or token ids. Raises UsageError."""
        from llmsession.session.requests.completion import RawRequest

        return RawRequest(self._server, check_prompt(prompt), request)

    async def count(self, turns: list[Message]) -> int:
        """Return the exact number of tokens in the prompt for these messages."""
        from llmsession.wire import openai_api

        endpoint = await self._info.ready()
        encoding = self.find_encoding(turns)
        if encoding is not None:
            self._info.require("tokens")
            written = await (await self._server.prompt_writer(endpoint)).write(encoding.encode(turns))
            return await self._count_prompt(written.prompt)
        self._info.require("chat_count")
        if not any(turn.images for turn in turns):
            found = await (await self._template_writer()).write(turns)
            if found is not None:
                return len(found.prompt)
        body = openai_api.encode_count(turns, model=self._server.model.name)
        return openai_api.decode_count(await endpoint.client.post(openai_api.COUNT_PATH, body))

    async def _count_prompt(self, prompt: str | list[int]) -> int:
        if isinstance(prompt, list):
            return len(prompt)
        return len(await self.tokenize(prompt, add_special=True, special=True))

    async def tokenize(self, text: str, *, add_special: bool, special: bool) -> list[int]:
        """Return the token ids of a text. `special`: spellings of special tokens in it mean those tokens."""
        from llmsession.wire import completion_api

        endpoint = await self._info.ready()
        body = completion_api.encode_tokenize(text, add_special=add_special, parse_special=special)
        return completion_api.decode_tokens(await endpoint.client.post("/tokenize", body))

    async def inspect(self, turns: list[Message]) -> list[PromptPiece]:
        """Return the pieces of the prompt for these messages.

        If the last message is the assistant's, they are the pieces of what the next prompt will begin with.
        """
        from llmsession.prompts.pieces import read_pieces

        endpoint = await self._info.ready()
        self._info.require("pieces")
        self._refuse_images(turns, "way to show the tokens of images")
        reply = turns[-1].role in (Role.USER, Role.TOOL)
        writer = await self._server.prompt_writer(endpoint)
        parts: list[Part]
        if (encoding := self._server.model.encoding) is not None:
            from llmsession.prompts.next_turn import encode_next

            parts = encoding.encode_parts(turns) if reply else encode_next(encoding, turns)
            written = await writer.write([piece for _, pieces in parts for piece in pieces])
        else:
            self._info.require("template")
            parts = await (await self._template_writer()).read_parts(turns, reply=reply)
            written = await writer.write_marked([piece for _, pieces in parts for piece in pieces])
        return read_pieces(parts, await writer.read_tokens(written.prompt))

    async def _template_writer(self) -> TemplateWriter:
        from llmsession.prompts.template_writer import TemplateWriter

        endpoint = await self._info.ready()
        writer = await self._server.prompt_writer(endpoint)
        return TemplateWriter(writer, endpoint.client, model=self._server.model.name, extra={})

    def _check_chat(self, request: GenerationRequest) -> None:
        """Raise UnsupportedFeatureError if the server's chat endpoint does not support these settings."""
        from llmsession.wire.openai_api import find_beyond_openai
        from llmsession.wire.transformers_api import find_unsupported

        features = self._info.features
        find = find_unsupported if "generation_config" in features else find_beyond_openai
        if "sampling" not in features and (beyond := find(request)) is not None:
            self._info.refuse(beyond)
        if request.top_logprobs is not None and "sampling" in features:
            self._info.require("chat_logprobs")
        if request.reply_start:
            from llmsession.session.requests.chat import check_start

            check_start(request, self._info.endpoint)

    def _refuse_images(self, turns: Sequence[Message], feature: str) -> None:
        if any(turn.images for turn in turns):
            self._info.refuse(feature)


def check_prompt(prompt: str | Sequence[int]) -> str | list[int]:
    """Return the prompt, with token ids as a list. Raises UsageError if it is empty, or neither text nor token ids."""
    if isinstance(prompt, str):
        if not prompt:
            raise UsageError("there is nothing to continue: give some text, or token ids")
        return check_text(prompt)
    ids = list(prompt)
    if not ids or not all(is_token_id(id_) for id_ in ids):
        raise UsageError("a prompt is text, or a list of token ids that is not empty")
    return ids


def check_text(text: object) -> str:
    """Return `text` if it can be encoded as UTF-8. Raises UsageError otherwise."""
    if not isinstance(text, str):
        raise UsageError(f"a text is a str, not {type(text).__name__}")
    if not is_unicode(text):
        raise UsageError('the text holds a lone surrogate, which UTF-8 cannot: decode the input with errors="replace"')
    return text


def is_token_id(value: object) -> bool:
    """Whether the value can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
