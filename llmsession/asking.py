"""What is asked of a server, for each kind of call: texts stay texts, whatever tokens they spell."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from llmsession.messages import Control, Message, Text
from llmsession.reply_source import Prepare, Request

if TYPE_CHECKING:
    from llmsession.backends.backend import Endpoint
    from llmsession.remote_server import RemoteServer
    from llmsession.server import Server
    from llmsession.wire.reply import EventDecoder
    from llmsession.wire.request import GenerationRequest

# What only the chat endpoint can do: constrain and parse calls, and a form of the reply.
_ONLY_CHAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})
# A space of no width, and another for texts that hold the first.
_SPACES = ("\u200b", "\u2060")


def ask_raw(prompt: str | list[int], request: GenerationRequest) -> Prepare:
    """As it is: here the spellings of special tokens mean those."""
    _complete(prompt, request)  # what is wrong with it is said at once

    async def prepare(endpoint: Endpoint) -> Request:
        del endpoint
        return _complete(prompt, request)

    return prepare


def ask_encoded(server: Server | RemoteServer, pieces: Sequence[Control | Text], request: GenerationRequest) -> Prepare:
    """By an encoding of ours, through /completion."""
    _complete("", request)

    async def prepare(endpoint: Endpoint) -> Request:
        writer = await server.prompt_writer(endpoint)
        written = await writer.write(pieces)
        return _complete(written.prompt, request, neutralized=written.neutralized)

    return prepare


def ask_chat(
    server: Server | RemoteServer, turns: Sequence[Message], request: GenerationRequest, features: Container[str]
) -> Prepare:
    """By the server's own template, through the chat endpoint; where a text spells a token, as tokens of ours."""
    _chat(server, features, turns, request)

    async def prepare(endpoint: Endpoint) -> Request:
        from llmsession.wire.rewriting import ThoughtsApart

        extra = dict(request.extra)
        if {"tokens", "completion"} <= endpoint.features and _ONLY_CHAT.isdisjoint(extra):
            writer = await server.prompt_writer(endpoint)
            found = await writer.write_chat(turns, model=server.model.name, extra=extra)
            if found is not None:
                made = _complete(found.prompt, request, neutralized=found.neutralized)
                apart = ThoughtsApart(made.decoder, begun=found.in_thought, whole=found.think_token)
                return replace(made, decoder=apart)
            return _chat(server, endpoint.features, turns, request)
        return await _chat_with_spaces(server, endpoint, turns, request)

    return prepare


def _complete(prompt: str | list[int], request: GenerationRequest, *, neutralized: int = 0) -> Request:
    from llmsession.wire import completion_api

    return Request(
        path=completion_api.PATH,
        body=completion_api.encode_request(prompt, request),
        decoder=completion_api.EventDecoder(request),
        neutralized=neutralized,
    )


def _chat(
    server: Server | RemoteServer, features: Container[str], turns: Sequence[Message], request: GenerationRequest
) -> Request:
    from llmsession.wire import openai_api

    if "generation_config" in features:
        return _chat_of_transformers(server, turns, request)
    body = openai_api.encode_request(turns, request, model=server.model.name, features=features)
    return Request(path=openai_api.PATH, body=body, decoder=openai_api.EventDecoder(request))


def _chat_of_transformers(
    server: Server | RemoteServer, turns: Sequence[Message], request: GenerationRequest
) -> Request:
    from llmsession.wire import transformers_api
    from llmsession.wire.rewriting import CutAtPhrase

    endpoint = server.endpoint
    is_remote = endpoint is not None and endpoint.child is None
    context_length = endpoint.facts.context_length if endpoint is not None else None
    body = transformers_api.encode_request(
        turns, request, model=server.model.name if is_remote else None, context_length=context_length
    )
    decoder: EventDecoder = transformers_api.EventDecoder(request, context_length=context_length)
    if request.stop:
        decoder = CutAtPhrase(decoder, request.stop)
    return Request(path=transformers_api.PATH, body=body, decoder=decoder)


async def _chat_with_spaces(
    server: Server | RemoteServer, endpoint: Endpoint, turns: Sequence[Message], request: GenerationRequest
) -> Request:
    """Where we cannot send tokens: a space of no width inside of each spelling, taken out of the reply."""
    from llmsession.backends.safe_prompt import map_strings, map_texts, strings_of, texts_of
    from llmsession.backends.vocabulary import look_special
    from llmsession.wire.rewriting import WithoutCharacter

    tools = request.extra.get("tools", [])
    texts = [*texts_of(turns), *strings_of(tools)]
    space = next((space for space in _SPACES if not any(space in text for text in texts)), _SPACES[0])
    if "tokens" in endpoint.features:
        find = (await (await server.prompt_writer(endpoint)).learn(texts)).find
    else:
        known = await server.known_vocabulary()
        find = known.find if known is not None else look_special
    count = sum(len(find(text)) for text in texts)
    if not count:
        return _chat(server, endpoint.features, turns, request)

    def part(text: str) -> str:
        for start, _ in reversed(find(text)):
            text = f"{text[: start + 1]}{space}{text[start + 1 :]}"
        return text

    if tools:
        request = msgspec.structs.replace(request, extra={**request.extra, "tools": map_strings(tools, part)})
    made = _chat(server, endpoint.features, [map_texts(turn, part) for turn in turns], request)
    return Request(path=made.path, body=made.body, decoder=WithoutCharacter(made.decoder, space), neutralized=count)
