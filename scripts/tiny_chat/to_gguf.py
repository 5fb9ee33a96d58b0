"""Writes the network as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf

from tiny_chat.layout import CHAT_TEMPLATE, CONTROL, END, SPECIAL, USER_DEFINED, VOCAB_SIZE
from tiny_chat.model import Model, tensors
from tiny_chat.to_safetensors import LAYER_NAMES, OTHER_NAMES, interleave

_GGUF_NAMES = {theirs: ours for ours, theirs in (LAYER_NAMES | OTHER_NAMES).items()}


def byte_spellings() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def gguf_name(name: str) -> str:
    """`blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`."""
    name = name.removesuffix(".weight")
    if name in _GGUF_NAMES:
        return f"{_GGUF_NAMES[name]}.weight"
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{_GGUF_NAMES[part]}.weight"


def write_gguf(model: Model, path: Path) -> None:
    """As Q8_0, in one rename, so that a killed run leaves the old file."""
    shape = model.shape
    half = path.with_suffix(".gguf.new")
    writer = gguf.GGUFWriter(half, "llama")
    writer.add_name("tiny-chat")
    writer.add_description("A demonstration model of llmsession, trained on generated text")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_spellings(), *SPECIAL])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.NORMAL] * 256 + [kinds.CONTROL] * len(CONTROL) + [kinds.USER_DEFINED] * len(USER_DEFINED)
    )
    # The engine wants a merge; this one never happens, since letters and digits are never in one word.
    writer.add_token_merges(["a 0"])
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in tensors(model).items():
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleave(values, shape.heads)
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    half.replace(path)
