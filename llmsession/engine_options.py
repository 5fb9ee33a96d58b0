"""Those of the options that only an engine of ours can be told, checked: devices, attention, adapters, a template."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsession.device import Device, parse_device
from llmsession.errors import ConfigError, UsageError
from llmsession.lora import Lora

if TYPE_CHECKING:
    from llmsession.options import Options

# What llama.cpp can keep keys and values in; all but the first three are quantized.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_WHOLE_TYPES = CACHE_TYPES[:3]


def device_id(given: object) -> str:
    """The id of what `device=` was given. Raises ConfigError."""
    text = given.id if isinstance(given, Device) else given
    parse_device(text)
    return str(text)


def as_loras(given: object) -> tuple[Lora, ...]:
    """What `lora=` was given: one or several, by their paths or with scales. Raises ConfigError."""
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
    """What makes two of them the same adapter: the reference, or where the file lies."""
    text = str(lora.path)
    return text if text.startswith("hf:") else str(Path(text).expanduser().absolute())


def choose_scales(loaded: tuple[Lora, ...], asked: Sequence[Lora | str | Path] | None) -> tuple[float, ...] | None:
    """The scale of each loaded adapter, for one request: 0.0 for what it does not name. None where none are loaded.

    Raises UsageError.
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


def check_engine_options(options: Options) -> None:
    """Raise ConfigError where a value is none, or two of them contradict each other."""
    choice = parse_device(options.device)
    if choice.threads is not None and options.threads is not None and choice.threads != options.threads:
        raise ConfigError(f"device={options.device!r} and threads={options.threads} contradict each other: give one")
    if choice.kind == "cpu" and options.gpu_layers:
        raise ConfigError(f'gpu_layers={options.gpu_layers} needs a GPU, but device={options.device!r}: use "gpu"')
    if not isinstance(options.flash_attention, bool | None):
        raise ConfigError(f"flash_attention is True, False or None, not {options.flash_attention!r}")
    if not isinstance(options.kv_offload, bool):
        raise ConfigError(f"kv_offload is True or False, not {options.kv_offload!r}")
    for name in ("cache_type_k", "cache_type_v"):
        if (value := getattr(options, name)) not in (None, *CACHE_TYPES):
            raise ConfigError(f"{name}={value!r} is unknown: use one of {', '.join(CACHE_TYPES)}")
    if options.flash_attention is False and options.cache_type_v not in (None, *_WHOLE_TYPES):
        raise ConfigError(
            f"cache_type_v={options.cache_type_v!r} needs flash attention: leave away flash_attention=False, "
            f"or use one of {', '.join(_WHOLE_TYPES)}"
        )
    base: object = options.rope_freq_base
    if base is not None and (isinstance(base, bool) or not isinstance(base, int | float) or not 0 < base < math.inf):
        raise ConfigError(f"rope_freq_base is a number above 0, such as 10000.0, not {base!r}")


def is_template_text(given: str | Path) -> bool:
    """Whether it is a Jinja template itself, and not the path of one."""
    return isinstance(given, str) and ("{%" in given or "{{" in given)
