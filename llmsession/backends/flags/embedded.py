"""The user's own flags for the embedded engine, which has no command line: each is a field of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmsession.backends.flags.extra_args import normalize_flag
from llmsession.backends.flags.launch_table import Setting
from llmsession.types.errors import ConfigError, UnsupportedFeatureError

_NAME = "embedded"
# The length of llama.cpp's list of each device's share.
_MOST_DEVICES = 128


def _members(enumeration: str, prefix: str, values: str) -> Callable[[str], tuple[Any, str]]:
    """Return a reader for members of an enumeration.

    `values`: the words of the command line, with `=MEMBER` if the member is not the word in capitals.
    """
    table = {
        word: f"{prefix}_{member or word.upper()}" for word, _, member in (v.partition("=") for v in values.split())
    }

    def read(text: str) -> tuple[Any, str]:
        if text not in table:
            raise ValueError(f"one of {', '.join(table)}")
        return table[text], enumeration

    return read


def _several(read: Callable[[str], tuple[Any, str]]) -> Callable[[str], tuple[Any, str]]:
    def read_all(text: str) -> tuple[Any, str]:
        found = [read(part) for part in text.split(",")]
        return [member for member, _ in found], found[0][1]

    return read_all


def _plain(kind: Callable[[str], Any], what: str) -> Callable[[str], tuple[Any, None]]:
    def read(text: str) -> tuple[Any, None]:
        try:
            return kind(text), None
        except (ValueError, RecursionError):
            raise ValueError(what) from None

    return read


def _read_folder(text: str) -> str:
    """Return the folder with a slash at its end: the engine appends a file's name to it."""
    if not Path(text).is_dir():
        raise ValueError
    return text.rstrip("/") + "/"


def _read_kwargs(text: str) -> dict[str, str]:
    found = msgspec.json.decode(text, type=dict[str, Any])
    return {name: msgspec.json.encode(value).decode() for name, value in found.items()}


def _read_switch(text: str) -> bool:
    return {"on": True, "off": False}[text] if text in ("on", "off") else bool(int(text))


def _read_fractions(text: str) -> list[float]:
    given = [float(part) for part in text.split(",")]
    return given + [0.0] * (_MOST_DEVICES - len(given))


_CACHE_TYPE = _members("ggml_type", "GGML_TYPE", "f32 f16 bf16 q8_0 q4_0 q4_1 iq4_nl q5_0 q5_1")
_WHOLE = _plain(int, "a whole number")
_NUMBER = _plain(float, "a number")
_TEXT = _plain(str, "a text")
_FOLDER = _plain(_read_folder, "a folder that is there")
_SWITCH = _plain(_read_switch, "on or off")
_FRACTIONS = _plain(_read_fractions, "numbers with commas between them")
_KWARGS = _plain(_read_kwargs, "an object of JSON")

# Flags with a value: their names, the fields that they set, and the reader of the value.
_VALUES: list[tuple[str, str, Callable[[str], tuple[Any, str | None]]]] = [
    ("-n --predict --n-predict", "n_predict", _WHOLE),
    ("-b --batch-size", "n_batch", _WHOLE),
    ("-ub --ubatch-size", "n_ubatch", _WHOLE),
    ("--keep", "n_keep", _WHOLE),
    ("-tb --threads-batch", "cpuparams_batch.n_threads", _WHOLE),
    ("--poll", "cpuparams.poll", _WHOLE),
    ("-cram --cache-ram", "cache_ram_mib", _WHOLE),
    ("-ctxcp --ctx-checkpoints --swa-checkpoints", "n_ctx_checkpoints", _WHOLE),
    ("-cms --checkpoint-min-step", "checkpoint_min_step", _WHOLE),
    ("--cache-reuse", "n_cache_reuse", _WHOLE),
    ("--threads-http", "n_threads_http", _WHOLE),
    ("-to --timeout", "timeout_read timeout_write", _WHOLE),
    ("--sse-ping-interval", "sse_ping_interval", _WHOLE),
    ("--sleep-idle-seconds", "sleep_idle_seconds", _WHOLE),
    ("--slot-save-path", "slot_save_path", _FOLDER),
    ("--media-path", "media_path", _FOLDER),
    ("-sps --slot-prompt-similarity", "slot_prompt_similarity", _NUMBER),
    ("-lv --verbosity --log-verbosity", "verbosity", _WHOLE),
    ("-fa --flash-attn", "flash_attn_type", _members(
        "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE", "on=ENABLED off=DISABLED auto")),
    ("-ctk --cache-type-k", "cache_type_k", _CACHE_TYPE),
    ("-ctv --cache-type-v", "cache_type_v", _CACHE_TYPE),
    ("--rope-freq-base", "rope_freq_base", _NUMBER),
    ("--rope-freq-scale", "rope_freq_scale", _NUMBER),
    ("--rope-scaling", "rope_scaling_type", _members(
        "llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE", "none linear yarn")),
    ("--yarn-orig-ctx", "yarn_orig_ctx", _WHOLE),
    ("--yarn-ext-factor", "yarn_ext_factor", _NUMBER),
    ("--yarn-attn-factor", "yarn_attn_factor", _NUMBER),
    ("--yarn-beta-slow", "yarn_beta_slow", _NUMBER),
    ("--yarn-beta-fast", "yarn_beta_fast", _NUMBER),
    ("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", _WHOLE),
    ("-sm --split-mode", "split_mode", _members("llama_split_mode", "LLAMA_SPLIT_MODE", "none layer row tensor")),
    ("-mg --main-gpu", "main_gpu", _WHOLE),
    ("-ts --tensor-split", "tensor_split", _FRACTIONS),
    ("-fit --fit", "fit_params", _SWITCH),
    ("-lm --load-mode", "load_mode", _members(
        "llama_load_mode", "LLAMA_LOAD_MODE", "auto none mmap mlock mmap+mlock=MMAP_MLOCK dio=DIRECT_IO")),
    ("--numa", "numa", _members("ggml_numa_strategy", "GGML_NUMA_STRATEGY", "distribute isolate numactl")),
    ("--samplers", "sampling.samplers", _TEXT),
    ("--temp --temperature", "sampling.temp", _NUMBER),
    ("--top-k", "sampling.top_k", _WHOLE),
    ("--top-p", "sampling.top_p", _NUMBER),
    ("--min-p", "sampling.min_p", _NUMBER),
    ("--typical --typical-p", "sampling.typ_p", _NUMBER),
    ("--xtc-probability", "sampling.xtc_probability", _NUMBER),
    ("--xtc-threshold", "sampling.xtc_threshold", _NUMBER),
    ("--repeat-last-n", "sampling.penalty_last_n", _WHOLE),
    ("--repeat-penalty", "sampling.penalty_repeat", _NUMBER),
    ("--presence-penalty", "sampling.penalty_present", _NUMBER),
    ("--frequency-penalty", "sampling.penalty_freq", _NUMBER),
    ("--dry-multiplier", "sampling.dry_multiplier", _NUMBER),
    ("--dry-base", "sampling.dry_base", _NUMBER),
    ("--dry-allowed-length", "sampling.dry_allowed_length", _WHOLE),
    ("--dry-penalty-last-n", "sampling.dry_penalty_last_n", _WHOLE),
    ("--dynatemp-range", "sampling.dynatemp_range", _NUMBER),
    ("--dynatemp-exp", "sampling.dynatemp_exponent", _NUMBER),
    ("--mirostat", "sampling.mirostat", _WHOLE),
    ("--mirostat-lr", "sampling.mirostat_eta", _NUMBER),
    ("--mirostat-ent", "sampling.mirostat_tau", _NUMBER),
    ("--reasoning-format", "reasoning_format", _members(
        "common_reasoning_format", "COMMON_REASONING_FORMAT",
        "none auto deepseek deepseek-legacy=DEEPSEEK_LEGACY")),
    ("--chat-template-kwargs", "default_template_kwargs", _KWARGS),
    ("--pooling", "pooling_type", _members("llama_pooling_type", "LLAMA_POOLING_TYPE", "none mean cls last rank")),
    ("--embd-normalize", "embd_normalize", _WHOLE),
    ("--image-min-tokens", "image_min_tokens", _WHOLE),
    ("--image-max-tokens", "image_max_tokens", _WHOLE),
    ("--spec-type", "speculative.types", _several(_members(
        "common_speculative_type", "COMMON_SPECULATIVE_TYPE",
        "none draft-simple=DRAFT_SIMPLE draft-eagle3=DRAFT_EAGLE3 draft-mtp=DRAFT_MTP draft-dflash=DRAFT_DFLASH "
        "draft-dspark=DRAFT_DSPARK ngram-simple=NGRAM_SIMPLE ngram-map-k=NGRAM_MAP_K ngram-map-k4v=NGRAM_MAP_K4V "
        "ngram-mod=NGRAM_MOD ngram-cache=NGRAM_CACHE"))),
    ("--spec-draft-n-max", "speculative.draft.n_max", _WHOLE),
    ("--spec-draft-n-min", "speculative.draft.n_min", _WHOLE),
    ("--spec-draft-p-min --draft-p-min", "speculative.draft.p_min", _NUMBER),
    ("--spec-draft-p-split --draft-p-split", "speculative.draft.p_split", _NUMBER),
    ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", "speculative.draft.n_gpu_layers", _WHOLE),
    ("-ctkd --cache-type-k-draft --spec-draft-type-k", "speculative.draft.cache_type_k", _CACHE_TYPE),
    ("-ctvd --cache-type-v-draft --spec-draft-type-v", "speculative.draft.cache_type_v", _CACHE_TYPE),
]  # fmt: skip

# Flags without a value: their names, the field, and the value that it is set to.
_SWITCHES: list[tuple[str, str, bool]] = [
    ("--swa-full", "swa_full", True),
    ("-kvo --kv-offload", "no_kv_offload", False),
    ("-nkvo --no-kv-offload", "no_kv_offload", True),
    ("--repack", "no_extra_bufts", False),
    ("-nr --no-repack", "no_extra_bufts", True),
    ("--no-host", "no_host", True),
    ("--op-offload", "no_op_offload", False),
    ("--no-op-offload", "no_op_offload", True),
    ("--mmproj-offload", "mmproj_use_gpu", True),
    ("--no-mmproj-offload", "mmproj_use_gpu", False),
    ("--check-tensors", "check_tensors", True),
    ("--ignore-eos", "sampling.ignore_eos", True),
    ("--warmup", "warmup", True),
    ("--no-warmup", "warmup", False),
    ("--context-shift", "ctx_shift", True),
    ("--no-context-shift", "ctx_shift", False),
    ("--jinja", "use_jinja", True),
    ("--no-jinja", "use_jinja", False),
    ("-sp --special", "special", True),
    ("--perf", "no_perf", False),
    ("--no-perf", "no_perf", True),
    ("-cb --cont-batching", "cont_batching", True),
    ("-nocb --no-cont-batching", "cont_batching", False),
    ("--cache-prompt", "cache_prompt", True),
    ("--no-cache-prompt", "cache_prompt", False),
    ("--cache-idle-slots", "cache_idle_slots", True),
    ("--no-cache-idle-slots", "cache_idle_slots", False),
    ("--prefill-assistant", "prefill_assistant", True),
    ("--no-prefill-assistant", "prefill_assistant", False),
    ("--skip-chat-parsing", "force_pure_content_parser", True),
    ("--no-skip-chat-parsing", "force_pure_content_parser", False),
    ("--props", "endpoint_props", True),
    ("--embedding --embeddings", "embedding", True),
]

_READERS = {flag: (fields, read) for flags, fields, read in _VALUES for flag in flags.split()}
_SETTERS = {flag: (field, value) for flags, field, value in _SWITCHES for flag in flags.split()}


def translate_flags(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield the settings that the flags stand for, in order. Raises UnsupportedFeatureError and ConfigError."""
    rest = iter(arguments)
    for argument in rest:
        flag = normalize_flag(argument)
        if flag in _SETTERS:
            field, switch = _SETTERS[flag]
            yield field, switch, None
        elif flag in _READERS:
            fields, read = _READERS[flag]
            text = next(rest, None)
            if text is None:
                raise ConfigError(f"extra_args: {argument} needs a value after it")
            try:
                value, enumeration = read(text)
            except ValueError as error:
                raise ConfigError(f"extra_args: {argument} takes {error}, not {text!r}") from None
            for field in fields.split():
                yield field, value, enumeration
        else:
            raise UnsupportedFeatureError(
                f"the embedded engine has no command line, and nothing in it is {argument}: take it out of extra_args, "
                'or use backend="llama-server"',
                feature="extra_args",
                backend=_NAME,
            )
