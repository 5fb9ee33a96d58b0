"""Sampling: how the next token is drawn, and named presets.

`None` means "not given": the engine's default applies. A falsy value that was given is sent.
https://github.com/ggml-org/llama.cpp/tree/master/tools/server explains each of them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec

from llmsession.types.errors import UsageError

_WHOLE = {"top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "min_keep"}
_TEXTS = {"dry_sequence_breakers", "samplers"}


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Settings of the samplers. `samplers`: their order. `logit_bias`: token id to bias.

    Raises:
        UsageError: A setting has another type, or is not finite.
    """

    temperature: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_n_sigma: float | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: tuple[str, ...] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    min_keep: int | None = None
    samplers: tuple[str, ...] | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None

    GREEDY: ClassVar[Sampling]
    DEFAULT: ClassVar[Sampling]
    CLASSIC: ClassVar[Sampling]
    SIMPLE: ClassVar[Sampling]
    SEMI: ClassVar[Sampling]
    TIKTOKEN: ClassVar[Sampling]
    LOW_MIN_P: ClassVar[Sampling]
    MIN_P: ClassVar[Sampling]
    STRICT_MIN_P: ClassVar[Sampling]
    CONTRASTIVE: ClassVar[Sampling]
    WARM_CONTRASTIVE: ClassVar[Sampling]
    RANDOM: ClassVar[Sampling]
    LOW_TEMP: ClassVar[Sampling]
    HIGH_TEMP: ClassVar[Sampling]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and (wanted := _wanted(name, value)):
                raise UsageError(f"{name} is {wanted}, not {value!r:.200}")

    def merge(self, over: Sampling) -> Sampling:
        """Return these settings, overridden by everything that `over` sets."""
        set_there = {name: value for name in over.__struct_fields__ if (value := getattr(over, name)) is not None}
        return msgspec.structs.replace(self, **set_there)


def _wanted(name: str, value: object) -> str:
    """Return what the setting should be; empty if the value is that."""
    if name == "ignore_eos":
        return "" if isinstance(value, bool) else "True or False"
    if name == "logit_bias":
        is_map = isinstance(value, dict) and all(_is_whole(token) and _is_finite(value[token]) for token in value)
        return "" if is_map else "a dict of token ids and finite numbers"
    if name in _TEXTS:
        is_list = isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)
        return "" if is_list else "a tuple of texts"
    if name in _WHOLE:
        return "" if _is_whole(value) else "a whole number"
    return "" if _is_finite(value) else "a finite number"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value: object) -> bool:
    """Return whether JSON can say it: it has no NaN, which would be sent as null, and that means "not given"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


_SIMPLE = Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=1.0)
Sampling.GREEDY = Sampling(temperature=0.0)
Sampling.DEFAULT = Sampling()
Sampling.CLASSIC = Sampling(min_p=0.0, repeat_penalty=1.1)
Sampling.SIMPLE = _SIMPLE
Sampling.SEMI = Sampling(top_k=80, top_p=0.975, min_p=0.025, temperature=0.9)
Sampling.TIKTOKEN = Sampling(temperature=0.65)
Sampling.LOW_MIN_P = _SIMPLE.merge(Sampling(min_p=0.025))
Sampling.MIN_P = _SIMPLE.merge(Sampling(min_p=0.05))
Sampling.STRICT_MIN_P = _SIMPLE.merge(Sampling(min_p=0.1))
Sampling.CONTRASTIVE = _SIMPLE.merge(Sampling(temperature=0.0, presence_penalty=0.6))
Sampling.WARM_CONTRASTIVE = _SIMPLE.merge(Sampling(temperature=0.0, presence_penalty=1.0))
Sampling.RANDOM = _SIMPLE.merge(Sampling(temperature=1e9))
Sampling.LOW_TEMP = Sampling(temperature=0.4)
Sampling.HIGH_TEMP = Sampling(temperature=1.2)
