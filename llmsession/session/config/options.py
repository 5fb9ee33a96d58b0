"""Options: what a Session is asked to run. Checked when made: by keyword, from the environment, from a YAML file."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from llmsession.models.encoding import PromptEncoding
from llmsession.types.device import Device, device_id, parse_device
from llmsession.types.errors import ConfigError
from llmsession.types.lora import Lora, as_loras
from llmsession.types.progress import ProgressCallback
from llmsession.types.sampling import Sampling

BACKENDS = ("auto", "llama-server", "llamafile", "embedded", "transformers")
_KINDS: dict[str, tuple[Any, str]] = {
    "model": (str | Path | None, "the path of a .gguf file, a name or a reference"),
    "remote": (str | None, "a text"),
    "api_key": (str | None, "a text"),
    "hf_token": (str | None, "a text"),
    "python_path": (str | Path | None, "the path of a Python"),
    "registry": (str | Path | None, "the path of a file like knownllms.yaml"),
    "offline": (bool | None, "True, False or None"),
    "check_memory": (bool, "True or False"),
    "draft_model": (str | Path | None, "the path of a .gguf file, or a reference"),
    "mmproj": (str | Path | None, "the path of a .gguf file, or a reference"),
    "chat_template": (str | Path | None, "the path of a Jinja file, or the template's text"),
    "verify": (bool | str | Path, "True, False or a file of certificates"),
}
# Options that are whole numbers, and the least that each may be.
_WHOLE = {"context_length": 0, "parallel": 1, "threads": 1, "gpu_layers": 0, "restart_limit": 0, "kv_cache_bytes": 0}
# Never printed.
SECRETS = ("api_key", "headers", "hf_token")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a Session is asked to run.

    `model`: None for the bundled demonstration model, the path of a `.gguf` file, `hf:author/repo/HEAD/file`, or an
    alias from the registry; for the backend transformers the path of a folder of safetensors, or `hf:author/repo`.
    `python_path`: the Python of the environment that has transformers (None: ours). `prompt_encoding`: None for what
    the registry says of the model, a name from it, a PromptEncoding, or "chat" for the chat endpoint with the model's
    own template. `context_length` is for one conversation, in tokens: None for the trained length but at most 8192, 0
    for the trained length; memory grows with `context_length × parallel`. `parallel` replies are generated at once.
    `extra_args` are llama-server's own flags. Time-outs are in seconds; `start_timeout` counts from each progress.
    `check_memory` False starts a model also where the memory that is free does not seem to hold it.
    `kv_cache_bytes` of disk under `cache_dir` may hold what engines have read of the conversations of a Chat, so that
    they go on at once after a restart; 0 for none of it.
    `on_progress` is called with a Progress: how much of the model is fetched, then loaded. A server that ends, or gives
    no token for `idle_timeout` while nothing in it moves, is started again, and its replies go on; more than
    `restart_limit` times in five minutes it is not.

    `device`: "best" for a GPU where the engine has one, else the CPU; "cpu", "cpu:THREADS", "gpu", "gpu:INDEX", or a
    Device of `available_devices()`. `gpu_layers`: None for as many as fit. `flash_attention` None: as the engine
    thinks best. `cache_type_k`, `cache_type_v`: what keys and values are kept in, such as "q8_0". `lora`: adapters, as
    paths or Lora(path, scale). `draft_model` guesses ahead for a larger one of the same vocabulary; `mmproj` lets a
    model see; each is a path or a reference. `chat_template`: the path of a Jinja file, or its text; the chat endpoint
    is then used.

    `registry` is a file like knownllms.yaml, which adds to it. `hf_token` is for gated and private repositories; None:
    what `hf auth login` or HF_TOKEN has. `offline` True fetches nothing; None: as HF_HUB_OFFLINE says.

    `remote`: `host:port` or the URL of a server that is already there; nothing is started then, and nothing ended.
    `model` is the name that is sent to it. `api_key`, `headers` and `verify` (False for any certificate, or a file of
    trusted ones) are for it alone.
    """

    model: str | Path | None = None
    remote: str | None = None
    backend: str = "auto"
    prompt_encoding: str | PromptEncoding | None = None
    context_length: int | None = None
    parallel: int = 4
    device: str | Device = "best"
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_offload: bool = True
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    rope_freq_base: float | None = None
    lora: tuple[Lora, ...] = ()
    draft_model: str | Path | None = None
    mmproj: str | Path | None = None
    chat_template: str | Path | None = None
    sampling: Sampling | None = None
    server_path: str | Path | None = None
    python_path: str | Path | None = None
    cache_dir: str | Path | None = None
    check_memory: bool = True
    kv_cache_bytes: int = 4 * 2**30
    start_timeout: float = 120.0
    first_token_timeout: float = 600.0
    idle_timeout: float = 60.0
    restart_limit: int = 5
    extra_args: tuple[str, ...] = ()
    on_progress: ProgressCallback | None = None
    registry: str | Path | None = None
    hf_token: str | None = None
    offline: bool | None = None
    api_key: str | None = None
    headers: Mapping[str, str] = {}
    verify: bool | str | Path = True

    @classmethod
    def load(cls, path: str | Path | None = None, **explicit: Any) -> Self:
        """From what is given here, else the environment, else a YAML file, else the defaults.

        Each field may be a variable, such as LLMSESSION_PARALLEL=8. The file is `path`, or what LLMSESSION_CONFIG
        names; it is a mapping of fields. Raises ConfigError, with file and line.
        """
        from llmsession.session.config.options_file import Fields, read_environment, read_file

        if unknown := sorted(set(explicit) - set(cls.__struct_fields__)):
            raise ConfigError(describe_unknown(unknown[0]))
        if path is None and (named := os.environ.get("LLMSESSION_CONFIG")):
            path = named
        # A function cannot be written down.
        types = {field.name: field.type for field in msgspec.structs.fields(cls) if field.name != "on_progress"}
        fields = Fields(types=types, secrets=SECRETS, check=_check_alone, describe_unknown=describe_unknown)
        read = dict(read_file(Path(path), fields)) if path is not None else {}
        return cls(**(read | read_environment(os.environ, fields) | explicit))

    def __repr__(self) -> str:
        """What differs from the defaults, without secrets."""
        shown = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value != (field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()):
                shown.append(f"{field.name}={'…' if field.name in SECRETS else repr(value)}")
        return f"Options({', '.join(shown)})"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend={self.backend!r} is unknown: use one of {', '.join(BACKENDS)}")
        for name, least in _WHOLE.items():
            _check_whole(name, getattr(self, name), least)
        for name in ("start_timeout", "first_token_timeout", "idle_timeout"):
            _check_seconds(name, getattr(self, name))
        if isinstance(self.extra_args, str):
            raise ConfigError('extra_args is a list of arguments, such as ("--flash-attn", "on"), not one str')
        msgspec.structs.force_setattr(self, "extra_args", tuple(self.extra_args))
        for name, (kinds, what) in _KINDS.items():
            if not isinstance(value := getattr(self, name), kinds):
                shown = type(value).__name__ if name in SECRETS else repr(value)
                raise ConfigError(f"{name} is {what}, not {shown}")
        msgspec.structs.force_setattr(self, "device", device_id(self.device))
        msgspec.structs.force_setattr(self, "lora", as_loras(self.lora))
        check_engine_options(self)
        if self.chat_template is not None and self.prompt_encoding not in (None, "chat"):
            raise ConfigError("chat_template and prompt_encoding both say how a prompt looks: give one of them")
        _check_headers(self.headers)
        if self.remote is None and (self.api_key is not None or self.headers or self.verify is not True):
            raise ConfigError("api_key, headers and verify are for a server that is already there: name it, remote=")


def make_options(given: Options | str | Path | None, fields: dict[str, Any]) -> Options:
    """From what a Session was called with: Options, or a model and further fields. Raises ConfigError."""
    if unknown := sorted(set(fields) - set(Options.__struct_fields__)):
        raise ConfigError(describe_unknown(unknown[0]))
    if isinstance(given, Options):
        return msgspec.structs.replace(given, **fields) if fields else given
    if given is not None and not isinstance(given, str | Path):
        raise ConfigError(f"a session is opened with Options or a model, not with {type(given).__name__}")
    if given is not None and "model" in fields:
        raise ConfigError("the model is given twice")
    return Options(**(fields if given is None else {"model": given, **fields}))


def _check_whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value <= 0:
        raise ConfigError(f"{name} is a number of seconds above 0, not {value!r}")


def _check_headers(value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"headers is a mapping of names to texts, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str) or not name.isascii() or not name.strip():
            raise ConfigError("headers is a mapping of names to texts")
        if any(mark in name + text for mark in "\r\n\0"):
            raise ConfigError(f"the header {name!r} holds a line break")


def _check_alone(name: str, value: Any) -> None:
    """With a remote beside it: whether both go together is seen when all fields are known. Raises ConfigError."""
    Options(**{"remote": "localhost" if name in ("api_key", "headers", "verify") else None, name: value})


def describe_unknown(name: str) -> str:
    """What to say of an option that there is not."""
    fields = Options.__struct_fields__
    near = difflib.get_close_matches(name, fields, n=1)
    return f"{name!r} is no option: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}")


# What llama.cpp can keep keys and values in; all but the first three are quantized.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


_WHOLE_TYPES = CACHE_TYPES[:3]


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
