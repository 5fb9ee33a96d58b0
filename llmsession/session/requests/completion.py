"""Requests to /completion, for each kind of call. User text is never parsed as special tokens.

A request can be resumed after its server died in the middle of the reply: it continues after the delivered text if that
alone decides how the reply goes on; otherwise the caller sends the whole request again and skips what was delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import msgspec

from llmsession.types.messages import Control, Text

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.prompts.writer import Prompt
    from llmsession.session.server.server import Server
    from llmsession.types.completion import Usage
    from llmsession.wire.decoder import EventDecoder
    from llmsession.wire.request import GenerationRequest
    from llmsession.wire.resume import Delivered

# What only the chat endpoint can do: constrain and parse calls, and a form of the reply.
ONLY_CHAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})
# With these a reply has a form from its first letter on: what goes on in the middle would begin the form again.
_SHAPING = ONLY_CHAT | {"grammar", "json_schema"}


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """What is sent, and what reads the answer. `neutralized`: see Completion."""

    path: str
    body: bytes
    decoder: EventDecoder
    neutralized: int = 0


class Request(Protocol):
    """One call, checked when it was made."""

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """The request for a server that is ready: what it looks like depends on the server's tokenizer."""
        ...

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """One whose reply begins where the delivered part ends; None if that cannot be asked for.

        Raises TokenLimitReachedError if as many tokens were delivered as were asked for.
        """
        ...


class RawRequest:
    """As it is: here the spellings of special tokens mean those."""

    def __init__(self, server: Server, prompt: str | list[int], request: GenerationRequest) -> None:
        self._server = server
        self._prompt = prompt
        self._request = request
        check_body(request)

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """See Request."""
        request, start = bound(self._request, endpoint), self._request.reply_start
        if not start:
            return complete(self._prompt, request)
        writer = await self._server.prompt_writer(endpoint)
        if isinstance(self._prompt, list):
            return _complete_written(await writer.go_on(self._prompt, start), request)
        written = await writer.write([Control(self._prompt), Text(start)])
        if isinstance(written.prompt, str) and written.space is None:
            return complete(self._prompt + start, request)
        return _complete_written(written, request)

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """Not after token ids: what follows them has to be ids as well, and text has none of its own."""
        if isinstance(self._prompt, list) or not may_go_on(self._request):
            return None
        writer, start = await self._server.prompt_writer(endpoint), self._request.reply_start
        if (begun := await writer.tokenize_prefix(delivered.text, start)) is None:
            return None
        written = await writer.write([Control(self._prompt), *begun])
        if written.space is not None:
            return None
        prompt = self._prompt + start + delivered.text if isinstance(written.prompt, str) else written.prompt
        return count_on(complete(prompt, shorten(self._request, delivered.usage)), delivered.usage)


class EncodedRequest:
    """By an encoding of ours, through /completion."""

    def __init__(self, server: Server, pieces: Sequence[Control | Text], request: GenerationRequest) -> None:
        self._server = server
        self._pieces = pieces
        self._request = request
        check_body(request)

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """See Request."""
        start = self._request.reply_start
        pieces = [*self._pieces, *([Text(start)] if start else [])]
        written = await (await self._server.prompt_writer(endpoint)).write(pieces)
        return _complete_written(written, bound(self._request, endpoint))

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """See Request."""
        if not may_go_on(self._request):
            return None
        writer = await self._server.prompt_writer(endpoint)
        if (begun := await writer.tokenize_prefix(delivered.text, self._request.reply_start)) is None:
            return None
        written = await writer.write([*self._pieces, *begun])
        if written.space is not None:
            return None
        return count_on(complete(written.prompt, shorten(self._request, delivered.usage)), delivered.usage)


def may_go_on(request: GenerationRequest) -> bool:
    """Whether the text so far is all that the rest depends on.

    With log-probabilities it is not: of the tokens that came, the text of the last ones may have been held back.
    """
    binding = request.has_own_seed and request.sampling.temperature != 0
    return _SHAPING.isdisjoint(request.extra) and not binding and request.top_logprobs is None


def shorten(request: GenerationRequest, before: Usage) -> GenerationRequest:
    """With what is left of `max_tokens`. Raises TokenLimitReachedError."""
    if request.max_tokens is None:
        return request
    left = request.max_tokens - before.completion_tokens
    if left < 1:
        from llmsession.wire.resume import TokenLimitReachedError

        raise TokenLimitReachedError
    return msgspec.structs.replace(request, max_tokens=left)


def count_on(made: WireRequest, before: Usage) -> WireRequest:
    """What came before counted as well."""
    from llmsession.wire.resume import ContinuedDecoder

    return replace(made, decoder=ContinuedDecoder(made.decoder, before))


def bound(request: GenerationRequest, endpoint: Endpoint) -> GenerationRequest:
    """With an end, where the server has none of its own: old ones go on for ever (LLAMA_SERVER §8)."""
    length, features = endpoint.facts.context_length, endpoint.features
    if request.max_tokens is not None or length is None or "context_end" in features or "completion" not in features:
        return request
    return msgspec.structs.replace(request, max_tokens=length)


def check_body(request: GenerationRequest) -> None:
    """Raise UsageError if the request cannot be written as JSON, whatever its prompt is."""
    from llmsession.wire import completion_api

    completion_api.encode_request("", request)


def complete(prompt: str | list[int], request: GenerationRequest, *, neutralized: int = 0) -> WireRequest:
    """To /completion."""
    from llmsession.wire import completion_api

    return WireRequest(
        path=completion_api.PATH,
        body=completion_api.encode_request(prompt, request),
        decoder=completion_api.EventDecoder(request),
        neutralized=neutralized,
    )


def _complete_written(written: Prompt, request: GenerationRequest) -> WireRequest:
    made = complete(written.prompt, request, neutralized=written.neutralized)
    if written.space is None:
        return made
    from llmsession.wire.stream_filters import StripCharacter

    return replace(made, decoder=StripCharacter(made.decoder, written.space))
