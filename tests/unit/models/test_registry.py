"""knownllms.yaml: what is in it, how it is found, and what is said of a file that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from llmsession import (
    ConfigError,
    InvalidRefError,
    KnownLLM,
    PackedFileRef,
    Sampling,
    UnknownModelError,
    load_known_llms,
)
from llmsession.models.hub.ensure import resolve_ref
from llmsession.models.registry_file import SCHEMA, make_schema, shipped_path

SHIPPED = load_known_llms()

# The form of the Go package's file: a list alone, and its spelling.
SEED = """\
- source: hf:Foo/Bar-GGUF/HEAD/bar-
  packagingtype: gguf
  upstream: hf:Foo/Bar
  prompt_encoding:
    begin_of_text: "<s>"
    user_token_start: "[INST] "
    user_token_end: " [/INST]"
- source: hf:Foo/Plain-GGUF/plain
"""


def write(tmp_path: Path, text: str) -> Path:
    """A user's file."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("alias", "start"),
    [
        ("gemma-2-2b-it", "gemma"),
        ("llama-3-8b-instruct", "llama-3"),
        ("llama-3.1-8b-instruct", "llama-3.1"),
        ("llama-3.2-1b-instruct", "llama-3.2"),
        ("llama-3.3-70b-instruct", "llama-3.3"),
        ("mistral-7b-instruct", "mistral-v3"),
        ("mistral-nemo", "mistral-nemo"),
        ("phi-3-mini-4k-instruct", "phi-3"),
        ("phi-3.1-mini-4k-instruct", "phi-3"),
        ("phi-4", "phi-4"),
        ("qwen2-0.5b-instruct", "qwen-2"),
        ("qwen2.5-0.5b-instruct", "qwen-2.5"),
        ("smollm2-135m-instruct", "smollm"),
        ("gemma-3-4b-it", "gemma-3"),
        ("qwen3-0.6b", None),
        ("mistral-small", None),
        ("gpt-oss-20b", None),
        ("deepseek-r1-distill-qwen-1.5b", None),
    ],
)
def test_the_families_that_are_shipped(alias: str, start: str | None) -> None:
    """CAPABILITIES A4: each with its upstream, licence, context length and size."""
    known = SHIPPED.find(alias)
    assert known is not None
    assert (SHIPPED.encodings[start] if start is not None else None) == known.prompt_encoding
    assert known.upstream
    assert known.license
    assert known.context_length
    assert known.parameter_count
    assert known == SHIPPED.find(known.file_ref())


def test_an_alias_may_name_a_quantization() -> None:
    """CAPABILITIES A3: in any case of letters; without one, the entry's default."""
    assert "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/HEAD/qwen2.5-0.5b-instruct-q5_k_m" == (
        resolve_ref("qwen2.5-0.5b-instruct", SHIPPED)
    )
    assert resolve_ref("Qwen2.5-0.5B-Instruct:Q8_0", SHIPPED).endswith("/qwen2.5-0.5b-instruct-Q8_0")
    with pytest.raises(InvalidRefError):
        resolve_ref("qwen2.5-0.5b-instruct:../../x", SHIPPED)


def test_a_name_that_nobody_knows_gets_its_neighbours() -> None:
    """CAPABILITIES A3: a near miss."""
    with pytest.raises(UnknownModelError, match=r"did you mean qwen2\.5-0\.5b-instruct") as caught:
        resolve_ref("qwen2.5-0.5b-instrct", SHIPPED)
    assert "qwen2.5-0.5b-instruct" == caught.value.candidates[0]


def test_the_longest_start_wins_at_any_revision(tmp_path: Path) -> None:
    """CAPABILITIES A3: so that a pinned commit keeps its encoding; letters in any case, as on the hub."""
    registry = load_known_llms(
        write(
            tmp_path,
            "knownllms:\n- source: hf:a/b/HEAD/m-\n- source: hf:a/b/m-chat-\n  aliases: [chat]\n- source: hf:a/b\n",
        )
    )

    def source(ref: str) -> str | None:
        known = registry.find(PackedFileRef(ref))
        return known.source if known is not None else None

    commit = "0123456789abcdef0123456789abcdef01234567"
    assert "hf:a/b/m-chat-" == source(f"hf:a/b/{commit}/m-chat-Q8_0.gguf")
    assert "hf:a/b/HEAD/m-" == source("hf:A/B/main/M-Q8_0.gguf")
    assert "hf:a/b" == source("hf:a/b/HEAD/other.gguf")
    assert source("hf:a/c/HEAD/m-Q8_0.gguf") is None


def test_the_go_packages_file_loads_unchanged(tmp_path: Path) -> None:
    """CAPABILITIES A3: its form, its field names; what is shipped is there as well."""
    registry = load_known_llms(write(tmp_path, SEED))
    known = registry.find("hf:Foo/Bar-GGUF/HEAD/bar-q8_0.gguf")
    assert known is not None
    assert ("gguf", "hf:Foo/Bar") == (known.packaging_type, known.upstream)
    assert known.prompt_encoding is not None
    assert "<s>[INST] hi [/INST]" == known.prompt_encoding.render("hi")
    plain = registry.find("hf:Foo/Plain-GGUF/HEAD/plain.gguf")
    assert plain is not None
    assert plain.prompt_encoding is None
    assert registry.find("phi-4") == SHIPPED.find("phi-4")


def test_a_users_file_comes_first(tmp_path: Path) -> None:
    """CAPABILITIES A3: its entry of the same source replaces ours; it may name our encodings."""
    shipped = SHIPPED.find("phi-4")
    assert shipped is not None
    text = f"""\
encodings:
  mine: {{user_token_start: "U:"}}
  yours: mine
knownllms:
- source: {shipped.source}
  prompt_encoding: yours
  aliases: [phi-4, my-phi]
  sampling: {{temperature: 0.5}}
- source: hf:a/b/HEAD/c-
  prompt_encoding: chatml
"""
    registry = load_known_llms(write(tmp_path, text))
    known = registry.find("my-phi")
    assert known == registry.find("phi-4")
    assert known is not None
    assert known.prompt_encoding == registry.encodings["mine"]
    assert Sampling(temperature=0.5) == known.sampling
    assert len(SHIPPED.llms) + 1 == len(registry.llms)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("knownllms:\n- source: hf:a/b/c\n  promt_encoding: x\n", 2, "did you mean 'prompt_encoding'"),
        ("knownllms:\n- source: hf:a/b/c\n  prompt_encoding:\n    stop: [3]\n", 4, "prompt_encoding.stop"),
        ("knownllms:\n- source: hf:a/b/c\n  prompt_encoding: nope\n", 3, "no encoding is called 'nope'"),
        ("knownllms:\n- source: a/b\n", 2, "has not the form"),
        ("knownllms:\n- source: hf:a/b/../c\n", 2, "has not the form"),
        ("knownllms:\n- aliases: [x]\n", 2, "source"),
        ("knownllms:\n- source: hf:a/b/c\n  upstream: a/b\n", 2, "'a/b' is not a reference"),
        ("knownllms:\n- source: hf:a/b/c\n  packaging_type: onnx\n", 3, "onnx"),
        ("knownllms:\n- source: hf:a/b/c\n  aliases: [A b]\n", 2, "is not an alias"),
        ("knownllms:\n- source: hf:a/b/c\n  context_length: lots\n", 3, "context_length"),
        ("knownllms:\n- source: hf:a/b/c\n  sampling: {temperature: hot}\n", 3, "sampling.temperature"),
        ("knownllms:\n- source: hf:a/b/c\n- source: hf:a/b/HEAD/c\n", 3, "a second time"),
        ("knownllms:\n- source: hf:a/b/c\n  source: hf:a/b/d\n", 3, "a second time"),
        ("knownllms:\n- {source: hf:a/b/c, aliases: [x]}\n- {source: hf:a/b/d, aliases: [x]}\n", 3, "alias 'x'"),
        ("knownllms: 3\n", 1, "a list of models"),
        ("encodings:\n  x: {user_token_strat: y}\n", 2, "did you mean 'user_token_start'"),
        ("encodings:\n  x: {}\n  x: {}\n", 3, "a second time"),
        ("encodings:\n  x: {system_position: middle}\n", 2, "middle"),
        ("encodigns: {}\n", 1, "'encodigns' is not a section"),
        ("just text", 1, "mapping"),
        ("x: y: z", 1, "not valid YAML"),
        ("encodings:\n  x: !!python/object/apply:os.getcwd []\n", 2, "tag"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, line: int, words: str) -> None:
    """CAPABILITIES A3: the file, the line, the field; duplicates refused; safe_load only."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_known_llms(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert (path, line) == (caught.value.path, caught.value.line)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """One sentence with the path; an empty file adds nothing."""
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_known_llms(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        load_known_llms(tmp_path / "bytes.yaml")
    deep = write(tmp_path, "encodings: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError):
        load_known_llms(deep)
    assert SHIPPED == load_known_llms(write(tmp_path, ""))


def test_the_schema_is_that_of_the_code_and_fits_the_shipped_file() -> None:
    """Made by `make_schema`: write its text into the file where this fails."""
    assert make_schema() == SCHEMA.read_text(encoding="utf-8")
    schema = json.loads(make_schema())
    jsonschema.validate(yaml.safe_load(shipped_path().read_text(encoding="utf-8")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"knownllms": [{"sauce": "hf:a/b"}]}, schema)


def test_a_model_is_checked_when_it_is_made() -> None:
    """API 2: a value is valid once it is there."""
    with pytest.raises(InvalidRefError, match="has not the form"):
        KnownLLM(source="hf:a")
    assert "hf:a/b/HEAD/c-Q4_K_M" == KnownLLM(source="hf:a/b/c-").file_ref()
