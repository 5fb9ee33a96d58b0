"""llama-server's own API: /completion and its siblings. Requests out, events in; no I/O.

https://github.com/ggml-org/llama.cpp/tree/master/tools/server#post-completion-given-a-prompt-it-returns-the-predicted-completion
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from llmsession.types.completion import StopReason, Timings, Token, TokenPerformance, Usage
from llmsession.types.errors import UndecodableError
from llmsession.types.events import Delta, Ended, TextDelta
from llmsession.wire.lenient import LenientReader
from llmsession.wire.request import LARGEST_COUNT, GenerationRequest, encode_json

PATH = "/completion"


class EngineTimings(msgspec.Struct, frozen=True):
    """The field `timings` of both APIs of llama-server. `predicted_ms` does not include the first token.

    Old servers have no `cache_n`, and null in place of a division by zero.
    """

    cache_n: int | None = None
    prompt_n: int | None = 0
    prompt_ms: float | None = 0.0
    predicted_n: int | None = 0
    predicted_ms: float | None = 0.0

    def count_cached(self, prompt_tokens: int) -> int:
        """Return how many of the prompt's tokens did not have to be evaluated."""
        if self.cache_n is not None:
            return self.cache_n
        return max(0, prompt_tokens - self.prompt_n) if self.prompt_n else 0

    def to_timings(self) -> Timings:
        """Convert to Timings, with seconds."""
        return Timings(
            prompt=TokenPerformance(count=self.prompt_n or 0, seconds=(self.prompt_ms or 0.0) / 1000),
            generated=TokenPerformance(
                count=max(0, (self.predicted_n or 0) - 1), seconds=(self.predicted_ms or 0.0) / 1000
            ),
        )


class _OldProbability(msgspec.Struct, frozen=True):
    tok_str: str
    prob: float

    def to_token(self) -> Token:
        return Token(id=-1, text=self.tok_str, logprob=math.log(self.prob) if self.prob > 0 else -math.inf)


class Probability(msgspec.Struct, frozen=True):
    """A token with its log-probability, as both APIs of llama-server report it. Other servers send no `id`.

    Old servers (LLAMA_SERVER §8) have `content` and `probs` instead: without ids, and with NaN as the token's own
    log-probability if the token is not among the likeliest ones.
    """

    token: str = ""
    logprob: float = 0.0
    id: int = -1
    top_logprobs: tuple[Probability, ...] = ()
    content: str = ""
    probs: tuple[_OldProbability, ...] | None = None

    def to_token(self, top: int) -> Token:
        """Convert to a Token, with at most `top` alternatives."""
        if self.probs is not None:
            others = tuple(other.to_token() for other in self.probs)
            own = next((other.logprob for other in others if other.text == self.content), math.nan)
            return Token(id=-1, text=self.content, logprob=own, top=others[:top])
        return Token(
            id=self.id,
            text=self.token,
            logprob=self.logprob,
            top=tuple(other.to_token(0) for other in self.top_logprobs[:top]),
        )


class _Frame(msgspec.Struct):
    """One event of the stream. Fields that are not used are not read."""

    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    tokens_predicted: int | None = None  # old servers count only in the last frame
    tokens_evaluated: int = 0
    completion_probabilities: list[Probability] = []
    prompt_progress: Any = None
    stop_type: str = ""
    stopped_word: bool = False  # these two instead of it until the end of 2024
    stopped_limit: bool = False
    stopping_word: str = ""
    truncated: bool = False
    timings: EngineTimings | None = None
    id_slot: int = -1
    error: Any = None

    @property
    def stop_reason(self) -> StopReason:
        if self.stop_type:
            return _STOP_REASONS.get(self.stop_type, StopReason.END)
        if self.stopped_word:
            return StopReason.STOP_PHRASE
        return StopReason.LENGTH if self.stopped_limit else StopReason.END


_FRAMES = LenientReader(_Frame, "a reply")

_STOP_REASONS = {
    "eos": StopReason.END,
    "limit": StopReason.LENGTH,
    "word": StopReason.STOP_PHRASE,
    "none": StopReason.END,
}


def encode_request(prompt: str | Sequence[int], request: GenerationRequest) -> bytes:
    """Return the body of a streamed request."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "stream": True,
        "cache_prompt": True,
        "seed": request.seed,
        **encode_sampling(request),
    }
    if request.max_tokens is not None:
        body["n_predict"] = min(request.max_tokens, LARGEST_COUNT)
    if request.stop:
        body["stop"] = request.stop
    if request.stop_ids:
        body["return_tokens"] = True
    if request.top_logprobs is not None:
        # 0 alternatives would mean no probabilities at all.
        body["n_probs"] = max(1, request.top_logprobs)
    if request.reports_slot:
        body["return_progress"] = True  # the first frame then comes when a slot was chosen, not with the first token
    return encode_json(body, request.extra)


def encode_sampling(request: GenerationRequest) -> dict[str, Any]:
    """Return the sampling settings that were given, by the engine's names, and the fields that both APIs share."""
    settings: dict[str, Any] = msgspec.to_builtins(request.sampling)
    if request.sampling.logit_bias is not None:
        settings["logit_bias"] = list(request.sampling.logit_bias.items())
    if request.lora_scales is not None:
        # All of them in every request: without it what another adapter has read would be reused (LLAMA_SERVER trap 12).
        settings["lora"] = [{"id": number, "scale": scale} for number, scale in enumerate(request.lora_scales)]
    return settings


class EventDecoder:
    """Decodes the events of one /completion stream. `usage` is what is known so far."""

    def __init__(self, request: GenerationRequest) -> None:
        self._top = request.top_logprobs
        self._stop_ids = request.stop_ids
        self.usage = Usage()
        self.error: bytes | None = None
        self.slot: int | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event of the stream. An error frame is stored in `error`. Raises UndecodableError."""
        try:
            frame: _Frame | None = _FRAMES.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            frame = _FRAMES.read_again(payload, error)
        if frame is None:  # a stray `data: null`
            return []
        if frame.error is not None:
            self.error = payload
            return []
        if frame.stop:
            return self._decode_end(frame)
        if frame.prompt_progress is not None:  # its tokens are made up
            return []
        count = frame.tokens_predicted if frame.tokens_predicted is not None else self.usage.completion_tokens + 1
        self.usage = Usage(
            prompt_tokens=frame.tokens_evaluated,
            completion_tokens=count,
            cached_tokens=self.usage.cached_tokens,
        )
        if self._stop_ids and self._stop_ids.intersection(frame.tokens):
            return [Ended(stop_reason=StopReason.STOP_PHRASE, usage=self.usage, timings=Timings())]
        tokens = (
            tuple(entry.to_token(self._top) for entry in frame.completion_probabilities)
            if self._top is not None
            else ()
        )
        return [TextDelta(text=frame.content, tokens=tokens, completion_tokens=count)]

    def end(self) -> Ended | None:
        """Return None: only the last frame ends a reply, and without it the reply was cut."""
        return None

    def _decode_end(self, frame: _Frame) -> list[Delta | Ended]:
        self.slot = frame.id_slot if frame.id_slot >= 0 else None
        timings = frame.timings or EngineTimings()
        self.usage = Usage(
            prompt_tokens=frame.tokens_evaluated,
            completion_tokens=frame.tokens_predicted or 0,
            cached_tokens=timings.count_cached(frame.tokens_evaluated),
        )
        reason = frame.stop_reason
        ended = Ended(
            stop_reason=reason,
            stop_phrase=frame.stopping_word if reason is StopReason.STOP_PHRASE else None,
            context_full=frame.truncated,
            usage=self.usage,
            timings=timings.to_timings(),
        )
        # The last frame has no text in a stream; it has all of it from a server that does not stream.
        text = [TextDelta(text=frame.content, completion_tokens=frame.tokens_predicted or 0)] if frame.content else []
        return [*text, ended]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Content(msgspec.Struct):
    content: str


def encode_tokenize(text: str, *, add_special: bool, parse_special: bool) -> bytes:
    """Return the body for /tokenize. `add_special`: add BOS and EOS if the model uses them."""
    return msgspec.json.encode({"content": text, "add_special": add_special, "parse_special": parse_special})


def decode_tokens(payload: bytes) -> list[int]:
    """Return the token ids in the response of /tokenize."""
    return _decode(payload, _Tokens).tokens


class _Piece(msgspec.Struct):
    id: int
    piece: str | list[int]


class _Pieces(msgspec.Struct):
    tokens: list[_Piece]


def encode_tokenize_pieces(prompt: str | Sequence[int]) -> bytes:
    """Return the body for /tokenize of a whole prompt, which also asks for the bytes of each token."""
    return msgspec.json.encode({"content": prompt, "add_special": True, "parse_special": True, "with_pieces": True})


def decode_pieces(payload: bytes) -> list[tuple[int, bytes]]:
    """Return the ids and bytes in that response. Bytes that are a part of a character come as numbers."""
    return [
        (token.id, token.piece.encode() if isinstance(token.piece, str) else bytes(token.piece))
        for token in _decode(payload, _Pieces).tokens
    ]


def decode_text(payload: bytes) -> str:
    """Return the text in the response of /detokenize."""
    return _decode(payload, _Content).content


_T = TypeVar("_T", bound=msgspec.Struct)


def _decode(payload: bytes, kind: type[_T]) -> _T:
    found: _T | None = _reader(kind).read(payload)
    if found is None:
        raise UndecodableError("the server's answer is null", payload=payload)
    return found


@functools.cache
def _reader(kind: type[_T]) -> LenientReader[_T]:
    return LenientReader(kind, "an answer to that request")
