"""Model files that tests write: random weights, a vocabulary of bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def write_random_model(
    path: Path, *, width: int = 64, layers: int = 2, context: int = 2048, more_tokens: int = 0
) -> Path:
    """A llama that babbles. `more_tokens` that never occur make it slow to load: about a second for 500,000."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    spellings = _byte_spellings() + SPECIAL + [f"filler{number}" for number in range(more_tokens)]
    writer.add_vocab_size(len(spellings))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(spellings)
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * more_tokens
    )
    writer.add_token_merges(["a 0"])  # the engine wants one; letters and digits are never in one word
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((width, 2 * width)) * 0.1).astype(np.float32)

    def add(name: str, rows: int, columns: int) -> None:
        whole = np.tile(block, (-(-rows // width), -(-columns // (2 * width))))
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(whole[:rows, :columns]))

    add("token_embd", len(spellings), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for number in range(layers):
        prefix = f"blk.{number}"
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{prefix}.{norm}.weight", np.ones(width, np.float32))
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width // 2, width),
            ("attn_v", width // 2, width),
            ("attn_output", width, width),
            ("ffn_gate", 2 * width, width),
            ("ffn_up", 2 * width, width),
            ("ffn_down", width, 2 * width),
        ):
            add(f"{prefix}.{name}", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_spellings() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
