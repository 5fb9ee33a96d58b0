"""Launch: what an engine is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmsession.types.device import DeviceRequest, Gpu
from llmsession.types.lora import Lora

if TYPE_CHECKING:
    from llmsession.models.gguf import ModelInfo


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked to run. None means that the engine chooses.

    `context_length`: tokens for one conversation. `info`: the model's header, if it was read. `gpu`: the GPU that
    `device` names, once the build was asked for it. `lora`: the adapters' files, numbered by their order; with them
    `cache_ram_mib` is 0, since the engine would reuse prompts there that another adapter has evaluated (seen in build
    11434). `metadata`: overrides for the model's own header, such as `llama.context_length=int:4096`. `kv_folder`: the
    folder into which the engine may write its KV. `cache`, `logs` and `records` are folders that the library writes to.
    """

    model_path: Path
    info: ModelInfo | None = None
    check_memory: bool = True
    alias: str
    context_length: int
    parallel: int
    threads: int
    cache_ram_mib: int
    device: DeviceRequest = DeviceRequest()
    gpu: Gpu | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_offload: bool = True
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    rope_freq_base: float | None = None
    metadata: tuple[str, ...] = ()
    lora: tuple[Lora, ...] = ()
    draft_model: Path | None = None
    mmproj: Path | None = None
    chat_template: Path | None = None
    kv_folder: Path | None = None
    extra_args: tuple[str, ...] = ()
    start_timeout: float = 120.0
    cache: Path
    logs: Path
    records: Path
    on_progress: Callable[[float], None] | None = None
