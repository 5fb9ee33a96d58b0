"""TokenFacts: what a session's server makes of texts and messages: tokens, counts, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmsession.prompts.system_prompt import render_system_prompt
from llmsession.session.server_info import ServerFacts
from llmsession.types.errors import UnsupportedFeatureError, UsageError
from llmsession.types.inspection import PromptPiece
from llmsession.types.message_input import MessagesLike, as_messages, is_unicode, with_data_urls
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.session.config.options import Options


class TokenFacts(ServerFacts):
    """The Session itself, in session.py, builds on it."""

    _options: Options

    async def tokenize(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of a text. `special`: spellings of special tokens in it mean those; `bos`, `eos`: around it."""
        endpoint = await self._ready()
        self._require("tokens")
        ids = await _tokenize(endpoint, check_text(text), add_special=False, special=special)
        if not special and "plain_tokens" not in endpoint.features:
            vocabulary = await (await self._server.prompt_writer(endpoint)).learn([text])
            if vocabulary.find(text) and not vocabulary.special.keys().isdisjoint(ids):
                self._refuse("way to tokenize the spelling of a special token as text (special=True gives that token)")
        return [
            *([self._special_token("bos")] if bos else []),
            *ids,
            *([self._special_token("eos")] if eos else []),
        ]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens by their spelling. Parts of characters become U+FFFD."""
        from llmsession.wire import completion_api

        endpoint = await self._ready()
        self._require("tokens")
        size = self._server.info.vocab_size if self._server.info is not None else None
        for id_ in ids:
            if not is_token_id(id_) or (size is not None and id_ >= size):
                raise UsageError(
                    f"{id_!r} is no token id: they go from 0" + (f" to {size - 1}" if size else " upwards")
                )
        answer = await endpoint.client.post("/detokenize", msgspec.json.encode({"tokens": list(ids)}))
        return completion_api.decode_text(answer)

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """How many tokens of context it takes, exactly. A `str` is raw text, a list what `prompt` would send."""
        from llmsession.wire import openai_api

        endpoint = await self._ready()
        if isinstance(messages_or_text, str):
            self._require("tokens")
            return len(await _tokenize(endpoint, check_text(messages_or_text), add_special=True, special=True))
        turns = self._read_messages(messages_or_text)
        encoding = self._server.model.encoding
        if any(turn.images for turn in turns):
            self._check_sight()
        elif encoding is not None:
            self._require("tokens")
            written = await (await self._server.prompt_writer(endpoint)).write(encoding.encode(turns))
            if isinstance(written.prompt, list):
                return len(written.prompt)
            return len(await _tokenize(endpoint, written.prompt, add_special=True, special=True))
        self._require("chat_count")
        if not any(turn.images for turn in turns):
            from llmsession.prompts.template_writer import TemplateWriter

            writer = TemplateWriter(
                await self._server.prompt_writer(endpoint), endpoint.client, model=self.model, extra={}
            )
            if (found := await writer.write(turns)) is not None:
                return len(found.prompt)
        body = openai_api.encode_count(turns, model=self._server.model.name)
        return openai_api.decode_count(await endpoint.client.post(openai_api.COUNT_PATH, body))

    async def render_template(self, messages: MessagesLike) -> str:
        """What the model's own template makes of messages: to be looked at, since spellings in it are as they were."""
        from llmsession.wire import openai_api

        endpoint = await self._ready()
        self._require("template")
        body = openai_api.encode_template(self._read_messages(messages), model=self.model)
        return openai_api.decode_template(await endpoint.client.post(openai_api.TEMPLATE_PATH, body))

    async def inspect_prompt(self, messages: MessagesLike) -> list[PromptPiece]:
        """Exactly what `prompt` would send, in pieces: whose each is, control or text, and its tokens.

        Of a list that ends with the assistant: what the next prompt will begin with. Images have no tokens to be shown.
        """
        from llmsession.prompts.pieces import read_pieces

        endpoint = await self._ready()
        self._require("pieces")
        turns = self._read_messages(messages, reply=False)
        reply, encoding = turns[-1].role in (Role.USER, Role.TOOL), self._server.model.encoding
        writer = await self._server.prompt_writer(endpoint)
        if any(turn.images for turn in turns):
            self._refuse("way to show the tokens of images")
        if encoding is not None:
            from llmsession.prompts.next_turn import encode_next

            parts = encoding.encode_parts(turns) if reply else encode_next(encoding, turns)
            written = await writer.write([piece for _, pieces in parts for piece in pieces])
        else:
            from llmsession.prompts.template_writer import TemplateWriter

            self._require("template")
            chat = TemplateWriter(writer, endpoint.client, model=self.model, extra={})
            parts = await chat.read_parts(turns, reply=reply)
            written = await writer.write_marked([piece for _, pieces in parts for piece in pieces])
        return read_pieces(parts, await writer.read_tokens(written.prompt))

    def _special_token(self, name: str) -> int:
        token = self.special_tokens[name]
        if token is None:
            raise UsageError(f"this model has no {name} token")
        return token

    def _check_sight(self) -> None:
        """Of an engine of ours it is known; a remote one says so itself."""
        if self._options.remote is None and self._options.mmproj is None:
            raise UnsupportedFeatureError(
                f"{self.model} was opened without a projector, so it cannot see: give its file with mmproj=",
                feature="images",
                backend=self.backend,
            )

    def _read_messages(self, messages: MessagesLike, *, reply: bool = True) -> list[Message]:
        """As they are sent: with images read, and the system prompt's `{now}` and `{model}` filled in."""
        turns = with_data_urls(as_messages(messages, reply=reply))
        if turns[0].role is Role.SYSTEM:
            turns[0] = msgspec.structs.replace(
                turns[0], content=render_system_prompt(turns[0].content, model=self.model)
            )
        return turns


async def _tokenize(endpoint: Endpoint, text: str, *, add_special: bool, special: bool) -> list[int]:
    from llmsession.wire import completion_api

    body = completion_api.encode_tokenize(text, add_special=add_special, parse_special=special)
    return completion_api.decode_tokens(await endpoint.client.post("/tokenize", body))


def check_text(text: object) -> str:
    """It. Raises UsageError where it is none, or cannot be sent."""
    if not isinstance(text, str):
        raise UsageError(f"a text is a str, not {type(text).__name__}")
    if not is_unicode(text):
        raise UsageError('the text holds a lone surrogate, which UTF-8 cannot: decode the input with errors="replace"')
    return text


def is_token_id(value: object) -> bool:
    """Whether it may be one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
