"""knownllms.yaml and files like it, read strictly: what is misspelt is an error with its line, never a default.

The schema of the file, for editors, is made from the same types.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.references import PackedRepoRef
from llmsession.models.registry import KnownLLM, ModelDescription, Registry
from llmsession.types.errors import ConfigError, InvalidRefError
from llmsession.types.sampling import Sampling

# libyaml's is eight times faster, where PyYAML was built with it.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A file of all the world's models would be smaller.
LARGEST = 4_000_000
SCHEMA = Path(__file__).with_name("knownllms.schema.json")


class Entry(ModelDescription, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as it is written. `prompt_encoding` is the name of one, or the encoding itself."""

    source: str
    packaging_type: Literal["gguf", "safetensors"] | None = None
    packagingtype: Literal["gguf", "safetensors"] | None = None  # how the Go package spells it
    upstream: str | None = None
    prompt_encoding: str | PromptEncoding | None = None


class File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The two sections. An encoding may be the name of another that it is equal to."""

    encodings: dict[str, str | PromptEncoding] = {}
    knownllms: list[Entry] = []


class _FaultError(Exception):
    """Something is wrong at a line, counted from 1."""

    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def read_registry(path: Path, *, encodings: Mapping[str, PromptEncoding] = {}) -> Registry:
    """`encodings` are those that the file may name besides its own. Raises ConfigError with file and line."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"the registry {path} is larger than {LARGEST} bytes", path=path)
        return _read(path.read_text(encoding="utf-8-sig"), encodings)
    except OSError as error:
        raise ConfigError(f"cannot read the registry {path}: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the registry {path} is not UTF-8 text", path=path) from error
    except RecursionError as error:
        raise ConfigError(f"the registry {path} is nested too deeply", path=path) from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        what = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).partition("\n")[0]
        line = mark.line + 1 if mark is not None else None
        raise ConfigError(
            f"{path}, line {line}: this is no YAML that is read here: {what}", path=path, line=line
        ) from error
    except _FaultError as error:
        raise ConfigError(f"{path}, line {error.line}: {error}", path=path, line=error.line) from None


def _read(text: str, known: Mapping[str, PromptEncoding]) -> Registry:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Registry()
        sections = _find_sections(root)
        encodings = dict(known)
        own: dict[str, PromptEncoding] = {}
        if (section := sections.get("encodings")) is not None:
            for name, node in _read_mapping(section):
                own[name] = encodings[name] = _read_encoding(loader, node, encodings)
        llms: list[KnownLLM] = []
        if (section := sections.get("knownllms")) is not None:
            if not isinstance(section, yaml.SequenceNode):
                raise _FaultError("knownllms is a list of models", section)
            for number, node in enumerate(section.value):
                known_llm = _read_entry(loader, node, number, encodings)
                _check_new(known_llm, llms, node)
                llms.append(known_llm)
        return Registry(tuple(llms), own)
    finally:
        loader.dispose()


def _find_sections(root: yaml.Node) -> dict[str, yaml.Node]:
    if isinstance(root, yaml.SequenceNode):  # the Go package's file is the list alone
        return {"knownllms": root}
    sections = dict(_read_mapping(root))
    for name, node in sections.items():
        if name not in File.__struct_fields__:
            raise _FaultError(f"{name!r} is not a section: there are {' and '.join(File.__struct_fields__)}", node)
    return sections


def _read_mapping(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """Its keys, each once, and their values."""
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return
    if not isinstance(node, yaml.MappingNode):
        raise _FaultError("here stands a mapping, of names to values", node)
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            raise _FaultError(f"{name} stands here a second time", key)
        seen.add(name)
        yield name, value


def _read_encoding(loader: yaml.SafeLoader, node: yaml.Node, encodings: Mapping[str, PromptEncoding]) -> PromptEncoding:
    read = _convert(loader, node, str | PromptEncoding)
    return _named(read, encodings, node) if isinstance(read, str) else read


def _named(name: str, encodings: Mapping[str, PromptEncoding], node: yaml.Node) -> PromptEncoding:
    if name not in encodings:
        raise _FaultError(f"no encoding is called {name!r}: there are {', '.join(sorted(encodings))}", node)
    return encodings[name]


def _read_entry(
    loader: yaml.SafeLoader, node: yaml.Node, number: int, encodings: Mapping[str, PromptEncoding]
) -> KnownLLM:
    label = f"entry {number + 1} of knownllms"
    try:
        entry = _convert(loader, node, Entry)
        label = entry.source
        fields = {name: getattr(entry, name) for name in Entry.__struct_fields__}
        spellings = (fields.pop("packagingtype"), fields.pop("packaging_type"))
        if isinstance(entry.prompt_encoding, str):
            place = dict(_read_mapping(node))["prompt_encoding"]
            fields["prompt_encoding"] = _named(entry.prompt_encoding, encodings, place)
        if entry.upstream is not None:
            fields["upstream"] = PackedRepoRef(entry.upstream)
        return KnownLLM(packaging_type=spellings[1] or spellings[0] or "gguf", **fields)
    except (ConfigError, InvalidRefError) as error:
        raise _FaultError(f"{label}: {error}", node) from None
    except _FaultError as error:
        error.args = (f"{label}: {error}",)
        raise


def _check_new(known: KnownLLM, before: list[KnownLLM], node: yaml.Node) -> None:
    for other in before:
        if (other.repo_id, other.start) == (known.repo_id, known.start):
            raise _FaultError(f"{known.source} stands here a second time", node)
        if shared := set(known.aliases) & set(other.aliases):
            raise _FaultError(f"{known.source}: the alias {min(shared)!r} is {other.source}'s", node)
    if len(set(known.aliases)) < len(known.aliases):
        raise _FaultError(f"{known.source}: an alias stands there twice", node)


def _convert(loader: yaml.SafeLoader, node: yaml.Node, kind: Any) -> Any:
    """A node's value, as `kind`; what is wrong is told with the line of its innermost node."""
    _check_keys(node)
    try:
        return msgspec.convert(loader.construct_object(node, deep=True), kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise _FaultError(_say(message, path.rstrip("`")), _walk(node, path)) from None


def _say(message: str, path: str) -> str:
    unknown = re.search(r"unknown field `(\w+)`", message)
    if unknown:
        fields = {*Entry.__struct_fields__, *PromptEncoding.__struct_fields__, *Sampling.__struct_fields__}
        near = difflib.get_close_matches(unknown[1], fields, n=1)
        return f"there is no field {unknown[1]!r}" + (f": did you mean {near[0]!r}?" if near else "")
    field = path.lstrip(".")
    return f"{field}: {message}" if field else message


def _walk(node: yaml.Node, path: str) -> yaml.Node:
    """Along a path such as `.prompt_encoding.stop[0]`, as far as it leads."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        if name and isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == name), node)
        elif index and isinstance(node, yaml.SequenceNode):
            node = node.value[int(index)]
    return node


def _check_keys(node: yaml.Node, depth: int = 0) -> None:
    """No key twice, at any depth, which YAML itself would let pass."""
    if depth > 8:
        raise _FaultError("this is nested too deeply", node)
    if isinstance(node, yaml.MappingNode):
        for _, value in _read_mapping(node):
            _check_keys(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, depth + 1)


def make_schema() -> str:
    """The file's JSON Schema, as `SCHEMA` holds it."""
    schema = msgspec.json.schema(File)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "knownllms.yaml", **schema}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_path() -> Path:
    """The registry that comes with the package; at the top of the repository where it runs from a checkout."""
    beside = Path(__file__).with_name("knownllms.yaml")
    return beside if beside.exists() else Path(__file__).parents[2] / "knownllms.yaml"


@functools.cache
def load_shipped() -> Registry:
    """The shipped registry, read once."""
    own = Registry(encodings={bundled.NAME: bundled.ENCODING})
    return own.extended(read_registry(shipped_path()))


def load_known_llms(path: str | Path | None = None) -> Registry:
    """The shipped registry, with the entries of the file at `path` before it. Raises ConfigError with file and line."""
    if path is None:
        return load_shipped()

    shipped = load_shipped()
    return shipped.extended(read_registry(Path(path), encodings=shipped.encodings))
