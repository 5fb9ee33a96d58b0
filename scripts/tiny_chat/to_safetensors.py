"""Turns the GGUF file into the folder that Hugging Face's libraries read: the same weights, tokenizer and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tiny_chat.layout import SPECIAL

# GGUF's names of a layer's tensors, and Hugging Face's.
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def hugging_face_name(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` for `blk.0.attn_q.weight`."""
    name = name.removesuffix(".weight")
    if name in OTHER_NAMES:
        return f"{OTHER_NAMES[name]}.weight"
    _, number, part = name.split(".")
    return f"model.layers.{number}.{LAYER_NAMES[part]}.weight"


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face's order of rotary pairs (halves) to that of GGUF's `llama` (neighbours)."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def divide(values: np.ndarray, heads: int) -> np.ndarray:
    """Back again."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export_safetensors(model: Path, folder: Path) -> None:
    """Write model.safetensors (float32), config.json and the tokenizer's two files into `folder`."""
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(model)

    def fact(name: str) -> Any:
        field = reader.get_field(name)
        if field is None:
            raise SystemExit(f"{model} has no {name}: is it tiny-chat?")
        return field.contents()

    heads, end = fact("llama.attention.head_count"), fact("tokenizer.ggml.eos_token_id")
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = hugging_face_name(tensor.name)
        weights[name] = np.ascontiguousarray(
            divide(values, heads) if ".q_proj" in name or ".k_proj" in name else values
        )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fact("llama.vocab_size"),
        "hidden_size": fact("llama.embedding_length"),
        "intermediate_size": fact("llama.feed_forward_length"),
        "num_hidden_layers": fact("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": fact("llama.context_length"),
        "rms_norm_eps": fact("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": fact("llama.rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
        "dtype": "float32",
    }
    tokens: list[str] = fact("tokenizer.ggml.tokens")
    added = [
        {"id": number, "content": text, "special": text.startswith("<|"), "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for text, number in SPECIAL.items()
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": {text: number for number, text in enumerate(tokens[:256])}, "merges": []},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[end],
        "pad_token": tokens[end],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fact("tokenizer.chat_template"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (folder / f"{file}.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
