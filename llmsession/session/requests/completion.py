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
    from llmsession.prompts.writer import Prompt, PromptWriter
    from llmsession.session.server.server import Server
    from llmsession.types.completion import Usage
    from llmsession.wire.decoder import EventDecoder
    from llmsession.wire.request import GenerationRequest
    from llmsession.wire.resume import Delivered

# Fields that only the chat endpoint supports: to constrain and parse tool calls, and to give the reply a format.
ONLY_CHAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})
# These constrain a reply from its first character on: a continued reply would start that format over.
_SHAPING = ONLY_CHAT | {"grammar", "json_schema"}


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """An HTTP request, and the decoder that reads its answer. `neutralized`: see Completion.

    `optional`: the fields of its body that are left out if the server refuses them.
    """

    path: str
    body: bytes
    decoder: EventDecoder
    neutralized: int = 0
    optional: frozenset[str] = frozenset()


class Request(Protocol):
    """One call. Its settings are checked when it is made."""

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """Return the request to send to a server that is ready. Its form depends on the server's tokenizer."""
        ...

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """Return a request whose reply begins where the delivered part ends; None if there is no such request.

        Raises TokenLimitReachedError if `max_tokens` tokens have been delivered already.
        """
        ...


class RawRequest:
    """Continues raw text or token ids. Spellings of special tokens in the text mean those tokens."""

    def __init__(self, server: Server, prompt: str | list[int], request: GenerationRequest) -> None:
        self._server = server
        self._prompt = prompt
        self._request = request
        check_body(request)

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """Return the request for this prompt, with `reply_start` appended as text."""
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
        """Return the request that continues the reply, or None.

        Always None after token ids: token ids would have to follow them, and only the reply's text is known. Raises
        TokenLimitReachedError.
        """
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
    """A prompt written by one of the library's own encodings, sent to /completion."""

    def __init__(self, server: Server, pieces: Sequence[Control | Text], request: GenerationRequest) -> None:
        self._server = server
        self._pieces = pieces
        self._request = request
        check_body(request)

    async def build(self, endpoint: Endpoint) -> WireRequest:
        """Return the request for this prompt, with `reply_start` appended as text."""
        start = self._request.reply_start
        pieces = [*self._pieces, *([Text(start)] if start else [])]
        writer = await self._server.prompt_writer(endpoint)
        made = _complete_written(await writer.write(pieces), bound(self._request, endpoint))
        return await self._without_thought(made, writer, begun=not start and self._ends_in_thought, answers=bool(start))

    async def resume(self, endpoint: Endpoint, delivered: Delivered) -> WireRequest | None:
        """Return the request that continues the reply, or None. Raises TokenLimitReachedError."""
        if not may_go_on(self._request):
            return None
        writer = await self._server.prompt_writer(endpoint)
        begun = await self._begun(writer, delivered)
        if begun is None:
            return None
        written = await writer.write([*self._pieces, *begun])
        if written.space is not None:
            return None
        made = complete(written.prompt, shorten(self._request, delivered.usage))
        answers = bool(self._request.reply_start or delivered.text)
        made = await self._without_thought(made, writer, begun=not answers, answers=answers)
        return count_on(made, delivered.usage)

    @property
    def _ends_in_thought(self) -> bool:
        """Whether the prompt itself begins the thought."""
        last = self._pieces[-1] if self._pieces else None
        return isinstance(last, Control) and last.text.rstrip().endswith("<think>")

    async def _begun(self, writer: PromptWriter, delivered: Delivered) -> list[Control | Text] | None:
        """Return the pieces of what was delivered; None if the model might have said a token that cannot be told."""
        from llmsession.prompts.writer import says_token, write_begun

        if not delivered.reasoning:
            return await writer.tokenize_prefix(delivered.text, self._request.reply_start)
        if not (self._ends_in_thought or await writer.thinks_by_token()):
            return None
        vocabulary = await writer.learn([delivered.text, delivered.reasoning])
        if says_token(delivered.text, vocabulary) or says_token(delivered.reasoning, vocabulary):
            return None
        pieces = write_begun(delivered, in_thought=self._ends_in_thought)
        return [piece for piece in pieces if piece.text]

    async def _without_thought(
        self, made: WireRequest, writer: PromptWriter, *, begun: bool, answers: bool
    ) -> WireRequest:
        """Return the request with a decoder that gives a thought apart from the answer."""
        from llmsession.wire.stream_filters import SplitReasoning

        whole = await writer.thinks_by_token()
        return replace(made, decoder=SplitReasoning(made.decoder, begun=begun, answers=answers, whole=whole))


def may_go_on(request: GenerationRequest) -> bool:
    """Whether the rest of the reply depends on nothing but the text so far.

    It does not with log-probabilities: the text of the last tokens that arrived may have been held back.
    """
    binding = request.has_own_seed and request.sampling.temperature != 0
    return _SHAPING.isdisjoint(request.extra) and not binding and request.top_logprobs is None


def shorten(request: GenerationRequest, before: Usage) -> GenerationRequest:
    """Return the request with what is left of `max_tokens`. Raises TokenLimitReachedError if nothing is left."""
    if request.max_tokens is None:
        return request
    left = request.max_tokens - before.completion_tokens
    if left < 1:
        from llmsession.wire.resume import TokenLimitReachedError

        raise TokenLimitReachedError
    return msgspec.structs.replace(request, max_tokens=left)


def count_on(made: WireRequest, before: Usage) -> WireRequest:
    """Return the request with a decoder that adds the tokens of the earlier part to its counts."""
    from llmsession.wire.resume import ContinuedDecoder

    return replace(made, decoder=ContinuedDecoder(made.decoder, before))


def bound(request: GenerationRequest, endpoint: Endpoint) -> GenerationRequest:
    """Set `max_tokens` to the context length if nothing else ends the reply.

    Old servers do not stop at the end of the context, and generate forever (LLAMA_SERVER §8).
    """
    length, features = endpoint.facts.context_length, endpoint.features
    if request.max_tokens is not None or length is None or "context_end" in features or "completion" not in features:
        return request
    return msgspec.structs.replace(request, max_tokens=length)


def check_body(request: GenerationRequest) -> None:
    """Raise UsageError if the request cannot be written as JSON, whatever its prompt is."""
    from llmsession.wire import completion_api

    completion_api.encode_request("", request)


def complete(prompt: str | list[int], request: GenerationRequest, *, neutralized: int = 0) -> WireRequest:
    """Return a request to /completion."""
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
