"""Suggests options with which a model fits into free memory: less context, fewer conversations, fewer bits."""

from __future__ import annotations

from llmsession.models.gguf import ModelInfo
from llmsession.models.quantization import BITS_PER_WEIGHT
from llmsession.types.units import describe_size

# A suggestion leaves a part of what is free now to whoever takes some until it is tried.
SHARE = 0.95
# Contexts are suggested in such steps; one of fewer tokens than the least is too short for a chat.
STEP, LEAST = 256, 512
# llama.cpp serves no more conversations at once.
MOST_CONVERSATIONS = 256


def suggest_fit(info: ModelInfo, context_length: int, parallel: int, free: int) -> str:
    """Return a suggestion such as `context_length=2048 or parallel=1`, or a smaller file of the model."""
    room = int(free * SHARE)
    ways = []
    if (fitting := _longest_context(info, context_length, parallel, room)) is not None:
        ways.append(f"context_length={fitting}")
    if (fewer := _most_conversations(info, context_length, parallel, room)) is not None:
        ways.append(f"parallel={fewer}")
    if not ways and parallel > 1 and (fitting := _longest_context(info, context_length, 1, room)) is not None:
        ways.append(f"context_length={fitting} with parallel=1")
    if (smaller := _best_quantization(info, context_length, parallel, room)) is not None:
        ways.append(f"{smaller} of it")
    elif not ways and (smaller := _best_quantization(info, min(context_length, LEAST), 1, room)) is not None:
        ways.append(f"{smaller} of it with context_length={min(context_length, LEAST)} and parallel=1")
    return " or ".join(ways) if ways else "a smaller model"


def describe_need(info: ModelInfo, context_length: int, parallel: int) -> str:
    """Return a text such as `9.8 GB of memory (8.1 GB of weights, 1.7 GB for 4 conversations of 8192 tokens)`."""
    needed = info.memory_needed(context_length, parallel)
    conversations = "a conversation" if parallel == 1 else f"{parallel} conversations"
    return (
        f"{describe_size(needed)} of memory ({describe_size(info.size_bytes)} of weights, "
        f"{describe_size(needed - info.size_bytes)} for {conversations} of {context_length} tokens)"
    )


def _longest_context(info: ModelInfo, asked: int, parallel: int, room: int) -> int | None:
    """Return the largest context that fits, smaller than requested."""
    least, most = 0, (asked - 1) // STEP
    while least < most:
        middle = (least + most + 1) // 2
        if info.memory_needed(middle * STEP, parallel) <= room:
            least = middle
        else:
            most = middle - 1
    return least * STEP if least * STEP >= LEAST and info.memory_needed(least * STEP, parallel) <= room else None


def _most_conversations(info: ModelInfo, context_length: int, asked: int, room: int) -> int | None:
    """Return the largest number of conversations that fits, smaller than requested."""
    return next(
        (n for n in range(min(asked - 1, MOST_CONVERSATIONS), 0, -1) if info.memory_needed(context_length, n) <= room),
        None,
    )


def _best_quantization(info: ModelInfo, context_length: int, parallel: int, room: int) -> str | None:
    """Return for example `a Q4_K_M file`: the most bits, fewer than this file's, with which the weights fit."""
    others = info.memory_needed(context_length, parallel) - info.size_bytes
    for name, bits in BITS_PER_WEIGHT.items():
        weights = info.parameter_count * bits / 8
        if weights < info.size_bytes * SHARE and weights + others <= room:
            return f"{'an' if name[0] in 'FI' else 'a'} {name} file"
    return None
