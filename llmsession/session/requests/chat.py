"""Requests whose prompt is written by the model's own template: through the chat endpoint, or as token ids."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from llmsession.session.requests.completion import ONLY_CHAT, WireRequest, bound, complete, count_on, may_go_on, shorten
from llmsession.types.completion import Usage
from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.prompts.template_writer import ChatPrompt, TemplateWriter
    from llmsession.session.server.server import Server
    from llmsession.wire.decoder import EventDecoder
    from llmsession.wire.request import GenerationRequest
    from llmsession.wire.resume import Delivered

# The features that the server needs for a chat to be sent as token ids.
_AS_TOKENS = frozenset({"tokens", "pieces", "template", "completion"})


class ChatRequest:
    """A chat whose prompt is written by the server's template.

    It goes through the chat endpoint; but if a text spells a special token, or with `reply_start`, the rendered prompt
    is sent as text or token ids to /completion, if the server can do that.
    """

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
        """Return the request for this chat. Raises UnsupportedFeatureError if it cannot be given its `reply_start`."""
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
        """Continue through the chat endpoint if its template allows that, else with the rendered prompt.

        None if neither is possible. Raises TokenLimitReachedError.
        """
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
        """Raise UnsupportedFeatureError if the server's template cannot continue a reply that has started.

        With tools or images, the chat endpoint is the only way to give the model a `reply_start`.
        """
        from llmsession.wire.resume import Delivered

        begun = Delivered(text=self._request.reply_start)
        if not await (await self._writer(endpoint)).can_continue(self._turns, begun, may_close=True):
            raise no_start(endpoint, "the model's template writes a begun reply as no model was trained on")

    async def _count(self, endpoint: Endpoint, delivered: Delivered) -> Usage:
        """Return the usage of the delivered part, counted by the server if the reply has not reported its prompt yet.

        The chat endpoint reports the prompt's tokens only at the end, and one frame may hold several tokens.
        """
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
        """Whether the chat can be sent as token ids: not with images, nor with fields for the chat endpoint alone."""
        if any(turn.images for turn in self._turns):
            return False
        return endpoint.features >= _AS_TOKENS and ONLY_CHAT.isdisjoint(self._request.extra)


class PrefixRequest:
    """A request that only evaluates what the next prompt will begin with."""

    def __init__(self, server: Server, turns: Sequence[Message], request: GenerationRequest, *, typing: bool) -> None:
        self._server = server
        self._turns = turns
        self._request = request
        self._typing = typing

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """Return the request that evaluates this prefix."""
        from llmsession.prompts.template_writer import TemplateWriter

        writer = await self._server.prompt_writer(endpoint)
        chat = TemplateWriter(writer, endpoint.client, model=self._server.model.name, extra=self._request.extra)
        written = await chat.write_next(self._turns, typing=self._typing)
        return complete(written.prompt, self._request, neutralized=written.neutralized)

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """Return None: the whole request is sent again."""
        del endpoint, delivered
        return None


def check_start(request: GenerationRequest, endpoint: Endpoint) -> None:
    """Raise UnsupportedFeatureError if the reply to a chat cannot be given a `reply_start`."""
    if not endpoint.features >= _AS_TOKENS:
        raise no_start(endpoint, "it has no way to go on from a begun reply")
    if "response_format" in request.extra:
        raise no_start(endpoint, "a form of the whole reply (response_format) starts over behind it")


def no_start(endpoint: Endpoint, why: str) -> UnsupportedFeatureError:
    """Return the error for a server that cannot be given a `reply_start`."""
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
    decoder: EventDecoder = openai_api.EventDecoder(request)
    if "sampling" in features:
        return WireRequest(path=openai_api.PATH, body=body, decoder=decoder)
    from llmsession.wire.stream_filters import SplitReasoning

    # Servers that are not llama.cpp's may leave a thought in the text.
    decoder = SplitReasoning(decoder, begun=False, whole=False)
    return WireRequest(path=openai_api.PATH, body=body, decoder=decoder, optional=openai_api.OPTIONAL)


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


def _with_spaces(turn: Message, part: Callable[[str], str]) -> Message:
    """Return the message with each of its texts changed, but for the tags of the thought that a reply began with."""
    from llmsession.prompts.message_texts import map_texts
    from llmsession.wire.stream_filters import THINK, THINK_END

    if turn.role is not Role.ASSISTANT or not turn.content.lstrip().startswith(THINK):
        return map_texts(turn, part)
    before, mark, rest = turn.content.partition(THINK)
    thought, end, answer = rest.partition(THINK_END)
    changed = map_texts(msgspec.structs.replace(turn, content=""), part)
    return msgspec.structs.replace(changed, content=f"{before}{mark}{part(thought)}{end}{part(answer)}")


async def _chat_with_spaces(
    server: Server, endpoint: Endpoint, turns: Sequence[Message], request: GenerationRequest
) -> WireRequest:
    """Build a chat request for when token ids cannot be sent.

    A zero-width space is put inside each spelling of a special token, so that it stays text. The reply's decoder
    removes that character again.
    """
    from llmsession.prompts.message_texts import choose_space, map_strings, strings_of, texts_of
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
    turns = [_with_spaces(turn, part) for turn in turns] if count else turns
    begun = Delivered(text=part(start)) if start else None
    made = _chat(server, endpoint.features, turns, request, begun=begun)
    return replace(made, decoder=StripCharacter(made.decoder, space), neutralized=count) if count else made
