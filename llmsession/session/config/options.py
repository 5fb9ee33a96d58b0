"""Options: what a Session runs. Given as keywords, or read from the environment and a YAML file (see options_file)."""

from __future__ import annotations

import difflib
import math
import os
import re
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
    "server_path": (str | Path | None, "the path of a llama-server or llamafile"),
    "python_path": (str | Path | None, "the path of a Python"),
    "cache_dir": (str | Path | None, "the path of a folder"),
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
    """What a Session runs. Every field has a default; each is checked when the Options are made.

    Example:
        Options(model="qwen3-0.6b", context_length=4096, parallel=8)

    Raises: ConfigError.
    """

    model: str | Path | None = None
    """The model: an alias from the registry, `hf:author/repo/HEAD/file`, or the path of a `.gguf` file. None: the
    bundled demonstration model. For the backend transformers: `hf:author/repo`, or the path of a folder of safetensors.
    With `remote`: the name that is sent to the server."""
    remote: str | None = None
    """`host:port` or the URL of a server that is already running. The session then starts and stops no server."""
    backend: str = "auto"
    """`auto`, `llama-server`, `llamafile`, `embedded` or `transformers`."""
    prompt_encoding: str | PromptEncoding | None = None
    """How prompts are written: an encoding, or its name in the registry. None: the registry's encoding for the model,
    else the model's own template. "chat": always the model's own template, through the chat endpoint."""
    context_length: int | None = None
    """Tokens that one conversation may use. None: the trained length, at most 8192. 0: the trained length. Memory grows
    with `context_length × parallel`."""
    parallel: int = 4
    """How many replies are generated at once."""
    device: str | Device = "best"
    """What the engine computes on: "best" (a GPU if the engine can use one, else the CPU), "cpu", "cpu:THREADS", "gpu",
    "gpu:INDEX", or a Device from `available_devices()`."""
    threads: int | None = None
    """CPU threads of the engine. None: as many as there are free cores."""
    gpu_layers: int | None = None
    """Layers of the model that are kept on the GPU. None: as many as fit."""
    flash_attention: bool | None = None
    """Whether the engine uses flash attention. None: the engine decides."""
    kv_offload: bool = True
    """Whether the KV cache is kept on the GPU, if there is one."""
    cache_type_k: str | None = None
    """The type of the KV cache's keys, such as "q8_0". None: f16."""
    cache_type_v: str | None = None
    """The type of the KV cache's values, such as "q8_0", which needs flash attention. None: f16."""
    rope_freq_base: float | None = None
    """The base frequency of RoPE. None: the model's, raised for a context longer than the trained one."""
    lora: tuple[Lora, ...] = ()
    """LoRA adapters: one or several paths, references or `Lora(path, scale)`."""
    draft_model: str | Path | None = None
    """A small model of the same vocabulary for speculative decoding: a path or a reference."""
    mmproj: str | Path | None = None
    """The projector that lets the model see images: a path or a reference."""
    chat_template: str | Path | None = None
    """A chat template in place of the model's: the path of a Jinja file, or its text."""
    sampling: Sampling | None = None
    """Sampler settings of every reply, on top of those that the registry recommends for the model."""
    server_path: str | Path | None = None
    """The `llama-server` or llamafile to run. None: it is searched for."""
    python_path: str | Path | None = None
    """The Python interpreter of an environment with transformers. None: the one that runs this program."""
    cache_dir: str | Path | None = None
    """The folder for engines, logs and saved KV. None: LLMSESSION_CACHE_DIR, else the user's cache folder."""
    check_memory: bool = True
    """Whether to refuse to start a model that does not seem to fit into the free memory."""
    kv_cache_bytes: int = 4 * 2**30
    """Bytes of disk space under `cache_dir` for the KV of conversations, with which a Chat continues at once after a
    restart. 0: none."""
    start_timeout: float = 120.0
    """Seconds without progress after which a start fails."""
    first_token_timeout: float = 600.0
    """Seconds from sending a request to its first token."""
    idle_timeout: float = 60.0
    """Seconds between two tokens. If the engine's slots make no progress for that long, it is restarted and its replies
    continue."""
    restart_limit: int = 5
    """How many times the engine is restarted within five minutes, at most."""
    extra_args: tuple[str, ...] = ()
    """Additional flags for llama-server, as on its command line."""
    on_progress: ProgressCallback | None = None
    """Called with a Progress while the engine or the model is downloaded, and while the model loads."""
    registry: str | Path | None = None
    """A file like knownllms.yaml, whose entries take precedence over the built-in ones."""
    hf_token: str | None = None
    """A Hugging Face token for gated and private repositories. None: that of `hf auth login` or HF_TOKEN."""
    offline: bool | None = None
    """True: nothing is downloaded. None: HF_HUB_OFFLINE decides."""
    api_key: str | None = None
    """The API key for the remote server."""
    headers: Mapping[str, str] = {}
    """Additional HTTP headers for the remote server."""
    verify: bool | str | Path = True
    """How the remote server's certificate is checked: True, False (not at all), or a file of trusted certificates."""

    @classmethod
    def load(cls, path: str | Path | None = None, **explicit: Any) -> Self:
        """Load options. Keywords override the environment, which overrides a YAML file, which overrides the defaults.

        Each field has an environment variable, such as LLMSESSION_PARALLEL=8. The file is `path`, or the one that
        LLMSESSION_CONFIG names; it is a mapping of fields to values.

        Raises: ConfigError, with file and line.
        """
        from llmsession.session.config.options_file import Fields, read_environment, read_file

        if unknown := sorted(set(explicit) - set(cls.__struct_fields__)):
            raise ConfigError(describe_unknown(unknown[0]))
        if path is None and (named := os.environ.get("LLMSESSION_CONFIG")):
            path = named
        # A function cannot be given in a file or a variable.
        types = {field.name: field.type for field in msgspec.structs.fields(cls) if field.name != "on_progress"}
        fields = Fields(types=types, secrets=SECRETS, check=_check_alone, describe_unknown=describe_unknown)
        read = dict(read_file(Path(path), fields)) if path is not None else {}
        return cls(**(read | read_environment(os.environ, fields) | explicit))

    def __repr__(self) -> str:
        """Return the fields that differ from the defaults, with secrets hidden."""
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
        for name in _KINDS:
            _check_kind(name, getattr(self, name))
        msgspec.structs.force_setattr(self, "device", device_id(self.device))
        msgspec.structs.force_setattr(self, "lora", as_loras(self.lora))
        check_engine_options(self)
        if self.chat_template is not None and self.prompt_encoding not in (None, "chat"):
            raise ConfigError("chat_template and prompt_encoding both say how a prompt looks: give one of them")
        _check_headers(self.headers)
        msgspec.structs.force_setattr(self, "headers", {name: text.strip() for name, text in self.headers.items()})
        for name in ("api_key", "hf_token"):
            msgspec.structs.force_setattr(self, name, _read_key(name, getattr(self, name)))
        if self.remote is None and (self.api_key is not None or self.headers or self.verify is not True):
            raise ConfigError("api_key, headers and verify are for a server that is already there: name it, remote=")


def make_options(given: Options | str | Path | None, fields: dict[str, Any]) -> Options:
    """Return the Options for a Session's arguments: Options or a model, and further fields. Raises ConfigError."""
    if unknown := sorted(set(fields) - set(Options.__struct_fields__)):
        raise ConfigError(describe_unknown(unknown[0]))
    if isinstance(given, Options):
        return msgspec.structs.replace(given, **fields) if fields else given
    if given is not None and not isinstance(given, str | Path):
        raise ConfigError(f"a session is opened with Options or a model, not with {type(given).__name__}")
    if given is not None and "model" in fields:
        raise ConfigError("the model is given twice")
    return Options(**(fields if given is None else {"model": given, **fields}))


def _check_kind(name: str, value: object) -> None:
    kinds, what = _KINDS[name]
    if not isinstance(value, kinds):
        shown = type(value).__name__ if name in SECRETS else repr(value)
        raise ConfigError(f"{name} is {what}, not {shown}")
    if isinstance(value, str | Path) and name not in (*SECRETS, "chat_template") and not _can_be_passed(str(value)):
        raise ConfigError(f"{name} holds a character that no name or path can: {str(value)!r}")


def _can_be_passed(text: str) -> bool:
    """Whether the system can be given this as a name: without NUL, and in its encoding."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _check_whole(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value <= 0:
        raise ConfigError(f"{name} is a number of seconds above 0, not {value!r}")


# RFC 9110, 5.1 and 5.5; letters beyond ASCII have no agreed meaning.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


def _check_headers(value: object) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"headers is a mapping of names to texts, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError("headers is a mapping of names to texts")
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"headers: {name!r} is not the name of a header")
        if not _HEADER_VALUE.fullmatch(text.strip()):
            raise ConfigError(f"headers: the value of {name!r} holds a character that no header can")


def _read_key(name: str, value: str | None) -> str | None:
    """Return the key without the end of its line, as `$(cat key)` or a file leaves it. Raises ConfigError."""
    if value is None:
        return None
    key = value.strip().removeprefix("\ufeff").strip()
    if not _HEADER_VALUE.fullmatch(key):
        raise ConfigError(f"{name} holds a character that no HTTP header can: copy the key again")
    return key


def _check_alone(name: str, value: Any) -> None:
    """Raise ConfigError if the value of this field is invalid by itself.

    Fields for a remote server are checked as if one was named: how fields fit together is checked when all are known.
    """
    Options(**{"remote": "localhost" if name in ("api_key", "headers", "verify") else None, name: value})


def describe_unknown(name: str) -> str:
    """Return the error message for an unknown option."""
    fields = Options.__struct_fields__
    near = difflib.get_close_matches(name, fields, n=1)
    return f"{name!r} is not an option: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}")


# The types in which llama.cpp can store keys and values; all but the first three are quantized.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


_WHOLE_TYPES = CACHE_TYPES[:3]


def check_engine_options(options: Options) -> None:
    """Raise ConfigError if a value is invalid, or two of them contradict each other."""
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
            f"cache_type_v={options.cache_type_v!r} needs flash attention: remove flash_attention=False, "
            f"or use one of {', '.join(_WHOLE_TYPES)}"
        )
    base: object = options.rope_freq_base
    if base is not None and (isinstance(base, bool) or not isinstance(base, int | float) or not 0 < base < math.inf):
        raise ConfigError(f"rope_freq_base is a number above 0, such as 10000.0, not {base!r}")


def is_template_text(given: str | Path) -> bool:
    """Whether `given` is the text of a Jinja template, and not the path of one."""
    return isinstance(given, str) and ("{%" in given or "{{" in given)
