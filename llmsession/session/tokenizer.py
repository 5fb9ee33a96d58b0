"""Tokenizer: turns texts and messages into tokens, counts and prompts, by asking the session's server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmsession.session.requests.builder import RequestBuilder, check_text, is_token_id
from llmsession.types.errors import UsageError
from llmsession.types.message_input import MessagesLike

if TYPE_CHECKING:
    from llmsession.session.server_info import ServerInfo
    from llmsession.types.inspection import PromptPiece


class Tokenizer:
    """The tokenizer of one session's model. Each call waits for the server if it is not ready."""

    def __init__(self, info: ServerInfo, builder: RequestBuilder) -> None:
        self._info = info
        self._server = info.server
        self._builder = builder

    async def tokenize(self, text: str, *, bos: bool, eos: bool, special: bool) -> list[int]:
        """Return the token ids of a text. See `Session.tokenize`."""
        endpoint = await self._info.ready()
        self._info.require("tokens")
        ids = await self._builder.tokenize(check_text(text), add_special=False, special=special)
        if not special and "plain_tokens" not in endpoint.features:
            vocabulary = await (await self._server.prompt_writer(endpoint)).learn([text])
            if vocabulary.find(text) and not vocabulary.special.keys().isdisjoint(ids):
                self._info.refuse(
                    "way to tokenize the spelling of a special token as text (special=True gives that token)"
                )
        return [
            *([self._special_token("bos")] if bos else []),
            *ids,
            *([self._special_token("eos")] if eos else []),
        ]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Raises UsageError if one of them is not an id of this model."""
        from llmsession.wire import completion_api

        endpoint = await self._info.ready()
        self._info.require("tokens")
        size = self._server.info.vocab_size if self._server.info is not None else None
        for id_ in ids:
            if not is_token_id(id_) or (size is not None and id_ >= size):
                raise UsageError(
                    f"{id_!r} is not a token id: they go from 0" + (f" to {size - 1}" if size else " upwards")
                )
        answer = await endpoint.client.post("/detokenize", msgspec.json.encode({"tokens": list(ids)}))
        return completion_api.decode_text(answer)

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """Return the exact number of tokens of context. A `str` is raw text, a list is what `prompt` would send."""
        await self._info.ready()
        if isinstance(messages_or_text, str):
            self._info.require("tokens")
            return len(await self._builder.tokenize(check_text(messages_or_text), add_special=True, special=True))
        return await self._builder.count(self._builder.read(messages_or_text))

    async def render_template(self, messages: MessagesLike) -> str:
        """Render messages with the model's own template."""
        from llmsession.wire import openai_api

        endpoint = await self._info.ready()
        self._info.require("template")
        body = openai_api.encode_template(self._builder.read(messages), model=self._server.model.name)
        return openai_api.decode_template(await endpoint.client.post(openai_api.TEMPLATE_PATH, body))

    async def inspect_prompt(self, messages: MessagesLike) -> list[PromptPiece]:
        """Return what `prompt` would send, in pieces. See `Session.inspect_prompt`."""
        await self._info.ready()
        return await self._builder.inspect(self._builder.read(messages, reply=False))

    def _special_token(self, name: str) -> int:
        token = self._info.model_info.special_tokens[name]
        if token is None:
            raise UsageError(f"this model has no {name} token")
        return token
