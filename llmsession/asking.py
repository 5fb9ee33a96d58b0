"""What is asked of a server, for each kind of call: texts stay texts, whatever tokens they spell.

Each kind can be asked again where the server ended in the middle of the reply: by going on from what was delivered,
where nothing but the text so far decides how it goes on; else the whole is said again, and what is known left away.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

from llmsession.completion import Usage
from llmsession.messages import Control, Message, Text

if TYPE_CHECKING:
    from llmsession.backends.backend import Endpoint
    from llmsession.backends.safe_prompt import ChatPrompt
    from llmsession.remote_server import RemoteServer
    from llmsession.server import Server
    from llmsession.wire.continuing import Delivered
    from llmsession.wire.reply import EventDecoder
    from llmsession.wire.request import GenerationRequest

# What only the chat endpoint can do: constrain and parse calls, and a form of the reply.
_ONLY_CHAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})
# With these a reply has a form from its first letter on: what goes on in the middle would begin the form anew.
_SHAPING = _ONLY_CHAT | {"grammar", "json_schema"}
# What it takes to send a chat as tokens of ours.
_AS_TOKENS = frozenset({"tokens", "pieces", "template", "completion"})


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent, and what reads the answer. `neutralized`: see Completion."""

    path: str
    body: bytes
    decoder: EventDecoder
    neutralized: int = 0


class Ask(Protocol):
    """One call. What is wrong with it was said when it was made."""

    async def prepare(self, endpoint: Endpoint) -> Request:
        """The request for a server that is ready: what it looks like depends on the server's tokenizer."""
        ...

    async def go_on(self, endpoint: Endpoint, delivered: Delivered) -> Request | None:
        """One whose reply begins where the delivered part ends; None where that cannot be asked for.

        Raises NothingLeftError where as many tokens were delivered as were asked for.
        """
        ...


class AskRaw:
    """As it is: here the spellings of special tokens mean those."""

    def __init__(self, server: Server | RemoteServer, prompt: str | list[int], request: GenerationRequest) -> None:
        self._server = server
        self._prompt = prompt
        self._request = request
        _complete(prompt, request)

    async def prepare(self, endpoint: Endpoint) -> Request:
        """See Ask."""
        return _complete(self._prompt, _bound(self._request, endpoint))

    async def go_on(self, endpoint: Endpoint, delivered: Delivered) -> Request | None:
        """Not after token ids: what follows them has to be ids as well, and text has none of its own."""
        if isinstance(self._prompt, list) or not _may_go_on(self._request):
            return None
        writer = await self._server.prompt_writer(endpoint)
        if (begun := await writer.read_begun(delivered.text)) is None:
            return None
        written = await writer.write([Control(self._prompt), *begun])
        if written.space is not None:
            return None
        prompt = self._prompt + delivered.text if isinstance(written.prompt, str) else written.prompt
        return _count_on(_complete(prompt, _shorten(self._request, delivered.usage)), delivered.usage)


class AskEncoded:
    """By an encoding of ours, through /completion."""

    def __init__(
        self, server: Server | RemoteServer, pieces: Sequence[Control | Text], request: GenerationRequest
    ) -> None:
        self._server = server
        self._pieces = pieces
        self._request = request
        _complete("", request)

    async def prepare(self, endpoint: Endpoint) -> Request:
        """See Ask."""
        written = await (await self._server.prompt_writer(endpoint)).write(self._pieces)
        made = _complete(written.prompt, _bound(self._request, endpoint), neutralized=written.neutralized)
        if written.space is None:
            return made
        from llmsession.wire.rewriting import WithoutCharacter

        return replace(made, decoder=WithoutCharacter(made.decoder, written.space))

    async def go_on(self, endpoint: Endpoint, delivered: Delivered) -> Request | None:
        """See Ask."""
        if not _may_go_on(self._request):
            return None
        writer = await self._server.prompt_writer(endpoint)
        if (begun := await writer.read_begun(delivered.text)) is None:
            return None
        written = await writer.write([*self._pieces, *begun])
        if written.space is not None:
            return None
        return _count_on(_complete(written.prompt, _shorten(self._request, delivered.usage)), delivered.usage)


class AskChat:
    """By the server's own template, through the chat endpoint; where a text spells a token, as tokens of ours."""

    def __init__(
        self,
        server: Server | RemoteServer,
        turns: Sequence[Message],
        request: GenerationRequest,
        features: Container[str],
    ) -> None:
        self._server = server
        self._turns = turns
        self._request = request
        _chat(server, features, turns, request)

    async def prepare(self, endpoint: Endpoint) -> Request:
        """See Ask."""
        request = _bound(self._request, endpoint)
        if not self._takes_tokens(endpoint):
            return await _chat_with_spaces(self._server, endpoint, self._turns, request)
        writer = await self._server.prompt_writer(endpoint)
        found = await writer.write_chat(self._turns, model=self._server.model.name, extra=dict(request.extra))
        if found is None:
            return _chat(self._server, endpoint.features, self._turns, request)
        return _complete_chat(found, request)

    async def go_on(self, endpoint: Endpoint, delivered: Delivered) -> Request | None:
        """By the server's own way of going on, where its template is good for that; else by the rendered prompt."""
        if not self._takes_tokens(endpoint) or not _may_go_on(self._request):
            return None
        writer = await self._server.prompt_writer(endpoint)
        model, extra = self._server.model.name, dict(self._request.extra)
        before = await self._count(endpoint, delivered)
        shorter = _shorten(self._request, before)
        said = [Message.assistant(text) for text in (delivered.text, delivered.reasoning)]
        if await writer.is_plain([*self._turns, *said]) and await writer.can_continue(
            self._turns, delivered, model=model, extra=extra
        ):
            made = _chat(self._server, endpoint.features, self._turns, shorter, begun=delivered)
            return _count_on(made, before)
        found = await writer.write_chat(self._turns, model=model, extra=extra, begun=delivered)
        return _count_on(_complete_chat(found, shorter, delivered), before) if found is not None else None

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
        return endpoint.features >= _AS_TOKENS and _ONLY_CHAT.isdisjoint(self._request.extra)


def _may_go_on(request: GenerationRequest) -> bool:
    """Whether the text so far is all that the rest depends on.

    With log-probabilities it is not: of the tokens that came, the text of the last ones may have been held back.
    """
    binding = request.has_own_seed and request.sampling.temperature != 0
    return _SHAPING.isdisjoint(request.extra) and not binding and request.top_logprobs is None


def _shorten(request: GenerationRequest, before: Usage) -> GenerationRequest:
    if request.max_tokens is None:
        return request
    left = request.max_tokens - before.completion_tokens
    if left < 1:
        from llmsession.wire.continuing import NothingLeftError

        raise NothingLeftError
    return msgspec.structs.replace(request, max_tokens=left)


def _count_on(made: Request, before: Usage) -> Request:
    from llmsession.wire.continuing import Continued

    return replace(made, decoder=Continued(made.decoder, before))


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


def _complete_chat(found: ChatPrompt, request: GenerationRequest, begun: Delivered | None = None) -> Request:
    from llmsession.wire.rewriting import ThoughtsApart

    made = _complete(found.prompt, request, neutralized=found.neutralized)
    answers = begun is not None and bool(begun.text)
    thinks = not answers and (found.in_thought or (begun is not None and bool(begun.reasoning)))
    return replace(made, decoder=ThoughtsApart(made.decoder, begun=thinks, answers=answers, whole=found.think_token))


def _chat(
    server: Server | RemoteServer,
    features: Container[str],
    turns: Sequence[Message],
    request: GenerationRequest,
    *,
    begun: Delivered | None = None,
) -> Request:
    from llmsession.wire import openai_api

    if "generation_config" in features:
        return _chat_of_transformers(server, turns, request)
    body = openai_api.encode_request(turns, request, model=server.model.name, features=features, begun=begun)
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
    from llmsession.backends.safe_prompt import choose_space, map_strings, map_texts, strings_of, texts_of
    from llmsession.backends.vocabulary import look_special
    from llmsession.wire.rewriting import WithoutCharacter

    tools = request.extra.get("tools", [])
    texts = [*texts_of(turns), *strings_of(tools)]
    space = choose_space(texts)
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
