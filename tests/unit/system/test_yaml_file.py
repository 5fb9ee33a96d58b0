"""yaml_file: strict, with the line of what is wrong. Its use is tested with options and registries."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmsession.system.yaml_file import LARGEST, items, open_yaml, read_value
from llmsession.types.errors import ConfigError

# Each line names the one before nine times: read as a tree, these are 9 ** 30 nodes.
LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 15)
)


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    """What a file may hold."""

    name: str
    sizes: list[int] = []


def test_a_value_has_its_type(tmp_path: Path) -> None:
    """With the marks that an editor on Windows leaves."""
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: Ann\r\nsizes: [1, 2]\r\n")
    assert read_thing(path) == Thing(name="Ann", sizes=[1, 2])
    with open_yaml(path) as file:
        assert file.root is not None
        assert [name for name, _, _ in items(file.root)] == ["name", "sizes"]


def read_thing(path: Path) -> Thing:
    """The file's value."""
    with open_yaml(path) as file:
        assert file.root is not None
        thing: Thing = file.convert(file.root, Thing, Thing.__struct_fields__)
        return thing


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: Ann\nsizes:\n- 1\n- two\n", 4, r"sizes\[1\]: Expected `int`"),
        ("name: Ann\nsize: [1]\n", 1, "no field 'size': did you mean 'sizes'"),
        ("name: Ann\nsizes: []\nname: Bob\n", 3, "name stands here a second time"),
        ("name: Ann\nsizes: [{a: 1,\n  a: 2}]\n", 3, "a stands here a second time"),
        ("name: [Ann", 1, "not valid YAML"),
        ("name: 'Ann\n\n", 2, "not valid YAML"),
        ("name: !!python/name:os.system ''\n", 1, "tag"),
        ("name: " + "[" * 40 + "]" * 40, 1, "nested too deeply"),
        ("- name\n", 1, "Expected `object`"),
    ],
)
def test_what_is_wrong_has_a_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    """The innermost node that is wrong, counted from 1."""
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_thing(path)
    assert (path, line) == (caught.value.path, caught.value.line)
    assert f"{path}, line {line}: " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe\x00", "not UTF-8"), (b"#" * (LARGEST + 1), "larger than"), (b"[" * 50_000, "nest")],
    ids=["bytes", "large", "deep"],
)
def test_a_file_that_cannot_be_parsed(tmp_path: Path, content: bytes, words: str) -> None:
    """One sentence, with the path."""
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words), open_yaml(path):
        pass
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"), open_yaml(tmp_path / "none.yaml"):
        pass


def test_aliases_that_multiply_cost_nothing(tmp_path: Path) -> None:
    """A thousand bytes must not become a thousand gigabytes."""
    path = tmp_path / "file.yaml"
    path.write_text(LAUGHS)
    with open_yaml(path) as file:
        assert file.root is not None
        assert file.construct(file.root)["a0"] == ["x"]


@pytest.mark.parametrize("text", ["[1", "!!python/name:os.system ''", "2026-02-31", "[" * 50_000])
def test_a_value_that_cannot_be_read(text: str) -> None:
    """One of ours, whatever PyYAML raises."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_value(text)


def test_a_value_is_read() -> None:
    """As YAML spells it."""
    assert (8, True, None, {"a": 1.5}) == tuple(map(read_value, ("8", "yes", "", "{a: 1.5}")))
