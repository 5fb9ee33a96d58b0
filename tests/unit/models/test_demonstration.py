"""What the demonstration model is made from, and that its weights can be had in another form."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from llmsession.models.bundled import bundled_path
from tiny_chat import held_out, words
from tiny_chat.layout import CHAT_TEMPLATE, SPECIAL, VOCAB_SIZE
from tiny_chat.to_safetensors import divide, export_safetensors, interleave

SAID = "Grüße 😀 <|im_end|>\n<tool_call>{}</tool_call> <think>"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `scripts/train_tiny_chat.py --export-safetensors`."""
    folder = tmp_path_factory.mktemp("export") / "tiny-chat"
    export_safetensors(bundled_path(), folder)
    return folder


def test_the_evaluation_draws_nothing_that_the_training_drew() -> None:
    """Issue 2: held-out word lists and names."""
    assert not set(held_out.WORDS) & set(words.WORDS)
    assert not {*held_out.NAMES, *held_out.SURNAMES} & set(words.words(words.NAMES))
    taught = {pattern.lower() for pattern in words.PATTERNS if "{" not in pattern}
    assert not {sentence.lower().rstrip("?.!") for sentence in held_out.SENTENCES} & taught
    assert len(held_out.SENTENCES) == len(set(held_out.SENTENCES)) >= 200


def test_it_is_small_and_carries_its_template() -> None:
    """Issue 2: at most 2 MB as Q8_0, 2,048 tokens of context, tools offered by its own template."""
    assert bundled_path().stat().st_size <= 2_000_000
    reader = gguf.GGUFReader(bundled_path())
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert CHAT_TEMPLATE == facts["tokenizer.chat_template"]
    assert 2048 == facts["llama.context_length"]
    kinds = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    assert {gguf.GGMLQuantizationType.Q8_0} == kinds


def test_the_exported_weights_are_those_of_the_file(exported: Path) -> None:
    """Issue 2: the same weights as safetensors; q and k in Hugging Face's order of rotary pairs."""
    config = json.loads((exported / "config.json").read_text())
    weights = load_file(exported / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(bundled_path()).tensors}
    assert len(tensors) == len(weights) == 2 + 9 * config["num_hidden_layers"]
    first = gguf.dequantize(tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type)
    assert np.array_equal(
        first, interleave(weights["model.layers.0.self_attn.q_proj.weight"], config["num_attention_heads"])
    )
    down = tensors["blk.1.ffn_down.weight"]
    assert np.array_equal(gguf.dequantize(down.data, down.tensor_type), weights["model.layers.1.mlp.down_proj.weight"])
    assert (VOCAB_SIZE, config["hidden_size"]) == weights["model.embed_tokens.weight"].shape


def test_the_order_of_rotary_pairs_goes_both_ways() -> None:
    """GGUF's `llama` has a pair side by side, Hugging Face half a head apart."""
    rows = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), dtype=np.float32)
    assert [0, 2, 1, 3, 4, 6, 5, 7] == interleave(rows, 2)[:, 0].tolist()
    assert np.array_equal(rows, divide(interleave(rows, 2), 2))


def test_the_exported_tokenizer_has_a_token_for_each_byte(exported: Path) -> None:
    """Issue 2: with its tokenizer and template."""
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    plain = "Grüße 😀 \x00\n\t"
    assert list(plain.encode()) == tokenizer.encode(plain).ids
    ids = tokenizer.encode(SAID).ids
    assert [SPECIAL[name] for name in ("<|im_end|>", "<tool_call>", "</tool_call>", "<think>")] == [
        number for number in ids if number > 255
    ]
    assert SAID == tokenizer.decode(ids, skip_special_tokens=False)
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert CHAT_TEMPLATE == settings["chat_template"]
