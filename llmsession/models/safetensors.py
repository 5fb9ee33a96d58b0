"""Reads a folder of safetensors as Hugging Face's libraries write it: the facts in its JSON files.

https://huggingface.co/docs/safetensors and https://huggingface.co/docs/tokenizers: no weights are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmsession.types.errors import InvalidModelError

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
# Configurations are some kilobytes; a tokenizer with its merges tens of megabytes.
LARGEST_FILE = 1 << 28

_T = TypeVar("_T")


class WeightsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The facts in the files. `architecture` is a class of transformers; `chat_template` is Jinja, as text.

    `size_bytes` is that of the weights.
    """

    architecture: str | None
    trained_context_length: int | None
    vocab_size: int | None
    size_bytes: int
    chat_template: str | None


class _Text(msgspec.Struct):
    """The language model's part of a multimodal configuration."""

    max_position_embeddings: int | None = None
    vocab_size: int | None = None


class _Config(msgspec.Struct):
    architectures: list[str] | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    max_sequence_length: int | None = None
    vocab_size: int | None = None
    text_config: _Text | None = None


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] = {}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def is_whole(folder: Path) -> bool:
    """Return whether all files exist that its own files name; an interrupted download lacks some."""
    try:
        return (folder / CONFIG).is_file() and all(path.is_file() for path in _list_weights(folder))
    except InvalidModelError:
        return False


def read_weights_info(folder: Path) -> WeightsInfo:
    """Raises InvalidModelError if the folder is not one of weights, or lacks a file that it names."""
    if not (folder / CONFIG).is_file():
        raise _refuse(folder, f"it has no {CONFIG}: is it a folder of safetensors?")
    config = _read(folder, CONFIG, _Config)
    weights = _list_weights(folder)
    if missing := next((path.name for path in weights if not path.is_file()), None):
        raise _refuse(folder, f"it has no {missing}")
    text = config.text_config or _Text()
    return WeightsInfo(
        architecture=config.architectures[0] if config.architectures else None,
        trained_context_length=config.max_position_embeddings
        or text.max_position_embeddings
        or config.n_positions
        or config.max_sequence_length,
        vocab_size=config.vocab_size or text.vocab_size,
        size_bytes=sum(path.stat().st_size for path in weights),
        chat_template=_read_template(folder),
    )


def read_added_tokens(folder: Path) -> dict[int, str]:
    """Return the spellings that the tokenizer always takes for tokens, by id: special ones and others.

    Empty if no file tells. Raises InvalidModelError if one cannot be read.
    """
    found: dict[int, str] = {}
    if (folder / "tokenizer.json").is_file():
        found |= {token.id: token.content for token in _read(folder, "tokenizer.json", _Tokenizer).added_tokens}
    if (folder / "tokenizer_config.json").is_file():
        said = _read(folder, "tokenizer_config.json", _TokenizerConfig).added_tokens_decoder
        found |= {int(id_): str(token.get("content", "")) for id_, token in said.items() if id_.isdecimal()}
    return {id_: spelling for id_, spelling in found.items() if spelling}


def _list_weights(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(_read(folder, _INDEX, _Index).weight_map.values()))]
    return sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]


def _read_template(folder: Path) -> str | None:
    """Return the template from its own file, else the tokenizer's; of several, `default`."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = _read(folder, name, _TokenizerConfig).chat_template
            if isinstance(template, list):
                template = next((entry.template for entry in template if entry.name == "default"), None)
            if template is not None:
                return template
    return None


def _read(folder: Path, name: str, kind: type[_T]) -> _T:
    try:
        if (folder / name).stat().st_size > LARGEST_FILE:
            raise _refuse(folder, f"its {name} is too large to be one")
        return msgspec.json.decode((folder / name).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refuse(folder, f"its {name} cannot be read: {error}") from error


def _refuse(folder: Path, why: str) -> InvalidModelError:
    return InvalidModelError(f"{folder} cannot be run: {why}", path=folder, reason=why)
