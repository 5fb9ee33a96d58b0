"""The settings of a reply, apart from its prompt. Each API encodes them in its own way."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from llmsession.types.errors import UsageError
from llmsession.types.message_input import is_unicode
from llmsession.types.sampling import Sampling

# The engine takes 32 bits, and reads the largest as "draw one yourself"; 0 means that to us.
LARGEST_SEED = 2**32 - 2
# Servers count tokens in 32 bits with a sign. No context is that long.
LARGEST_COUNT = 2**31 - 1


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one reply, checked when made. `seed` is always set; `has_own_seed`: the caller gave it.

    `own_stops` are those of `stop` that the caller did not ask for: the encoding's ends of a turn. `reply_start` is the
    given beginning of the reply, which is a part of the prompt. `lora_scales` are those of all loaded adapters, in
    order; None if there are none. `reports_slot`: the server is asked to report the slot, because its KV will be saved.
    """

    seed: int
    has_own_seed: bool = False
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    own_stops: tuple[str, ...] = ()
    reply_start: str = ""
    stop_ids: frozenset[int] = frozenset()
    echo_stop: bool = False
    top_logprobs: int | None = None
    lora_scales: tuple[float, ...] | None = None
    extra: Mapping[str, Any] = {}
    reports_slot: bool = False

    @classmethod
    def make(
        cls,
        *,
        max_tokens: int | None,
        seed: int | None,
        sampling: Sampling,
        stop: str | Collection[str | int],
        reply_start: str = "",
        echo_stop: bool,
        top_logprobs: int | None,
        lora_scales: tuple[float, ...] | None = None,
        extra: Mapping[str, Any] | None,
    ) -> GenerationRequest:
        """Check what a caller gave. Raises UsageError."""
        _check_int("max_tokens", max_tokens, 1, None)
        _check_int("seed", seed, 0, LARGEST_SEED)
        _check_int("top_logprobs", top_logprobs, 0, None)
        for name in ("n", "n_cmpl", "best_of"):
            if (extra or {}).get(name, 1) not in (None, 1):
                raise UsageError(f"extra= may not set {name} above 1: a call gives one reply; make another call")
        phrases = [stop] if isinstance(stop, str) else list(stop)
        for phrase in phrases:
            if phrase == "" or isinstance(phrase, bool) or not isinstance(phrase, str | int):
                raise UsageError(f"a stop phrase is text that is not empty, or a token id, not {phrase!r}")
        return cls(
            seed=seed or random.SystemRandom().randint(1, LARGEST_SEED),
            has_own_seed=bool(seed),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=tuple(phrase for phrase in phrases if isinstance(phrase, str)),
            reply_start=_check_start(reply_start),
            stop_ids=frozenset(phrase for phrase in phrases if isinstance(phrase, int)),
            echo_stop=echo_stop,
            top_logprobs=top_logprobs,
            lora_scales=lora_scales,
            extra=dict(extra or {}),
        )

    def with_own_stops(self, stops: tuple[str, ...]) -> GenerationRequest:
        """Return the request with the encoding's ends of a turn added, unless the caller asked for them."""
        own = tuple(stop for stop in stops if stop not in self.stop)
        return msgspec.structs.replace(self, stop=(*self.stop, *own), own_stops=own) if own else self


def encode_json(body: Mapping[str, Any], extra: Mapping[str, Any]) -> bytes:
    """Return the body with the caller's extra fields. Raises UsageError if one is reserved, or cannot be encoded."""
    if taken := sorted(set(body) & set(extra)):
        raise UsageError(f"extra= may not set {', '.join(taken)}: that is set by a keyword of the call")
    try:
        return msgspec.json.encode({**body, **extra})
    except (TypeError, UnicodeEncodeError, ValueError) as error:
        raise UsageError(f"the request cannot be written as JSON: {error}") from error


def _check_start(text: object) -> str:
    if not isinstance(text, str) or not is_unicode(text):
        what = "a lone surrogate, which UTF-8 cannot" if isinstance(text, str) else type(text).__name__
        raise UsageError(f"reply_start is the text that the reply begins with, not {what}")
    return text


def _check_int(name: str, value: int | None, least: int, most: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}"
        raise UsageError(f"{name} must be {limit}, not {value}")
