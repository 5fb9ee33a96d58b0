"""The OpenAI API, /v1/chat/completions, decoded to the same events as the native one. No I/O.

https://platform.openai.com/docs/api-reference/chat. llama-server's additions are used if the server has them.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.types.completion import StopReason, Timings, Token, Usage
from llmsession.types.errors import UndecodableError
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.types.messages import Message
from llmsession.wire.completion_api import EngineTimings, Probability, encode_sampling
from llmsession.wire.lenient import LenientReader, as_text
from llmsession.wire.request import LARGEST_COUNT, GenerationRequest, encode_json

if TYPE_CHECKING:
    from llmsession.wire.resume import Delivered

PATH = "/v1/chat/completions"
COUNT_PATH = f"{PATH}/input_tokens"
TEMPLATE_PATH = "/apply-template"

# Those of llama-server that this module makes use of.
ALL_FEATURES = frozenset({"sampling", "stop_phrase"})


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None  # JSON text in pieces, or from some servers an object


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: Any = None  # text, or from some servers a list of parts
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name of the same, in vLLM and Ollama
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Probability] | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None  # instead of it, in an answer that is not streamed
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the phrase, in vLLM
    logprobs: _Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Verbose(msgspec.Struct):
    """The native final frame, which llama-server adds on request. Only there is the stop phrase named."""

    stop_type: str = ""
    stopping_word: str = ""
    truncated: bool = False
    id_slot: int = -1


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: EngineTimings | None = None
    error: Any = None
    verbose: _Verbose | None = msgspec.field(name="__verbose", default=None)


class _Count(msgspec.Struct):
    input_tokens: int


_FRAMES = LenientReader(_Frame, "a reply")

# What servers of several makers call the ends of a reply, in lower case.
_STOP_REASONS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "complete", "completed", "done"),
                    StopReason.END),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_output_tokens", "model_length", "token_limit", "limit"),
                    StopReason.LENGTH),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), StopReason.TOOL_CALLS),
    **dict.fromkeys(("abort", "aborted", "cancel", "cancelled", "canceled", "interrupted"), StopReason.INTERRUPTED),
}  # fmt: skip
# What some send as long as a reply goes on.
_NOT_FINISHED = frozenset({"", "null", "none", "nil", "undefined", "in_progress", "incomplete_stream"})


# What OpenAI's API itself knows of Sampling.
_STANDARD = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias"}


def find_beyond_openai(request: GenerationRequest) -> str | None:
    """Return the first setting that only llama.cpp's servers support; None if there is none."""
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
    """Return the body of a streamed request. `begun`: the start of the reply, which llama-server continues.

    `features` are those of the server: "sampling" if it takes llama.cpp's settings, "stop_phrase" if it can name the
    phrase that stopped a reply.
    """
    body: dict[str, Any] = {
        "model": model,
        **_encode_messages(messages, begun),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if "sampling" in features or request.has_own_seed:  # some refuse it, and one that was drawn is of no use there
        body["seed"] = request.seed
    if "sampling" in features:
        body |= {"cache_prompt": True, **encode_sampling(request)}
    else:
        body |= msgspec.to_builtins(request.sampling, str_keys=True)
    if request.max_tokens is not None:
        body["max_tokens"] = min(request.max_tokens, LARGEST_COUNT)
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


# Fields that a server may refuse: the reply is the same without them.
OPTIONAL = frozenset({"stream_options"})


def omit_fields(body: bytes, names: Collection[str]) -> bytes:
    """Return the body of a request without these fields."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({name: value for name, value in fields.items() if name not in names})


class _Rendered(msgspec.Struct):
    prompt: str


def encode_template(
    messages: Sequence[Message],
    *,
    model: str,
    extra: Mapping[str, Any] | None = None,
    begun: Delivered | None = None,
) -> bytes:
    """Return the body for llama-server's /apply-template."""
    return msgspec.json.encode({"model": model, **_encode_messages(messages, begun), **(extra or {})})


def decode_template(payload: bytes) -> str:
    """Return the prompt in that response."""
    try:
        return msgspec.json.decode(payload, type=_Rendered).prompt
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the rendered prompt cannot be read: {error}", payload=payload[:1000]) from error


def encode_count(messages: Sequence[Message], *, model: str) -> bytes:
    """Return the body for llama-server's count of the tokens of a chat."""
    return msgspec.json.encode({"model": model, "messages": [encode_message(message) for message in messages]})


def decode_count(payload: bytes) -> int:
    """Return the number of tokens in that response."""
    try:
        return msgspec.json.decode(payload, type=_Count).input_tokens
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the count cannot be read: {error}", payload=payload[:1000]) from error


def _encode_messages(messages: Sequence[Message], begun: Delivered | None) -> dict[str, Any]:
    """Return the fields for the messages and the start of the reply.

    llama-server repeats that start in its reply unless both flags are set.
    """
    encoded = [encode_message(message) for message in messages]
    if begun is None:
        return {"messages": encoded}
    reply: dict[str, Any] = {"role": "assistant", "content": begun.text or None}
    if begun.reasoning:
        reply["reasoning_content"] = begun.reasoning
    return {"messages": [*encoded, reply], "continue_final_message": True, "add_generation_prompt": False}


def encode_message(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's form. Its images are data URLs."""
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
    """Decodes the events of one chat stream. `usage` is what is known so far.

    The end is announced in one frame and counted in a later one, so `Ended` comes with `[DONE]`, when both are known.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._finish_reason: StopReason | None = None
        self._stop_phrase: str | None = None
        self._verbose: _Verbose | None = None
        self._timings: EngineTimings | None = None
        self._calls = _CallNumbers()
        self._choice: int | None = None
        self._is_counted = False  # whether the server has said how many tokens it generated
        self.usage = Usage()
        self.error: bytes | None = None
        self.slot: int | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event of the stream. An error frame is stored in `error`. Raises UndecodableError."""
        if payload.startswith(b"[DONE]"):
            return [self._decode_end()] if self._finish_reason is not None else []
        try:
            frame: _Frame | None = _FRAMES.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            frame = _FRAMES.read_again(payload, error)
        if frame is None:  # a stray `data: null`
            return []
        if frame.error is not None:
            self.error = payload
            return []
        if frame.timings is not None:
            self._timings = frame.timings
        if frame.verbose is not None:
            self._verbose = frame.verbose
        if frame.usage is not None:
            self._count(frame.usage)
        choice = self._choose(frame.choices) if frame.choices else None
        return self._decode_choice(choice) if choice is not None else []

    def end(self) -> Ended | None:
        """Return the end of a reply that was finished: some servers send neither `[DONE]` nor the counts."""
        return self._decode_end() if self._finish_reason is not None else None

    def _choose(self, choices: list[_Choice]) -> _Choice | None:
        """Return the choice whose index came first. A server may send others that nobody asked for."""
        if self._choice is None:
            self._choice = choices[0].index or 0
        return next((choice for choice in choices if (choice.index or 0) == self._choice), None)

    def _decode_choice(self, choice: _Choice) -> list[Delta | Ended]:
        if choice.finish_reason is not None:
            self._note_finish(choice.finish_reason)
            self._stop_phrase = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        entries = (choice.logprobs.content or []) if choice.logprobs is not None else []
        if self._request.stop_ids and any(entry.id in self._request.stop_ids for entry in entries):
            return [Ended(stop_reason=StopReason.STOP_PHRASE, usage=self.usage, timings=Timings())]
        if (delta := choice.delta or choice.message) is None:
            return []
        events = list[Delta | Ended]()
        if thought := delta.reasoning_content or delta.reasoning:
            events.append(ReasoningDelta(text=thought))
        for call in delta.tool_calls or ():
            function = call.function
            arguments = _as_json_text(function.arguments)
            index = self._calls.number(call.index, call.id, function.name, arguments)
            events.append(ToolCallDelta(index=index, id=call.id, name=function.name, arguments=arguments))
        text = delta.content if type(delta.content) is str else as_text(delta.content)
        if text or entries:
            top = self._request.top_logprobs
            tokens: tuple[Token, ...] = ()
            if top is not None:
                tokens = tuple(entry.to_token(top) for entry in entries)
            events.append(TextDelta(text=text, tokens=tokens, completion_tokens=self.usage.completion_tokens + 1))
        if events and not self._is_counted:  # a frame is a token or more; the server's own count comes at the end
            self.usage = Usage(
                prompt_tokens=self.usage.prompt_tokens,
                completion_tokens=self.usage.completion_tokens + 1,
                cached_tokens=self.usage.cached_tokens,
            )
        return events

    def _note_finish(self, word: str) -> None:
        """Note a finish_reason. An empty one is no end; one that means failure, or is unknown, is an error."""
        known = word.strip().lower()
        if known in _NOT_FINISHED:
            return
        self._finish_reason = _STOP_REASONS.get(known)
        if self._finish_reason is None:
            message = f"it ended the reply with finish_reason {word[:80]!r}"
            self.error = msgspec.json.encode({"error": {"message": message, "type": word[:80], "code": 500}})

    def _decode_end(self) -> Ended:
        reason, phrase = self._finish_reason or StopReason.END, self._stop_phrase
        context_full = False
        if phrase is not None:
            reason = StopReason.STOP_PHRASE
        if self._verbose is not None:
            self.slot = self._verbose.id_slot if self._verbose.id_slot >= 0 else None
            context_full = self._verbose.truncated
            if self._verbose.stop_type == "word":
                reason, phrase = StopReason.STOP_PHRASE, self._verbose.stopping_word
        if reason is StopReason.LENGTH and not context_full:
            # Without a limit of ours, llama.cpp's servers end at the context; of others one cannot know.
            limit = self._request.max_tokens
            if limit is None:
                context_full = self._timings is not None
            else:
                context_full = self._is_counted and self.usage.completion_tokens < limit
        return Ended(
            stop_reason=reason,
            stop_phrase=phrase,
            context_full=context_full,
            usage=self.usage,
            timings=(self._timings or EngineTimings()).to_timings(),
        )

    def _count(self, usage: _Usage) -> None:
        """Take the server's counts. Some servers send zeros in every frame, perhaps even in the last one."""
        prompt, generated = usage.prompt_tokens or 0, usage.completion_tokens or 0
        self._is_counted = self._is_counted or generated > 0
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        if cached is None:
            cached = self._timings.count_cached(prompt) if self._timings is not None else 0
        self.usage = Usage(
            prompt_tokens=prompt or self.usage.prompt_tokens,
            completion_tokens=generated or self.usage.completion_tokens,
            cached_tokens=cached or self.usage.cached_tokens,
        )


class _CallNumbers:
    """Tells tool calls apart: some servers number all of them 0, or none, and some send no ids."""

    def __init__(self) -> None:
        self._current: dict[int | None, int] = {}  # our number of the last call under each of the server's
        self._ids: list[str | None] = []
        self._arguments: list[str] = []

    def number(self, index: int | None, id_: str | None, name: str | None, arguments: str) -> int:
        """Return our number of the call that this piece belongs to."""
        number = self._current.get(index)
        if number is None and index is None and id_ is None and name is None and self._ids:
            number = len(self._ids) - 1  # the rest of whichever came last
        if number is None or self._is_another(number, id_, name):
            number = len(self._ids)
            self._ids.append(id_)
            self._arguments.append("")
        self._ids[number] = self._ids[number] or id_
        self._arguments[number] += arguments
        self._current[index] = number
        return number

    def _is_another(self, number: int, id_: str | None, name: str | None) -> bool:
        if id_ and self._ids[number]:
            return id_ != self._ids[number]
        # Without ids: a name after arguments that are whole.
        return bool(name) and not id_ and bool(self._arguments[number]) and _is_whole(self._arguments[number])


def _as_json_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _is_whole(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
