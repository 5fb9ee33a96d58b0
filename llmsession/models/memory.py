"""How much memory a model needs: its weights, the KV cache, and what a batch is computed in. An estimate.

Fitted to what llama.cpp reports (builds of 2026, on the CPU, flash attention on); layers with a sliding window keep
less than is said here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Tokens that our engines compute at once.
BATCH = 512
# The KV cache's numbers, and the mask's, are of 16 bits; those of a computation of 32.
HALF, FULL = 2, 4


def estimate_memory(metadata: Mapping[str, Any], size_bytes: int, context_length: int, parallel: int) -> int:
    """In bytes, for so many conversations at once of so many tokens each."""
    architecture = metadata.get("general.architecture")

    def entry(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    layers, width = _number(entry("block_count")), _number(entry("embedding_length"))
    heads = entry("attention.head_count")
    kv_heads = entry("attention.head_count_kv") or heads
    per_head = width // max(1, max(_per_layer(heads, 1), default=1))
    key = _number(entry("attention.key_length")) or per_head
    value = _number(entry("attention.value_length")) or per_head
    cached = sum(_per_layer(kv_heads, layers)) * (key + value) * HALF * context_length * parallel
    wide = max(_per_layer(entry("feed_forward_length"), 1), default=0)
    computed = BATCH * (FULL * (3 * wide + 5 * width) + HALF * context_length)
    return size_bytes + cached + computed


def _per_layer(value: Any, layers: int) -> list[int]:
    """Some models have a number for each layer, most the same for all."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    return [_number(value)] * layers


def _number(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
