"""The OpenAI API: /v1/chat/completions, giving the same events as the native one. No I/O.

https://platform.openai.com/docs/api-reference/chat; what llama-server adds to it is used where it is there.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.types.completion import StopReason, Timings, Token, Usage
from llmsession.types.errors import UndecodableError
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.types.messages import Message
from llmsession.wire.completion_api import EngineTimings, Probability, encode_sampling
from llmsession.wire.request import GenerationRequest, encode_json

if TYPE_CHECKING:
    from llmsession.wire.resume import Delivered

PATH = "/v1/chat/completions"
COUNT_PATH = f"{PATH}/input_tokens"
TEMPLATE_PATH = "/apply-template"

# Those of llama-server that this module makes use of.
ALL_FEATURES = frozenset({"sampling", "stop_phrase"})


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name of the same, in vLLM and Ollama
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Probability] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the phrase, in vLLM
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Verbose(msgspec.Struct):
    """The native final frame, which llama-server adds on request: only there is the stop phrase named."""

    stop_type: str = ""
    stopping_word: str = ""
    truncated: bool = False
    id_slot: int = -1


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: EngineTimings | None = None
    error: Any = None
    verbose: _Verbose | None = msgspec.field(name="__verbose", default=None)


class _Count(msgspec.Struct):
    input_tokens: int


_decode_frame = msgspec.json.Decoder(_Frame | None).decode

_STOP_REASONS = {
    "stop": StopReason.END,
    "length": StopReason.LENGTH,
    "tool_calls": StopReason.TOOL_CALLS,
}


# What OpenAI's API itself knows of Sampling.
_STANDARD = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias"}


def find_beyond_openai(request: GenerationRequest) -> str | None:
    """The first thing in it that only llama.cpp's servers understand."""
    for field in msgspec.structs.fields(request.sampling):
        if field.name not in _STANDARD and getattr(request.sampling, field.name) is not None:
            return f"sampling setting {field.name}"
    return "stop by a token's id" if request.stop_ids else None


def encode_request(
    messages: Sequence[Message],
    request: GenerationRequest,
    *,
    model: str,
    features: Container[str] = ALL_FEATURES,
    begun: Delivered | None = None,
) -> bytes:
    """The body of a streamed request. `features` are those of the server: "sampling" for llama.cpp's settings,
    "stop_phrase" where it can name the phrase that stopped a reply. `begun` is what the reply is to go on from, for
    llama-server.
    """
    body: dict[str, Any] = {
        "model": model,
        **_encode_messages(messages, begun),
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": request.seed,
    }
    if "sampling" in features:
        body |= {"cache_prompt": True, **encode_sampling(request)}
    else:
        body |= msgspec.to_builtins(request.sampling, str_keys=True)
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = request.stop
        if "stop_phrase" in features:
            body["verbose"] = True  # names the phrase in the last frame
    if request.top_logprobs is not None or request.stop_ids:
        body["logprobs"] = True
        # 0 alternatives would mean no probabilities at all.
        body["top_logprobs"] = max(1, request.top_logprobs or 0)
    if request.reports_slot:
        body |= {"return_progress": True, "verbose": True}  # the slot is named in the last frame as well
    return encode_json(body, request.extra)


class _Rendered(msgspec.Struct):
    prompt: str


def encode_template(
    messages: Sequence[Message],
    *,
    model: str,
    extra: Mapping[str, Any] | None = None,
    begun: Delivered | None = None,
) -> bytes:
    """The body for llama-server's /apply-template."""
    return msgspec.json.encode({"model": model, **_encode_messages(messages, begun), **(extra or {})})


def decode_template(payload: bytes) -> str:
    """Its answer: the prompt."""
    try:
        return msgspec.json.decode(payload, type=_Rendered).prompt
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the rendered prompt cannot be read: {error}", payload=payload[:1000]) from error


def encode_count(messages: Sequence[Message], *, model: str) -> bytes:
    """The body for llama-server's count of a chat's tokens."""
    return msgspec.json.encode({"model": model, "messages": [encode_message(message) for message in messages]})


def decode_count(payload: bytes) -> int:
    """Its answer."""
    try:
        return msgspec.json.decode(payload, type=_Count).input_tokens
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the count cannot be read: {error}", payload=payload[:1000]) from error


def _encode_messages(messages: Sequence[Message], begun: Delivered | None) -> dict[str, Any]:
    """With what the reply begins with, which llama-server repeats in the reply unless it is told both."""
    encoded = [encode_message(message) for message in messages]
    if begun is None:
        return {"messages": encoded}
    reply: dict[str, Any] = {"role": "assistant", "content": begun.text or None}
    if begun.reasoning:
        reply["reasoning_content"] = begun.reasoning
    return {"messages": [*encoded, reply], "continue_final_message": True, "add_generation_prompt": False}


def encode_message(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form. Its images are data URLs."""
    encoded: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.images:
        images = [{"type": "image_url", "image_url": {"url": image}} for image in message.images]
        text = [{"type": "text", "text": message.content}] if message.content else []
        encoded["content"] = [*images, *text]
    if message.tool_calls:
        encoded["content"] = message.content or None
        encoded["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": msgspec.json.encode(call.arguments).decode()},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        encoded["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        encoded["name"] = message.name
    return encoded


class EventDecoder:
    """The events of one chat stream. `usage` is what is known of it at any time.

    The end is announced in one frame and counted in a later one: `Ended` comes with `[DONE]`, when both are known.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._finish_reason: str | None = None
        self._stop_phrase: str | None = None
        self._verbose: _Verbose | None = None
        self._timings = EngineTimings()
        self.usage = Usage()
        self.error: bytes | None = None
        self.slot: int | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """What one event of the stream says. An error frame is put into `error`. Raises UndecodableError."""
        if payload == b"[DONE]":
            return [self._decode_end()] if self._finish_reason is not None else []
        try:
            frame = _decode_frame(payload)
        except msgspec.DecodeError as error:
            raise UndecodableError(
                f"the server sent something that is not a reply: {error}", payload=payload[:1000]
            ) from error
        if frame is None:
            return []
        if frame.error is not None:
            self.error = payload
            return []
        if frame.timings is not None:
            self._timings = frame.timings
        if frame.verbose is not None:
            self._verbose = frame.verbose
        if frame.usage is not None:
            self.usage = self._count(frame.usage)
        return self._decode_choice(frame.choices[0]) if frame.choices else []

    def end(self) -> Ended | None:
        """Some servers leave out the `[DONE]` and the counts: a reply that was finished is whole all the same."""
        return self._decode_end() if self._finish_reason is not None else None

    def _decode_choice(self, choice: _Choice) -> list[Delta | Ended]:
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
            self._stop_phrase = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        entries = (choice.logprobs.content or []) if choice.logprobs is not None else []
        if self._request.stop_ids and any(entry.id in self._request.stop_ids for entry in entries):
            return [Ended(stop_reason=StopReason.STOP_PHRASE, usage=self.usage, timings=Timings())]
        delta, events = choice.delta, list[Delta | Ended]()
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(text=thought))
        for call in delta.tool_calls or ():
            function = call.function
            events.append(
                ToolCallDelta(index=call.index, id=call.id, name=function.name, arguments=function.arguments or "")
            )
        if delta.content or entries:
            top = self._request.top_logprobs
            tokens: tuple[Token, ...] = ()
            if top is not None:
                tokens = tuple(entry.to_token(top) for entry in entries)
            events.append(
                TextDelta(
                    text=delta.content or "",
                    tokens=tokens,
                    completion_tokens=self.usage.completion_tokens + 1,
                )
            )
        if events:  # a frame is a token or more; the server's own count comes at the end
            self.usage = Usage(
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + 1,
                cached_tokens=self.usage.cached_tokens,
            )
        return events

    def _decode_end(self) -> Ended:
        reason = _STOP_REASONS.get(self._finish_reason or "", StopReason.END)
        phrase = self._stop_phrase
        context_full = False
        if phrase is not None:
            reason = StopReason.STOP_PHRASE
        if self._verbose is not None:
            self.slot = self._verbose.id_slot if self._verbose.id_slot >= 0 else None
            context_full = self._verbose.truncated
            if self._verbose.stop_type == "word":
                reason, phrase = StopReason.STOP_PHRASE, self._verbose.stopping_word
        if reason is StopReason.LENGTH and not context_full:
            limit = self._request.max_tokens
            context_full = limit is None or self.usage.completion_tokens < limit
        return Ended(
            stop_reason=reason,
            stop_phrase=phrase,
            context_full=context_full,
            usage=self.usage,
            timings=self._timings.to_timings(),
        )

    def _count(self, usage: _Usage) -> Usage:
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=cached if cached is not None else self._timings.count_cached(usage.prompt_tokens),
        )
