"""knownllms.yaml: how the models that we know want to be spoken to.

Read with `safe_load` only, decoded strictly: a misspelt field is an error that names it, never a default in silence.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import yaml

from llmsession.errors import ConfigError
from llmsession.models.encoding import PromptEncoding


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds. `encodings` are by name."""

    encodings: dict[str, PromptEncoding] = {}


def shipped_path() -> Path:
    """The registry that comes with the package; at the top of the repository where it runs from a checkout."""
    beside = Path(__file__).with_name("knownllms.yaml")
    return beside if beside.exists() else Path(__file__).parents[2] / "knownllms.yaml"


@functools.cache
def load_shipped() -> Registry:
    """The shipped registry, read once."""
    return load_known_llms(shipped_path())


def load_known_llms(path: Path | None = None) -> Registry:
    """The registry in a file, or the shipped one. Raises ConfigError."""
    if path is None:
        return load_shipped()
    try:
        decoded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return msgspec.convert(decoded, Registry)
    except OSError as error:
        raise ConfigError(f"cannot read the registry {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the registry {path} is no YAML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"the registry {path} cannot be used: {error}") from error
