"""Model files that tests write: random weights, and a vocabulary of bytes or another."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.vocabularies import Vocabulary, of_bytes

TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def write_random_model(
    path: Path,
    *,
    width: int = 64,
    layers: int = 2,
    context: int = 2048,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int | None = None,
    more_tokens: int = 0,
    vocabulary: Vocabulary | None = None,
    template: str = TEMPLATE,
    window: int | None = None,
) -> Path:
    """A llama that babbles. `more_tokens` that never occur make it slow to load: about a second for 500,000.

    Without a template it is a base model. With a `window` it is a gemma3, of whose layers five in six see no more.
    """
    vocabulary = vocabulary or of_bytes(more_tokens)
    wide = feed_forward or 2 * width
    writer = gguf.GGUFWriter(path, "llama" if window is None else "gemma3")
    if window is not None:
        writer.add_sliding_window(window)
        writer.add_key_length(width // heads)
        writer.add_value_length(width // heads)
    writer.add_name("random")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    vocabulary.write(writer)
    if template:
        writer.add_chat_template(template)
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((width, 2 * width)) * 0.1).astype(np.float32)

    def add(name: str, rows: int, columns: int) -> None:
        whole = np.tile(block, (-(-rows // width), -(-columns // (2 * width))))
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(whole[:rows, :columns]))

    add("token_embd", len(vocabulary.tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for number in range(layers):
        prefix = f"blk.{number}"
        for norm in ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if window else ())):
            writer.add_tensor(f"{prefix}.{norm}.weight", np.ones(width, np.float32))
        for norm in ("attn_q_norm", "attn_k_norm") if window else ():
            writer.add_tensor(f"{prefix}.{norm}.weight", np.ones(width // heads, np.float32))
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width // heads * kv_heads, width),
            ("attn_v", width // heads * kv_heads, width),
            ("attn_output", width, width),
            ("ffn_gate", wide, width),
            ("ffn_up", wide, width),
            ("ffn_down", width, wide),
        ):
            add(f"{prefix}.{name}", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
