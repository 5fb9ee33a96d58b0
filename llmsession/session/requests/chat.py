"""Requests in which the model's own template writes the prompt: through the chat endpoint, or as tokens of ours."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from llmsession.session.requests.completion import ONLY_CHAT, WireRequest, bound, complete, count_on, may_go_on, shorten
from llmsession.types.completion import Usage
from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.messages import Message

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.prompts.template_writer import ChatPrompt, TemplateWriter
    from llmsession.session.server.server import Server
    from llmsession.wire.decoder import EventDecoder
    from llmsession.wire.request import GenerationRequest
    from llmsession.wire.resume import Delivered

# What it takes to send a chat as tokens of ours.
_AS_TOKENS = frozenset({"tokens", "pieces", "template", "completion"})


class ChatRequest:
    """By the server's own template, through the chat endpoint; where a text spells a token, as tokens of ours."""

    def __init__(
        self,
        server: Server,
        turns: Sequence[Message],
        request: GenerationRequest,
        features: Container[str],
    ) -> None:
        self._server = server
        self._turns = turns
        self._request = request
        _chat(server, features, turns, request)

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """See Request."""
        request = bound(self._request, endpoint)
        if not self._takes_tokens(endpoint):
            if request.reply_start:
                await self._check_begin(endpoint)
            return await _chat_with_spaces(self._server, endpoint, self._turns, request)
        found = await (await self._writer(endpoint)).write(self._turns, start=request.reply_start)
        if found is None:
            return _chat(self._server, endpoint.features, self._turns, request)
        return _complete_chat(found, request, answers=bool(request.reply_start))

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """By the server's own way of going on, where its template is good for that; else by the rendered prompt."""
        if not self._takes_tokens(endpoint) or not may_go_on(self._request):
            return None
        writer, start = await self._writer(endpoint), self._request.reply_start
        before = await self._count(endpoint, delivered)
        shorter = shorten(self._request, before)
        if not start:
            said = [Message.assistant(text) for text in (delivered.text, delivered.reasoning)]
            if await writer.is_plain([*self._turns, *said]) and await writer.can_continue(self._turns, delivered):
                return count_on(_chat(self._server, endpoint.features, self._turns, shorter, begun=delivered), before)
        found = await writer.write(self._turns, start=start, begun=delivered)
        if found is None:
            return None
        answers = bool(start or delivered.text)
        return count_on(_complete_chat(found, shorter, answers=answers, thinks=bool(delivered.reasoning)), before)

    async def _writer(self, endpoint: Endpoint) -> TemplateWriter:
        from llmsession.prompts.template_writer import TemplateWriter

        writer = await self._server.prompt_writer(endpoint)
        return TemplateWriter(writer, endpoint.client, model=self._server.model.name, extra=self._request.extra)

    async def _check_begin(self, endpoint: Endpoint) -> None:
        """Where only the server's own way of going on will do: of calls, and where there are images.

        Raises UnsupportedFeatureError if its template is not good for that.
        """
        from llmsession.wire.resume import Delivered

        begun = Delivered(text=self._request.reply_start)
        if not await (await self._writer(endpoint)).can_continue(self._turns, begun, may_close=True):
            raise no_start(endpoint, "the model's template writes a begun reply as no model was trained on")

    async def _count(self, endpoint: Endpoint, delivered: Delivered) -> Usage:
        """The chat endpoint counts its prompt only at the end, and a frame may be more tokens than one."""
        from llmsession.wire import completion_api, openai_api

        before = delivered.usage
        if before.prompt_tokens or "chat_count" not in endpoint.features:
            return before
        body = openai_api.encode_count(self._turns, model=self._server.model.name)
        prompt = openai_api.decode_count(await endpoint.client.post(openai_api.COUNT_PATH, body))
        body = completion_api.encode_tokenize(
            delivered.reasoning + delivered.text, add_special=False, parse_special=False
        )
        tokens = len(completion_api.decode_tokens(await endpoint.client.post("/tokenize", body)))
        return Usage(prompt_tokens=prompt, completion_tokens=max(tokens, before.completion_tokens))

    def _takes_tokens(self, endpoint: Endpoint) -> bool:
        """Not where there are images, which go as they are."""
        if any(turn.images for turn in self._turns):
            return False
        return endpoint.features >= _AS_TOKENS and ONLY_CHAT.isdisjoint(self._request.extra)


class PrefixRequest:
    """Nothing but what the next prompt will begin with."""

    def __init__(self, server: Server, turns: Sequence[Message], request: GenerationRequest, *, typing: bool) -> None:
        self._server = server
        self._turns = turns
        self._request = request
        self._typing = typing

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """See Request."""
        from llmsession.prompts.template_writer import TemplateWriter

        writer = await self._server.prompt_writer(endpoint)
        chat = TemplateWriter(writer, endpoint.client, model=self._server.model.name, extra=self._request.extra)
        written = await chat.write_next(self._turns, typing=self._typing)
        return complete(written.prompt, self._request, neutralized=written.neutralized)

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """Not: it is said again."""
        del endpoint, delivered
        return None


def check_start(request: GenerationRequest, endpoint: Endpoint) -> None:
    """Raise UnsupportedFeatureError if a chat cannot be begun."""
    if not endpoint.features >= _AS_TOKENS:
        raise no_start(endpoint, "it has no way to go on from a begun reply")
    if "response_format" in request.extra:
        raise no_start(endpoint, "a form of the whole reply (response_format) starts over behind it")


def no_start(endpoint: Endpoint, why: str) -> UnsupportedFeatureError:
    """What is raised then."""
    return UnsupportedFeatureError(
        f"{endpoint.backend} at {endpoint.client.base_url} cannot be given reply_start: {why}",
        feature="reply_start",
        backend=endpoint.backend,
    )


def _complete_chat(
    found: ChatPrompt, request: GenerationRequest, *, answers: bool, thinks: bool = False
) -> WireRequest:
    from llmsession.wire.stream_filters import SplitReasoning

    made = complete(found.prompt, request, neutralized=found.neutralized)
    thinks = not answers and (found.in_thought or thinks)
    return replace(made, decoder=SplitReasoning(made.decoder, begun=thinks, answers=answers, whole=found.think_token))


def _chat(
    server: Server,
    features: Container[str],
    turns: Sequence[Message],
    request: GenerationRequest,
    *,
    begun: Delivered | None = None,
) -> WireRequest:
    from llmsession.wire import openai_api

    if "generation_config" in features:
        return _chat_of_transformers(server, turns, request)
    body = openai_api.encode_request(turns, request, model=server.model.name, features=features, begun=begun)
    return WireRequest(path=openai_api.PATH, body=body, decoder=openai_api.EventDecoder(request))


def _chat_of_transformers(server: Server, turns: Sequence[Message], request: GenerationRequest) -> WireRequest:
    from llmsession.wire import transformers_api
    from llmsession.wire.stream_filters import StopAtPhrase

    endpoint = server.endpoint
    is_remote = endpoint is not None and endpoint.child is None
    context_length = endpoint.facts.context_length if endpoint is not None else None
    body = transformers_api.encode_request(
        turns, request, model=server.model.name if is_remote else None, context_length=context_length
    )
    decoder: EventDecoder = transformers_api.EventDecoder(request, context_length=context_length)
    if request.stop:
        decoder = StopAtPhrase(decoder, request.stop)
    return WireRequest(path=transformers_api.PATH, body=body, decoder=decoder)


async def _chat_with_spaces(
    server: Server, endpoint: Endpoint, turns: Sequence[Message], request: GenerationRequest
) -> WireRequest:
    """Where we cannot send tokens: a space of no width inside of each spelling, taken out of the reply."""
    from llmsession.prompts.message_texts import choose_space, map_strings, map_texts, strings_of, texts_of
    from llmsession.prompts.vocabulary import look_special
    from llmsession.wire.resume import Delivered
    from llmsession.wire.stream_filters import StripCharacter

    tools, start = request.extra.get("tools", []), request.reply_start
    texts = [*texts_of(turns), *strings_of(tools), start]
    space = choose_space(texts)
    if "tokens" in endpoint.features:
        find = (await (await server.prompt_writer(endpoint)).learn(texts)).find
    else:
        known = await server.known_vocabulary()
        find = known.find if known is not None else look_special
    count = sum(len(find(text)) for text in texts)

    def part(text: str) -> str:
        for at, _ in reversed(find(text)):
            text = f"{text[: at + 1]}{space}{text[at + 1 :]}"
        return text

    if tools and count:
        request = msgspec.structs.replace(request, extra={**request.extra, "tools": map_strings(tools, part)})
    turns = [map_texts(turn, part) for turn in turns] if count else turns
    begun = Delivered(text=part(start)) if start else None
    made = _chat(server, endpoint.features, turns, request, begun=begun)
    return replace(made, decoder=StripCharacter(made.decoder, space), neutralized=count) if count else made
