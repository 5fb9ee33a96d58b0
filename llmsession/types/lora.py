"""Lora: an adapter that an engine loads beside its model, with a scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmsession.types.errors import ConfigError, UsageError


class Lora(msgspec.Struct, frozen=True):
    """An adapter in GGUF form: its path, or `hf:author/repo/HEAD/file`. Raises ConfigError.

    `scale`: 1.0 is as trained, 0.0 is off.
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


def as_loras(given: object) -> tuple[Lora, ...]:
    """Convert what `lora=` was given: one adapter or several, by path or with scales. Raises ConfigError."""
    if isinstance(given, str | Path | Lora):
        given = (given,)
    if not isinstance(given, Iterable):
        raise ConfigError(f"lora is a list of paths or Lora(path, scale), not {given!r}")
    loras = tuple(_as_lora(each) for each in given)
    seen: set[str] = set()
    for lora in loras:
        if (key := lora_key(lora)) in seen:
            raise ConfigError(f"lora names {lora.path} twice: give it once, with one scale")
        seen.add(key)
    return loras


def lora_key(lora: Lora) -> str:
    """Return what identifies an adapter: the reference, or the location of its file."""
    text = str(lora.path)
    return text if text.startswith("hf:") else str(Path(text).expanduser().absolute())


def choose_scales(loaded: tuple[Lora, ...], asked: Sequence[Lora | str | Path] | None) -> tuple[float, ...] | None:
    """Return the scale of each loaded adapter for one request: 0.0 for those that it does not name.

    None if none are loaded. Raises UsageError.
    """
    if asked is None:
        return tuple(lora.scale for lora in loaded) or None
    scales = dict.fromkeys(map(lora_key, loaded), 0.0)
    for lora in as_loras(asked):
        if lora_key(lora) not in scales:
            there = f"it has {', '.join(str(each.path) for each in loaded)}" if loaded else "it has none"
            raise UsageError(
                f"the adapter {lora.path} was not loaded with this session ({there}): "
                "name all of them in lora= when it is opened"
            )
        scales[lora_key(lora)] = lora.scale
    return tuple(scales.values()) or None


def _as_lora(given: Any) -> Lora:
    if isinstance(given, Lora):
        return given
    if isinstance(given, str | Path):
        return Lora(given)
    raise ConfigError(f"lora is a list of paths or Lora(path, scale), not of {given!r}")
