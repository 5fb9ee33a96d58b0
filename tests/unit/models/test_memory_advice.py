"""What is suggested where a model does not fit: each suggestion is computed, and fits."""

from __future__ import annotations

import re

import pytest

from llmsession.models.gguf import ModelInfo
from llmsession.models.memory_advice import LEAST, SHARE, describe_need, suggest_fit
from llmsession.models.quantization import BITS_PER_WEIGHT

GB = 10**9


def llama_8b(bits: float = 8.5) -> ModelInfo:
    """As Llama 3.1 8B says of itself."""
    parameters = 8_030_261_312
    return ModelInfo(
        architecture="llama",
        name="Llama 3.1 8B",
        parameter_count=parameters,
        quantization="Q8_0",
        trained_context_length=131072,
        layer_count=32,
        gqa_factor=4,
        rope_freq_base=500000.0,
        vocab_size=128256,
        size_bytes=round(parameters * bits / 8),
        chat_template=None,
        metadata={
            "general.architecture": "llama",
            "llama.block_count": 32,
            "llama.embedding_length": 4096,
            "llama.feed_forward_length": 14336,
            "llama.attention.head_count": 32,
            "llama.attention.head_count_kv": 8,
        },
    )


@pytest.mark.parametrize("free", [3 * GB, 5 * GB, 7 * GB, 9 * GB, 11 * GB, 12 * GB, 13 * GB])
@pytest.mark.parametrize(("context", "parallel"), [(8192, 4), (8192, 1), (131072, 2), (512, 16)])
def test_what_is_suggested_fits_and_is_the_most_that_does(free: int, context: int, parallel: int) -> None:
    """Rows B12 and C16: the numbers hold when they are asked for."""
    info, room = llama_8b(), int(free * SHARE)
    if info.memory_needed(context, parallel) <= free:
        return
    said = suggest_fit(info, context, parallel, free)
    for way in said.split(" or "):
        named = dict(re.findall(r"(context_length|parallel)=(\d+)", way))
        asked, at_once = int(named.get("context_length", context)), int(named.get("parallel", parallel))
        weights = info.size_bytes
        if (quantization := re.search(r"an? (\w+) file of it", way)) is not None:
            weights = round(info.parameter_count * BITS_PER_WEIGHT[quantization[1]] / 8)
            assert weights < info.size_bytes
        needed = info.memory_needed(asked, at_once) - info.size_bytes + weights
        assert needed <= room, way
        if not quantization and "context_length" in named:
            assert asked < context
            assert asked >= LEAST
            assert info.memory_needed(asked + 256, at_once) > room
        elif not quantization:
            assert at_once < parallel
            assert info.memory_needed(asked, at_once + 1) > room


def test_the_words() -> None:
    """As a person reads them."""
    info = llama_8b()
    assert (
        "13.0 GB of memory (8.5 GB of weights, 4.4 GB for 4 conversations of 8192 tokens)"
        == describe_need(info, 8192, 4)
    )  # fmt: skip
    assert "for a conversation of 512 tokens)" in describe_need(info, 512, 1)
    assert "context_length=4096 or parallel=2 or a Q5_K_M file of it" == suggest_fit(info, 8192, 4, 11_500_000_000)
    assert "an IQ2_XXS file of it with context_length=512 and parallel=1" == suggest_fit(info, 8192, 4, 2_850_000_000)
    assert "a smaller model" == suggest_fit(info, 8192, 4, GB)
