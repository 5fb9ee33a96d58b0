"""The chat endpoint of `transformers serve`, a variant of OpenAI's API, decoded to the same events. No I/O.

It rejects unknown fields and ignores most known ones, even the temperature if the model's own settings do not sample.
So everything is sent in its field `generation_config`, and the rest is rejected here.
https://huggingface.co/docs/transformers/main/en/serve-cli/serving, as of version 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from llmsession.types.completion import StopReason
from llmsession.types.events import Delta, Ended
from llmsession.types.messages import Message
from llmsession.wire import openai_api
from llmsession.wire.request import GenerationRequest, encode_json

PATH = openai_api.PATH

# Settings of ours that transformers has as well, by its names.
_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
}
_SETTINGS = {*_NAMES, "logit_bias", "ignore_eos"}
# Accepted by it, and not looked at; of frequency_penalty it makes something else.
_IGNORED = frozenset({
    "audio", "frequency_penalty", "function_call", "functions", "logprobs", "metadata", "modalities", "n",
    "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort", "response_format", "service_tier",
    "store", "tool_choice", "top_logprobs", "user", "web_search_options",
})  # fmt: skip

# The most that is asked for where nobody knows how long the context of a remote one is.
UNKNOWN_CONTEXT = 8192

_ERROR = b'{"error": "'
# What it says of a prompt that is longer than the context.
_TOO_LONG = re.compile(rb"Input length of input_ids is (\d+), but `max_length` is set to (\d+)")


def find_unsupported(request: GenerationRequest) -> str | None:
    """Return the first setting that the server would ignore; None if there is none."""
    for field in msgspec.structs.fields(request.sampling):
        if field.name not in _SETTINGS and getattr(request.sampling, field.name) is not None:
            return f"sampling setting {field.name}"
    if request.stop_ids:
        return "stop by a token's id"
    if request.top_logprobs is not None:
        return "log-probabilities"
    return next((f"request field {name}" for name in request.extra if name in _IGNORED), None)


def encode_request(
    messages: Sequence[Message], request: GenerationRequest, *, model: str | None = None, context_length: int | None
) -> bytes:
    """Return the body of a streamed request. `model` None: the model that the server was started with."""
    settings: dict[str, Any] = {
        theirs: value for ours, theirs in _NAMES.items() if (value := getattr(request.sampling, ours)) is not None
    }
    if settings.get("temperature") == 0:
        settings = {name: value for name, value in settings.items() if name == "repetition_penalty"}
        settings["do_sample"] = False
    elif settings.keys() - {"repetition_penalty"}:
        settings["do_sample"] = True  # else it would go on taking the likeliest token
    # Without a limit it stops after 20 tokens or 1024, and calls that the model's own end. Of two limits, that of new
    # tokens alone would count.
    if _ends_at_context(request, context_length):
        settings["max_length"] = context_length
    else:
        settings["max_new_tokens"] = request.max_tokens or UNKNOWN_CONTEXT
    if request.sampling.ignore_eos:
        settings["min_new_tokens"] = request.max_tokens or context_length or UNKNOWN_CONTEXT
    body: dict[str, Any] = {
        "messages": [openai_api.encode_message(message) for message in messages],
        "stream": True,
        "seed": request.seed,
        "generation_config": msgspec.json.encode(settings).decode(),
    }
    if model is not None:
        body["model"] = model
    if request.stop:
        body["stop"] = list(request.stop)
    if request.sampling.logit_bias is not None:
        body["logit_bias"] = {str(id_): float(bias) for id_, bias in request.sampling.logit_bias.items()}
    return encode_json(body, request.extra)


def _ends_at_context(request: GenerationRequest, context_length: int | None) -> bool:
    """Whether the context is the only limit that can be reached."""
    return context_length is not None and (request.max_tokens is None or request.max_tokens >= context_length)


class EventDecoder(openai_api.EventDecoder):
    """Decodes the events of one stream. There is no `[DONE]`: the frame with the end also has the counts.

    `context_length` None: unknown, so it is not reported whether the context was full.
    """

    def __init__(self, request: GenerationRequest, *, context_length: int | None) -> None:
        super().__init__(request)
        self._context_length = context_length

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event. An error is text between quotes, which may itself hold quotes and be cut."""
        if payload.startswith(_ERROR):
            self.error = _rewrite_error(payload)
            return []
        events = super().decode(payload)
        ended = self.end()
        if ended is None:
            return events
        prompt, limit = ended.usage.prompt_tokens, self._context_length
        if limit is not None and prompt >= limit:  # with max_tokens it does not look
            self.error = _overflow(prompt, limit)
            return []
        if limit is not None and _ends_at_context(self._request, limit) and ended.usage.total_tokens >= limit:
            ended = msgspec.structs.replace(ended, stop_reason=StopReason.LENGTH, context_full=True)
        return [*events, ended]


def _rewrite_error(payload: bytes) -> bytes:
    """Return the error in llama-server's form."""
    if (found := _TOO_LONG.search(payload)) is not None:
        return _overflow(int(found[1]), int(found[2]))
    message = payload.removeprefix(_ERROR).removesuffix(b"}").rstrip().removesuffix(b'"')
    return msgspec.json.encode({"error": {"message": message.decode(errors="replace")}})


def _overflow(prompt_tokens: int, context_length: int) -> bytes:
    details = {"code": 400, "n_prompt_tokens": prompt_tokens, "n_ctx": context_length}
    return msgspec.json.encode({"error": details})
