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
    from llmsession.wire.request import GenerationRequest

# What only the chat endpoint can do: constrain and parse calls, and a form of the reply.
_ONLY_CHAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})
# What it takes to send a chat as tokens of ours.
_AS_TOKENS = frozenset({"tokens", "pieces", "template", "completion"})


def ask_raw(prompt: str | list[int], request: GenerationRequest) -> Prepare:
    """As it is: here the spellings of special tokens mean those."""
    _complete(prompt, request)  # what is wrong with it is said at once

    async def prepare(endpoint: Endpoint) -> Request:
        return _complete(prompt, _bound(request, endpoint))

    return prepare


def ask_encoded(server: Server | RemoteServer, pieces: Sequence[Control | Text], request: GenerationRequest) -> Prepare:
    """By an encoding of ours, through /completion."""
    _complete("", request)

    async def prepare(endpoint: Endpoint) -> Request:
        writer = await server.prompt_writer(endpoint)
        written = await writer.write(pieces)
        made = _complete(written.prompt, _bound(request, endpoint), neutralized=written.neutralized)
        if written.space is None:
            return made
        from llmsession.wire.rewriting import WithoutCharacter

        return replace(made, decoder=WithoutCharacter(made.decoder, written.space))

    return prepare


def ask_chat(
    server: Server | RemoteServer, turns: Sequence[Message], request: GenerationRequest, features: Container[str]
) -> Prepare:
    """By the server's own template, through the chat endpoint; where a text spells a token, as tokens of ours."""
    _chat(server, features, turns, request)

    async def prepare(endpoint: Endpoint) -> Request:
        from llmsession.wire.rewriting import ThoughtsApart

        extra = dict(request.extra)
        bound = _bound(request, endpoint)
        if endpoint.features >= _AS_TOKENS and _ONLY_CHAT.isdisjoint(extra):
            writer = await server.prompt_writer(endpoint)
            found = await writer.write_chat(turns, model=server.model.name, extra=extra)
            if found is not None:
                made = _complete(found.prompt, bound, neutralized=found.neutralized)
                apart = ThoughtsApart(made.decoder, begun=found.in_thought, whole=found.think_token)
                return replace(made, decoder=apart)
            return _chat(server, endpoint.features, turns, bound)
        return await _chat_with_spaces(server, endpoint, turns, bound)

    return prepare


def _bound(request: GenerationRequest, endpoint: Endpoint) -> GenerationRequest:
    """With an end, where the server has none of its own: old ones go on for ever (LLAMA_SERVER §8)."""
    length, features = endpoint.facts.context_length, endpoint.features
    if request.max_tokens is not None or length is None or "context_end" in features or "completion" not in features:
        return request
    return msgspec.structs.replace(request, max_tokens=length)


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

    body = openai_api.encode_request(turns, request, model=server.model.name, features=features)
    return Request(path=openai_api.PATH, body=body, decoder=openai_api.EventDecoder(request))


async def _chat_with_spaces(
    server: Server | RemoteServer, endpoint: Endpoint, turns: Sequence[Message], request: GenerationRequest
) -> Request:
    """Where we cannot send tokens: a space of no width inside of each spelling, taken out of the reply."""
    from llmsession.backends.safe_prompt import choose_space, map_strings, map_texts, strings_of, texts_of
    from llmsession.backends.vocabulary import look_special
    from llmsession.wire.rewriting import WithoutCharacter

    tools = request.extra.get("tools", [])
    texts = [*texts_of(turns), *strings_of(tools)]
    space = choose_space(texts)
    if "tokens" in endpoint.features:
        find = (await (await server.prompt_writer(endpoint)).learn(texts)).find
    else:
        find = look_special
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
