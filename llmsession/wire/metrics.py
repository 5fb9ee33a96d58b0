"""Parses a server's counts, from Prometheus text and /slots, into Metrics. No I/O.

Names change between builds (LLAMA_SERVER F10), so unknown ones are ignored and missing ones are 0.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import TypeAlias

import msgspec

from llmsession.types.completion import TokenPerformance
from llmsession.types.errors import UndecodableError
from llmsession.wire.lenient import LenientReader, parse_json


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the server started; None if the server does not report them.

    `kv_cache_usage`: 0.0 to 1.0 over all slots.
    """

    prompt: TokenPerformance = TokenPerformance()
    generated: TokenPerformance = TokenPerformance()
    cached_prompt_tokens: int | None = None
    kv_cache_usage: float | None = None
    kv_cache_tokens: int | None = None
    requests_processing: int = 0
    requests_pending: int = 0


# How far a slot is: its task, the tokens of the prompt that were evaluated, and those that were generated.
Place: TypeAlias = tuple[int, int, int]


class Slot(msgspec.Struct, frozen=True):
    """One slot of the server.

    `n_prompt_tokens`: the tokens in its KV cache now; None if the server does not report them.

    `place`: its task, how many tokens of the prompt it has evaluated, and how many it has generated.
    """

    id: int
    n_ctx: int = 0
    is_processing: bool = False
    n_prompt_tokens: int | None = 0
    place: Place = (-1, 0, 0)


class _NextToken(msgspec.Struct):
    n_decoded: int = 0


class _Slot(msgspec.Struct):
    """A slot as servers report it: with `state` before October 2024, and in every version of llamafile."""

    id: int
    n_ctx: int = 0
    is_processing: bool = False
    state: int = 0
    n_prompt_tokens: int | None = None
    id_task: int = -1
    n_prompt_tokens_processed: int = 0
    next_token: list[_NextToken] | _NextToken | None = None

    def to_slot(self) -> Slot:
        tokens, token = self.n_prompt_tokens, self.next_token
        if tokens is None and token is None:  # it was never used
            tokens = 0
        if isinstance(token, list):
            token = token[0] if token else None
        return Slot(
            id=self.id,
            n_ctx=self.n_ctx,
            is_processing=self.is_processing or self.state != 0,
            n_prompt_tokens=tokens,
            place=(self.id_task, self.n_prompt_tokens_processed, token.n_decoded if token is not None else 0),
        )


class _Slots(msgspec.Struct):
    slots: list[_Slot] | None = None


_SLOTS = LenientReader(_Slots, "a list of slots")
# Name, perhaps labels, and the value, perhaps with its time.
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)")


def parse_samples(text: str) -> dict[str, float]:
    """Return the values by name, summed over labels. Lines that cannot be parsed are skipped.

    Raises UndecodableError if there is text, but no line of it can be parsed.
    """
    if text.lstrip().startswith('"'):  # some servers send it as a string of JSON
        with contextlib.suppress(ValueError):
            text = str(parse_json(text.encode()))
    samples: dict[str, float] = {}
    for line in text.splitlines():
        if (found := _SAMPLE.match(line.strip())) is None:
            continue
        with contextlib.suppress(ValueError):  # -nan(ind), as Windows writes it
            value = float(found[2])
            samples[found[1]] = samples.get(found[1], 0.0) + value if math.isfinite(value) else 0.0
    if not samples and text.strip():
        raise UndecodableError(f"no line of the metrics can be read: {text[:80]!r}", payload=text.encode()[:1000])
    return samples


def parse_slots(payload: bytes) -> list[Slot]:
    """Parse the response of /slots."""
    slots = _SLOTS.read(b'{"slots":' + payload + b"}")
    if slots is None or slots.slots is None:
        raise UndecodableError("the slots cannot be read", payload=payload[:1000])
    return [slot.to_slot() for slot in slots.slots]


def tells_cache(text: str) -> bool:
    """Whether the text of /metrics reports the use of the KV cache: builds before May 2025 and llamafile do."""
    return "llamacpp:kv_cache_usage_ratio" in parse_samples(text)


def parse_metrics(text: str, slots: list[Slot] | None = None) -> Metrics:
    """Parse the text of /metrics. The use of the KV cache is taken from the slots if the text does not have it.

    llamafile reports rates since the last request instead of sums of seconds: then the performance is computed from
    those.
    """
    samples = parse_samples(text)

    def number(name: str) -> float:
        value = samples.get(f"llamacpp:{name}", 0.0)
        return value if math.isfinite(value) else 0.0

    def performance(total: str, seconds: str, rate: str) -> TokenPerformance:
        count, per_second = int(number(total)), number(rate)
        if f"llamacpp:{seconds}" not in samples and per_second > 0:
            return TokenPerformance(count=count, seconds=count / per_second)
        return TokenPerformance(count=count, seconds=number(seconds))

    if "llamacpp:kv_cache_usage_ratio" in samples:
        usage: float | None = number("kv_cache_usage_ratio")
        tokens: int | None = int(number("kv_cache_tokens"))
    else:
        usage, tokens = _fill(slots or [])
    return Metrics(
        prompt=performance("prompt_tokens_total", "prompt_seconds_total", "prompt_tokens_seconds"),
        generated=performance("tokens_predicted_total", "tokens_predicted_seconds_total", "predicted_tokens_seconds"),
        cached_prompt_tokens=int(number("prompt_tokens_cached_total"))
        if "llamacpp:prompt_tokens_cached_total" in samples
        else None,
        kv_cache_usage=usage,
        kv_cache_tokens=tokens,
        requests_processing=int(number("requests_processing")),
        requests_pending=int(number("requests_deferred")),
    )


def _fill(slots: list[Slot]) -> tuple[float | None, int | None]:
    """Return how full all slots are together, and with how many tokens; None if one of them does not report it."""
    held = [slot.n_prompt_tokens for slot in slots if slot.n_prompt_tokens is not None]
    room = sum(slot.n_ctx for slot in slots)
    if len(held) < len(slots) or not room:
        return None, None
    return sum(held) / room, sum(held)
