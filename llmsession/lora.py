"""Lora: an adapter that an engine loads beside its model, and how strongly it counts."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from llmsession.errors import ConfigError


class Lora(msgspec.Struct, frozen=True):
    """An adapter in GGUF form: its path, or `hf:author/repo/HEAD/file`. `scale` 1.0 is as it was trained, 0.0 is off.

    Raises ConfigError.
    """

    path: str | Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        path: object = self.path
        if not isinstance(path, str | Path) or not str(path):
            raise ConfigError(f"the path of a LoRA adapter is the path of a .gguf file, not {path!r}")
        scale: object = self.scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ConfigError(f"the scale of a LoRA adapter is a number, such as 1.0, not {scale!r}")
        msgspec.structs.force_setattr(self, "scale", float(scale))
