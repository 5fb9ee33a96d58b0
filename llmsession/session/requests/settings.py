"""Settings of one call: the keywords of every call for a reply, checked once, before anything is awaited."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from llmsession.types.errors import UsageError
from llmsession.types.lora import Lora, choose_scales
from llmsession.types.sampling import Sampling
from llmsession.wire.request import GenerationRequest

if TYPE_CHECKING:
    from llmsession.session.config.options import Options


class GenerateKeywords(TypedDict, total=False):
    """Keywords of every call for a reply. None means "not given"."""

    max_tokens: int | None
    """The most tokens to generate; None: until the context is full."""
    seed: int | None
    """The seed of the sampler; None or 0: one is drawn and reported in `Completion.seed`."""
    temperature: float | None
    """The sampling temperature; 0 is greedy. It overrides the one in `sampling`."""
    sampling: Sampling | None
    """Sampler settings for this call, which override those of the session."""
    stop: str | Collection[str | int]
    """A phrase that ends the reply, or a collection of phrases and token ids."""
    echo_stop: bool
    """Whether the stop phrase that ended the reply is included in its text."""
    reply_start: str
    """Text that the reply begins with. It comes first in a stream. For `max_tokens`, `usage`, stop phrases, seeds, and
    a grammar in `extra`, it counts as a part of the prompt."""
    top_logprobs: int | None
    """None: no log-probabilities; 0: each token's own; k: also those of the k most likely tokens."""
    lora: Sequence[Lora | str | Path] | None
    """The session's adapters to use, with their scales; None: all, as the session has them; empty: none."""
    timeout: float | None
    """Seconds that the whole call may take, including the wait for a slot."""
    extra: Mapping[str, Any] | None
    """Additional fields of the request, sent unchanged."""


class CallSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked keywords of one call: those that are sent, and the timeout of the whole call in seconds."""

    request: GenerationRequest
    timeout: float | None = None


def make_settings(keywords: GenerateKeywords, options: Options, advised: Sampling) -> CallSettings:
    """Check the keywords and return the settings. Raises UsageError if one is unknown or invalid.

    `advised` is the sampling that the registry recommends for the model.
    """
    unknown = sorted(set(keywords) - set(GenerateKeywords.__annotations__))
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)}: no such keyword; there are {', '.join(GenerateKeywords.__annotations__)}"
        )
    timeout = keywords.get("timeout")
    if timeout is not None and not timeout > 0:
        raise UsageError(f"timeout is a number of seconds above 0, not {timeout!r}")
    temperature = keywords.get("temperature")
    sampling = advised
    for given in (
        options.sampling,
        keywords.get("sampling"),
        Sampling(temperature=temperature) if temperature is not None else None,
    ):
        if given is not None:
            sampling = sampling.merge(given)
    lora = keywords.get("lora")
    request = GenerationRequest.make(
        max_tokens=keywords.get("max_tokens"),
        seed=keywords.get("seed"),
        sampling=sampling,
        stop=keywords.get("stop", ()),
        echo_stop=keywords.get("echo_stop", False),
        reply_start=keywords.get("reply_start", ""),
        top_logprobs=keywords.get("top_logprobs"),
        lora_scales=choose_scales(options.lora, lora) if options.lora or lora else None,
        extra=keywords.get("extra"),
    )
    return CallSettings(request=request, timeout=timeout)
