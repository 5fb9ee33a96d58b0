"""What tests give an engine beside its model: random LoRA adapters that can be seen in a reply, eyes, images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import gguf
import numpy as np


def write_lora(
    path: Path, *, seed: int = 0, layers: int = 5, width: int = 192, architecture: str = "llama", rank: int = 4
) -> Path:
    """For the bundled model where nothing else is said."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    rng = np.random.default_rng(seed)
    for number in range(layers):
        for name in ("attn_q", "attn_output"):
            for half, shape in (("lora_a", (rank, width)), ("lora_b", (width, rank))):
                values = (rng.standard_normal(shape) * 0.5).astype(np.float32)
                writer.add_tensor(f"blk.{number}.{name}.weight.{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_projector(path: Path, *, text_width: int = 192, width: int = 32, size: int = 32, patch: int = 8) -> Path:
    """Eyes that see nothing in particular: an image becomes (size / patch)² tokens of the bundled model's width."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    whole = {
        "image_size": size, "patch_size": patch, "embedding_length": width, "feed_forward_length": 2 * width,
        "projection_dim": text_width, "block_count": 1, "attention.head_count": 2,
    }  # fmt: skip
    for name, value in whole.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (width,),
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.position_embd.weight": ((size // patch) ** 2 + 1, width),
        "v.blk.0.ffn_up.weight": (2 * width, width),
        "v.blk.0.ffn_up.bias": (2 * width,),
        "v.blk.0.ffn_down.weight": (width, 2 * width),
        "v.blk.0.ffn_down.bias": (width,),
        "mm.0.weight": (text_width, width),
        "mm.0.bias": (text_width,),
        "mm.2.weight": (text_width, text_width),
        "mm.2.bias": (text_width,),
    }
    for norm in ("v.pre_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        shapes |= {f"v.blk.0.{name}.weight": (width, width), f"v.blk.0.{name}.bias": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.2).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_png(red: int, green: int, blue: int, *, size: int = 16) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes((red, green, blue)) * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
