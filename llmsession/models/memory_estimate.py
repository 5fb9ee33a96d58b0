"""Estimates the memory that a model needs: weights, KV cache, and compute buffers.

Fitted to what llama.cpp reports (builds of 2026, on the CPU, flash attention on).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Tokens that our engines compute at once.
BATCH = 512
# The KV cache's numbers, and the mask's, are of 16 bits; those of a computation of 32.
HALF, FULL = 2, 4
# A cache has room for a multiple of so many tokens.
PADDING = 256
# No model has as many; a damaged header may name any number, and each layer is looked at by itself.
MOST_LAYERS = 4096
# Every so many layers one sees the whole conversation, where the header does not say how many (llama.cpp knows it by
# the architecture). Others that name a window do without it there.
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}


def estimate_memory(metadata: Mapping[str, Any], size_bytes: int, context_length: int, parallel: int) -> int:
    """Return the bytes for `parallel` conversations of `context_length` tokens each."""
    architecture = metadata.get("general.architecture")

    def entry(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    layers, width = min(_number(entry("block_count")), MOST_LAYERS), _number(entry("embedding_length"))
    heads = entry("attention.head_count")
    kv_heads = entry("attention.head_count_kv") or heads
    per_head = width // max(1, max(_per_layer(heads, 1), default=1))
    key = _number(entry("attention.key_length")) or per_head
    value = _number(entry("attention.value_length")) or per_head
    kept = _kept_tokens(entry, str(architecture), layers, context_length)
    numbers = sum(heads_of * tokens for heads_of, tokens in zip(_per_layer(kv_heads, layers), kept, strict=False))
    cached = numbers * (key + value) * HALF * parallel
    wide = max(_per_layer(entry("feed_forward_length"), 1), default=0)
    computed = BATCH * (FULL * (3 * wide + 5 * width) + HALF * context_length)
    return size_bytes + cached + computed


def _kept_tokens(entry: Callable[[str], Any], architecture: str, layers: int, context_length: int) -> list[int]:
    """Return how many tokens each layer caches: all, or those in its window and in a batch."""
    window = _number(entry("attention.sliding_window"))
    pattern = entry("attention.sliding_window_pattern")
    if not window or (pattern is None and architecture not in _WINDOW_PERIODS):
        return [context_length] * layers
    short = min(context_length, -(-(window + BATCH) // PADDING) * PADDING)
    if isinstance(pattern, list) and pattern:
        return [short if pattern[number % len(pattern)] else context_length for number in range(layers)]
    period = _number(pattern) or _WINDOW_PERIODS.get(architecture, 0)
    return [short if not period or number % period < period - 1 else context_length for number in range(layers)]


def _per_layer(value: Any, layers: int) -> list[int]:
    """Return a value for each layer; a header may give one for all."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    return [_number(value)] * layers


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
