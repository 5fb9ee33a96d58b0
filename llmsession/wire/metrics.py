"""What a server counts: Prometheus text and /slots as Metrics. No I/O.

Names come and go between builds (LLAMA_SERVER F10), so unknown ones and labels are passed over and missing ones are 0.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math

import msgspec

from llmsession.completion import TokenPerformance
from llmsession.errors import UndecodableError


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the server started. `kv_cache_usage` is 0.0 to 1.0 over all slots; None where it is not known."""

    prompt: TokenPerformance = TokenPerformance()
    generated: TokenPerformance = TokenPerformance()
    cached_prompt_tokens: int = 0
    kv_cache_usage: float | None = None
    kv_cache_tokens: int | None = None
    requests_processing: int = 0
    requests_pending: int = 0


class _NextToken(msgspec.Struct, frozen=True):
    n_decoded: int = 0


class Slot(msgspec.Struct, frozen=True):
    """One slot of the server. `n_prompt_tokens` are those in its KV cache now."""

    id: int
    n_ctx: int = 0
    is_processing: bool = False
    n_prompt_tokens: int = 0
    id_task: int = -1
    n_prompt_tokens_processed: int = 0
    next_token: list[_NextToken] | _NextToken = _NextToken()

    @property
    def place(self) -> tuple[int, int, int]:
        """How far it is: its task, the tokens of the prompt that are evaluated, and those that were generated."""
        token = self.next_token
        if isinstance(token, list):
            token = token[0] if token else _NextToken()
        return self.id_task, self.n_prompt_tokens_processed, token.n_decoded


def parse_samples(text: str) -> dict[str, float]:
    """Name to value, for the samples without labels."""
    samples = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if not name or name.startswith("#") or "{" in name:
            continue
        try:
            samples[name] = float(value.split()[0])
        except (IndexError, ValueError):
            raise UndecodableError(
                f"a line of the metrics has no value: {line[:80]!r}", payload=line.encode()[:1000]
            ) from None
    return samples


def parse_slots(payload: bytes) -> list[Slot]:
    """The answer of /slots."""
    try:
        return msgspec.json.decode(payload, type=list[Slot])
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the slots cannot be read: {error}", payload=payload[:1000]) from error


def parse_metrics(text: str, slots: list[Slot] | None = None) -> Metrics:
    """From the text of /metrics, with the KV cache from the slots where the text no longer has it."""
    samples = parse_samples(text)

    def number(name: str) -> float:
        value = samples.get(f"llamacpp:{name}", 0.0)
        return value if math.isfinite(value) else 0.0

    usage: float | None = None
    tokens: int | None = None
    if "llamacpp:kv_cache_usage_ratio" in samples:
        usage, tokens = number("kv_cache_usage_ratio"), int(number("kv_cache_tokens"))
    elif slots:
        tokens = sum(slot.n_prompt_tokens for slot in slots)
        usage = tokens / max(1, sum(slot.n_ctx for slot in slots))
    return Metrics(
        prompt=TokenPerformance(count=int(number("prompt_tokens_total")), seconds=number("prompt_seconds_total")),
        generated=TokenPerformance(
            count=int(number("tokens_predicted_total")), seconds=number("tokens_predicted_seconds_total")
        ),
        cached_prompt_tokens=int(number("prompt_tokens_cached_total")),
        kv_cache_usage=usage,
        kv_cache_tokens=tokens,
        requests_processing=int(number("requests_processing")),
        requests_pending=int(number("requests_deferred")),
    )
