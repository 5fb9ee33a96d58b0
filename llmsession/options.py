"""Options: what a Session is asked to run. Checked when made, by keyword."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llmsession.errors import ConfigError
from llmsession.models.encoding import PromptEncoding
from llmsession.sampling import Sampling

BACKENDS = ("auto", "llama-server", "embedded")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a Session is asked to run.

    `model`: None for the bundled demonstration model, or the path of a `.gguf` file. `prompt_encoding`: None for what
    the registry says of the model, a name from it, a PromptEncoding, or "chat" for the chat endpoint with the model's
    own template. `context_length` is for one conversation, in tokens: None for the trained length but at most 8192, 0
    for the trained length; memory grows with `context_length × parallel`. `parallel` replies are generated at once.
    `extra_args` are llama-server's own flags. Time-outs are in seconds; `start_timeout` counts from each progress.
    `on_progress` is called with the share of the model that is loaded, 0.0 to 1.0.
    """

    model: str | Path | None = None
    backend: str = "auto"
    prompt_encoding: str | PromptEncoding | None = None
    context_length: int | None = None
    parallel: int = 4
    threads: int | None = None
    sampling: Sampling | None = None
    server_path: str | Path | None = None
    cache_dir: str | Path | None = None
    start_timeout: float = 120.0
    first_token_timeout: float = 600.0
    idle_timeout: float = 60.0
    extra_args: tuple[str, ...] = ()
    on_progress: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend={self.backend!r} is unknown: use one of {', '.join(BACKENDS)}")
        if self.model is not None and not isinstance(self.model, str | Path):
            raise ConfigError(f"model is a name or the path of a .gguf file, not {self.model!r}")
        for name, least in (("context_length", 0), ("parallel", 1), ("threads", 1)):
            _check_whole(name, getattr(self, name), least)
        for name in ("start_timeout", "first_token_timeout", "idle_timeout"):
            _check_seconds(name, getattr(self, name))
        if isinstance(self.extra_args, str):
            raise ConfigError('extra_args is a list of arguments, such as ("--flash-attn", "on"), not one str')
        msgspec.structs.force_setattr(self, "extra_args", tuple(self.extra_args))


def make_options(given: Options | str | Path | None, fields: dict[str, Any]) -> Options:
    """From what a Session was called with: Options, or a model and further fields. Raises ConfigError."""
    unknown = sorted(set(fields) - set(Options.__struct_fields__))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such option; there are {', '.join(Options.__struct_fields__)}")
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
