"""YAML files read strictly: whatever is wrong, a key that is repeated too, is a ConfigError with file and line."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import yaml

from llmsession.types.errors import ConfigError

# libyaml's is eight times faster, where PyYAML was built with it.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# In bytes. A registry of all the world's models would be smaller.
LARGEST = 4_000_000
DEEPEST = 16


class FaultError(Exception):
    """What is wrong with a node of a file. `open_yaml` turns it into a ConfigError."""

    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1
        """Counted from 1."""


class YamlFile:
    """A file that was parsed. `root` is None if nothing is in it."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self.root: yaml.Node | None = loader.get_single_node()
        if self.root is not None:
            _check_keys(self.root, set())

    def construct(self, node: yaml.Node) -> Any:
        """Return the node's value in plain Python types."""
        return self._loader.construct_object(node, deep=True)

    def convert(self, node: yaml.Node, kind: Any, names: Collection[str] = ()) -> Any:
        """Return the node's value as `kind`, a type that msgspec knows.

        Raises FaultError at the innermost node that is wrong. `names` are those to propose for a misspelt field.
        """
        try:
            return msgspec.convert(self.construct(node), kind)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            raise FaultError(_describe(message, path.rstrip("`"), names), _walk(node, path)) from None


@contextlib.contextmanager
def open_yaml(path: Path) -> Iterator[YamlFile]:
    """Parse the file at `path`. Raises ConfigError with file and line, also for a FaultError in the block."""
    loader, text = None, ""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST} bytes", path=path)
        text = path.read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        yield YamlFile(loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", path=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", path=path) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply", path=path) from error
    except yaml.constructor.ConstructorError as error:
        _fail(path, text, f"a tag that is not allowed here: {error.problem}", error.problem_mark)
    except yaml.MarkedYAMLError as error:
        _fail(path, text, f"this is not valid YAML: {error.problem}", error.problem_mark)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}".partition("\n")[0], path=path) from error
    except FaultError as error:
        raise ConfigError(f"{path}, line {error.line}: {error}", path=path, line=error.line) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_value(text: str) -> Any:
    """Return what a line of text stands for in YAML. Raises ConfigError."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that does not exist
        raise ConfigError("this cannot be read") from None


def items(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield the keys of a mapping, as text, with their nodes and those of their values. Raises FaultError."""
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return
    if not isinstance(node, yaml.MappingNode):
        raise FaultError("a mapping of names to values is expected here", node)
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            raise FaultError(f"{name} stands here a second time", key)
        seen.add(name)
        yield name, key, value


def _check_keys(node: yaml.Node, seen: set[yaml.Node], depth: int = 0) -> None:
    """Refuse a key that is repeated, at any depth: YAML itself lets the last one win."""
    if node in seen:  # an alias: a few lines of them may stand for more nodes than memory holds
        return
    seen.add(node)
    if depth > DEEPEST:
        raise FaultError("this is nested too deeply", node)
    if isinstance(node, yaml.MappingNode):
        for _, _, value in items(node):
            _check_keys(value, seen, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, seen, depth + 1)


def _describe(message: str, path: str, names: Collection[str]) -> str:
    if unknown := re.search(r"unknown field `(\w+)`", message):
        near = difflib.get_close_matches(unknown[1], names, n=1)
        return f"there is no field {unknown[1]!r}" + (f": did you mean {near[0]!r}?" if near else "")
    field = path.lstrip(".")
    return f"{field}: {message}" if field else message


def _walk(node: yaml.Node, path: str) -> yaml.Node:
    """Follow a path such as `.prompt_encoding.stop[0]`, as far as it leads."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        if name and isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == name), node)
        elif index and isinstance(node, yaml.SequenceNode):
            node = node.value[int(index)]
    return node


def _fail(path: Path, text: str, message: str, mark: yaml.Mark | None) -> NoReturn:
    # At the end of the file, libyaml's mark is beyond its last line.
    line = min(mark.line + 1, len(text.splitlines())) if mark is not None else None
    raise ConfigError(f"{path}, line {line}: {message}", path=path, line=line) from None
