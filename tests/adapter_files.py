"""LoRA adapters that tests write: random ones, strong enough to be seen in a reply."""

from __future__ import annotations

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
