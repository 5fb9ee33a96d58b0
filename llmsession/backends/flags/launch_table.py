"""What a Launch asks of an engine, a row each: llama-server's flag, and the field of xllamacpp's parameters.

Everything that matters is said, since defaults change and configuration leaks in. Of a flag with several names, the
table has the one that old builds know as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from llmsession.backends.launch import Launch

# A field's name, its value, and the enumeration of the wheel whose member the value names, if any.
Setting: TypeAlias = tuple[str, Any, str | None]

# A cancelled request is let go after the batch at hand: that took 8 s with the default of 2048, 0.6 s with 256.
BATCH = 512
KV_FOLDER = "--slot-save-path"


class Row(msgspec.Struct, frozen=True):
    """One thing to set. An `optional` flag is omitted for a build that lacks it: it does without being told.

    `option` is the keyword of ours that asks for it; None if every session does.
    """

    option: str | None
    words: tuple[str, ...] = ()
    fields: tuple[Setting, ...] = ()
    optional: bool = False


def list_rows(launch: Launch) -> Iterator[Row]:
    """Yield everything but the model, its name, where the engine listens, and the adapters of the embedded engine."""
    yield from _always(launch)
    yield from list_option_rows(launch)


def _always(launch: Launch) -> Iterator[Row]:
    # Explicit slots, each with its own share: with the default, concurrent chats kill each other (LLAMA_SERVER F4).
    total = launch.context_length * launch.parallel
    yield Row(None, ("--parallel", str(launch.parallel)), (("n_parallel", launch.parallel, None),))
    yield Row(None, ("--ctx-size", str(total)), (("n_ctx", total, None),))
    yield Row(None, ("--no-kv-unified",), (("kv_unified", False, None),), optional=True)
    yield Row(None, ("--cont-batching",), (("cont_batching", True, None),), optional=True)
    # A conversation that is too long is an error: the engine once forgot its beginning in silence.
    yield Row(None, ("--no-context-shift",), (("ctx_shift", False, None),), optional=True)
    yield Row(None, ("--threads", str(launch.threads)), (("cpuparams.n_threads", launch.threads, None),))
    yield Row(None, ("--threads-batch", str(launch.threads)))
    yield Row(None, ("--batch-size", str(BATCH)), (("n_batch", BATCH, None),))
    yield Row(None, ("--ubatch-size", str(BATCH)), (("n_ubatch", BATCH, None),), optional=True)
    cache = launch.cache_ram_mib
    yield Row(None, ("--cache-ram", str(cache)), (("cache_ram_mib", cache, None),), optional=True)
    yield Row(None, ("--metrics",), (("endpoint_metrics", True, None),))
    yield Row(None, ("--slots",), (("endpoint_slots", True, None),), optional=True)
    yield Row(None, ("--no-ui",), (("ui", False, None),), optional=True)
    yield Row(None, ("--jinja",), (("use_jinja", True, None),), optional=True)
    yield Row(None, ("--offline",), optional=True)
    yield Row(None, ("--log-colors", "off"), optional=True)
    yield Row(None, ("--verbosity", "3"), (("verbosity", 3, None),), optional=True)


def list_option_rows(launch: Launch) -> Iterator[Row]:
    """Yield those that only a session with certain options has."""
    yield from _devices(launch)
    if (flash := launch.flash_attention) is not None:
        member = f"LLAMA_FLASH_ATTN_TYPE_{'ENABLED' if flash else 'DISABLED'}"
        words = ("--flash-attn", "on" if flash else "off")
        yield Row("flash_attention", words, (("flash_attn_type", member, "llama_flash_attn_type"),))
    if not launch.kv_offload:
        yield Row("kv_offload", ("--no-kv-offload",), (("no_kv_offload", True, None),))
    for name in ("cache_type_k", "cache_type_v"):
        if (kind := getattr(launch, name)) is not None:
            words = (f"--{name.replace('_', '-')}", kind)
            yield Row(name, words, ((name, f"GGML_TYPE_{kind.upper()}", "ggml_type"),))
    if launch.rope_freq_base is not None:
        base = float(launch.rope_freq_base)
        yield Row("rope_freq_base", ("--rope-freq-base", repr(base)), (("rope_freq_base", base, None),))
    if launch.kv_folder is not None:
        words = (KV_FOLDER, str(launch.kv_folder))
        # The wheel puts a file's name right behind it.
        yield Row("kv_cache_bytes", words, (("slot_save_path", f"{launch.kv_folder}/", None),), optional=True)
    if launch.metadata:
        yield Row("context_length", ("--override-kv", ",".join(launch.metadata)))
    yield from _files(launch)


def _devices(launch: Launch) -> Iterator[Row]:
    # Optional: a build without these has no GPU to be kept from.
    if launch.device.kind == "cpu":
        yield Row("device", ("--device", "none"), (("no_op_offload", True, None),), optional=True)
        yield Row("device", ("--gpu-layers", "0"), (("n_gpu_layers", 0, None),), optional=True)
    elif (layers := launch.gpu_layers) is not None:
        yield Row("gpu_layers", ("--gpu-layers", str(layers)), (("n_gpu_layers", layers, None),))
    if (gpu := launch.gpu) is not None:
        one = (("main_gpu", gpu.index, None), ("split_mode", "LLAMA_SPLIT_MODE_NONE", "llama_split_mode"))
        yield Row("device=gpu", ("--device", gpu.name), one)


def _files(launch: Launch) -> Iterator[Row]:
    on_cpu = launch.device.kind == "cpu"
    if launch.lora:
        # Scales are sent with each request: a request without them would reuse what another adapter has read.
        yield Row("lora", ("--lora", write_csv([str(lora.path) for lora in launch.lora])))
    if (draft := launch.draft_model) is not None:
        fields = (("speculative.draft.mparams.path", str(draft), None),)
        yield Row("draft_model", ("--model-draft", str(draft)), fields)
        # Without it the model would be loaded and never asked (build 11434); before, a draft model was enough.
        kind = (("speculative.types", ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"], "common_speculative_type"),)
        yield Row("draft_model", ("--spec-type", "draft-simple"), kind, optional=True)
        if on_cpu:
            yield Row("device", ("--device-draft", "none"), optional=True)
            none = (("speculative.draft.n_gpu_layers", 0, None),)
            yield Row("device", ("--gpu-layers-draft", "0"), none, optional=True)
    if (projector := launch.mmproj) is not None:
        yield Row("mmproj", ("--mmproj", str(projector)), (("mmproj.path", str(projector), None),))
        if on_cpu:
            yield Row("device", ("--no-mmproj-offload",), (("mmproj_use_gpu", False, None),), optional=True)
    if (template := launch.chat_template) is not None:
        text = template.read_text(encoding="utf-8")
        yield Row("chat_template", ("--chat-template-file", str(template)), (("chat_template", text, None),))


def write_csv(values: Sequence[str]) -> str:
    """Return one line as the engine reads lists: what holds a comma or a quotation mark is quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
