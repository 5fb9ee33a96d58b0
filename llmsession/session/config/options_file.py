"""Options from a YAML file or the environment. Each is checked by itself, so that an error can name its place."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from llmsession.system.yaml_file import FaultError, items, open_yaml, read_value
from llmsession.types.errors import ConfigError
from llmsession.types.lora import Lora
from llmsession.types.sampling import Sampling

PREFIX = "LLMSESSION_"

# Variables with this prefix that are not options: the options file, the table of releases, and those for the scripts of
# the repository.
_OTHER_VARIABLES = ("CONFIG", "PYTHON", "RELEASES", "TEST_LLAMA_SERVER")


class WrittenLora(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item in a list of adapters: `{path: some.gguf, scale: 0.5}`."""

    path: str
    scale: float = 1.0


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The options that may be given in a file or a variable.

    `types`: the type of each, by name. `secrets`: names of options that are never shown. `check` takes a name and its
    value, and raises ConfigError if it is invalid. `describe_unknown` returns the error message for an unknown name.
    """

    types: Mapping[str, Any]
    secrets: tuple[str, ...]
    check: Callable[[str, Any], None]
    describe_unknown: Callable[[str], str]


# The type of a field in a file or a variable, if it differs from the field's own type.
_WRITTEN_TYPES: dict[str, Any] = {
    "device": str,
    "lora": str | list[str | WrittenLora],
    "draft_model": str | None,
    "mmproj": str | None,
    "chat_template": str | None,
    "model": str | None,
    "server_path": str | None,
    "cache_dir": str | None,
    "registry": str | None,
    "verify": bool | str,
    "sampling": str | Sampling | None,
    "headers": dict[str, str],
    "extra_args": list[str],
}


def read_environment(environment: Mapping[str, str], fields: Fields) -> dict[str, Any]:
    """Return the fields whose variable is set, such as LLMSESSION_PARALLEL. Raises ConfigError with its name."""
    found = {}
    names = {f"{PREFIX}{name.upper()}": name for name in fields.types}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or not text or variable.removeprefix(PREFIX) in _OTHER_VARIABLES:
            continue
        if variable not in names:
            # Other programs may use the prefix as well, so only a likely typo is an error.
            if near := difflib.get_close_matches(variable, names, n=1, cutoff=0.9):
                raise ConfigError(f"{variable} is not an option: did you mean {near[0]}?")
            continue
        try:
            found[names[variable]] = _read_written(names[variable], _read_variable(names[variable], text), fields)
        except ConfigError as error:
            shown = "…" if names[variable] in fields.secrets else repr(text)
            raise ConfigError(f"the environment's {variable}={shown}: {error}") from None
    return found


def _read_variable(name: str, text: str) -> object:
    """Return the variable's text for fields that are text; split it for `extra_args`; else parse it as YAML."""
    if name == "extra_args":
        try:
            return shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"these are not arguments: {error}") from None
    if name in (
        "model",
        "remote",
        "backend",
        "server_path",
        "cache_dir",
        "api_key",
        "hf_token",
        "registry",
        "prompt_encoding",
        "device",
        "draft_model",
        "mmproj",
        "chat_template",
    ):
        return text
    return read_value(text)


def read_file(path: Path, fields: Fields) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a YAML file. Raises ConfigError with the file and, if known, the line."""
    with open_yaml(path) as file:
        if file.root is None:
            return
        if not isinstance(file.root, yaml.MappingNode):
            raise FaultError("the file is a mapping of options to values, such as `parallel: 8`", file.root)
        for name, key, value in items(file.root):
            if name == "on_progress":
                raise FaultError("on_progress is a function: it cannot stand in a file", key)
            if name not in fields.types:
                raise FaultError(fields.describe_unknown(name), key)
            try:
                yield name, _read_written(name, file.construct(value), fields)
            except ConfigError as error:
                raise FaultError(str(error), value) from None


def _read_written(name: str, value: object, fields: Fields) -> Any:
    """Convert a value from a file or a variable to the field's own type, and check it. Raises ConfigError."""
    hint = _WRITTEN_TYPES.get(name) or fields.types[name]
    try:
        converted = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from None
    if name == "sampling" and isinstance(converted, str):
        converted = _preset(converted)
    if name == "lora" and isinstance(converted, list):
        converted = tuple(Lora(each.path, each.scale) if isinstance(each, WrittenLora) else each for each in converted)
    fields.check(name, converted)
    return converted


def _preset(name: str) -> Sampling:
    preset = getattr(Sampling, name.upper(), None)
    if not isinstance(preset, Sampling):
        names = [name for name in dir(Sampling) if isinstance(getattr(Sampling, name), Sampling)]
        raise ConfigError(f"sampling={name!r} is not a preset: there are {', '.join(names)}")
    return preset
