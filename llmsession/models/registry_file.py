"""Reads knownllms.yaml and files like it strictly: a typo is an error with its line, never a default.

The file's schema, for editors, is made from the same types.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.references import PackedRepoRef
from llmsession.models.registry import KnownLLM, ModelDescription, Registry
from llmsession.system.yaml_file import FaultError, YamlFile, items, open_yaml
from llmsession.types.errors import ConfigError, InvalidRefError
from llmsession.types.sampling import Sampling

SCHEMA = Path(__file__).with_name("knownllms.schema.json")


class Entry(ModelDescription, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as written in the file. `prompt_encoding` is the name of one, or the encoding itself."""

    source: str
    packaging_type: Literal["gguf", "safetensors"] | None = None
    packagingtype: Literal["gguf", "safetensors"] | None = None  # how the Go package spells it
    upstream: str | None = None
    prompt_encoding: str | PromptEncoding | None = None


class File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The two sections. An encoding may be the name of another one."""

    encodings: dict[str, str | PromptEncoding] = {}
    knownllms: list[Entry] = []


# For "did you mean".
_FIELDS = (*Entry.__struct_fields__, *PromptEncoding.__struct_fields__, *Sampling.__struct_fields__)


def read_registry(path: Path, *, encodings: Mapping[str, PromptEncoding] = {}) -> Registry:
    """Read a registry. `encodings`: those it may name besides its own. Raises ConfigError with file and line."""
    with open_yaml(path) as file:
        if file.root is None:
            return Registry()
        sections = _find_sections(file.root)
        known = dict(encodings)
        own: dict[str, PromptEncoding] = {}
        if (section := sections.get("encodings")) is not None:
            for name, _, node in items(section):
                own[name] = known[name] = _read_encoding(file, node, known)
        llms: list[KnownLLM] = []
        if (section := sections.get("knownllms")) is not None:
            if not isinstance(section, yaml.SequenceNode):
                raise FaultError("knownllms is a list of models", section)
            for number, node in enumerate(section.value):
                known_llm = _read_entry(file, node, number, known)
                _check_new(known_llm, llms, node)
                llms.append(known_llm)
        return Registry(tuple(llms), own)


def _find_sections(root: yaml.Node) -> dict[str, yaml.Node]:
    if isinstance(root, yaml.SequenceNode):  # the Go package's file is the list alone
        return {"knownllms": root}
    sections = {name: node for name, _, node in items(root)}
    for name, node in sections.items():
        if name not in File.__struct_fields__:
            raise FaultError(f"{name!r} is not a section: there are {' and '.join(File.__struct_fields__)}", node)
    return sections


def _read_encoding(file: YamlFile, node: yaml.Node, encodings: Mapping[str, PromptEncoding]) -> PromptEncoding:
    read = file.convert(node, str | PromptEncoding, _FIELDS)
    return _named(read, encodings, node) if isinstance(read, str) else read


def _named(name: str, encodings: Mapping[str, PromptEncoding], node: yaml.Node) -> PromptEncoding:
    if name not in encodings:
        raise FaultError(f"no encoding is called {name!r}: there are {', '.join(sorted(encodings))}", node)
    return encodings[name]


def _read_entry(file: YamlFile, node: yaml.Node, number: int, encodings: Mapping[str, PromptEncoding]) -> KnownLLM:
    label = f"entry {number + 1} of knownllms"
    try:
        entry = file.convert(node, Entry, _FIELDS)
        label = entry.source
        fields = {name: getattr(entry, name) for name in Entry.__struct_fields__}
        spellings = (fields.pop("packagingtype"), fields.pop("packaging_type"))
        if isinstance(entry.prompt_encoding, str):
            place = next(value for name, _, value in items(node) if name == "prompt_encoding")
            fields["prompt_encoding"] = _named(entry.prompt_encoding, encodings, place)
        if entry.upstream is not None:
            fields["upstream"] = PackedRepoRef(entry.upstream)
        return KnownLLM(packaging_type=spellings[1] or spellings[0] or "gguf", **fields)
    except (ConfigError, InvalidRefError) as error:
        raise FaultError(f"{label}: {error}", node) from None
    except FaultError as error:
        error.args = (f"{label}: {error}",)
        raise


def _check_new(known: KnownLLM, before: list[KnownLLM], node: yaml.Node) -> None:
    for other in before:
        if (other.repo_id, other.start) == (known.repo_id, known.start):
            raise FaultError(f"{known.source} stands here a second time", node)
        if shared := set(known.aliases) & set(other.aliases):
            raise FaultError(f"{known.source}: the alias {min(shared)!r} is {other.source}'s", node)
    if len(set(known.aliases)) < len(known.aliases):
        raise FaultError(f"{known.source}: an alias stands there twice", node)


def make_schema() -> str:
    """Return the file's JSON Schema, as in `SCHEMA`."""
    schema = msgspec.json.schema(File)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "knownllms.yaml", **schema}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_path() -> Path:
    """Return the path of the package's registry; in a checkout, the one at the top of the repository."""
    beside = Path(__file__).with_name("knownllms.yaml")
    return beside if beside.exists() else Path(__file__).parents[2] / "knownllms.yaml"


@functools.cache
def load_shipped() -> Registry:
    """Return the package's registry, read once."""
    own = Registry(encodings={bundled.NAME: bundled.ENCODING})
    return own.extended(read_registry(shipped_path()))


def load_known_llms(path: str | Path | None = None) -> Registry:
    """The shipped registry, with the entries of the file at `path` before it. Raises ConfigError with file and line."""
    if path is None:
        return load_shipped()

    shipped = load_shipped()
    return shipped.extended(read_registry(Path(path), encodings=shipped.encodings))
