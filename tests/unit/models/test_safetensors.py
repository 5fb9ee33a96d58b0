"""What is read of a folder of safetensors without touching a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsession import InvalidModelError
from llmsession.models.safetensors import is_whole, read_added_tokens, read_weights_info
from llmsession.prompts.vocabulary import read_vocabulary_of


def write(folder: Path, **files: Any) -> Path:
    """A folder with these, by names without `.json`; `weights` are the names of empty ones."""
    folder.mkdir(exist_ok=True)
    for name in files.pop("weights", ["model.safetensors"]):
        (folder / name).write_bytes(b"1234")
    for name, content in ({"config": {"max_position_embeddings": 2048, "vocab_size": 259}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_facts_come_from_its_configuration(tmp_path: Path) -> None:
    """CAPABILITIES B4: context, vocabulary and size, for what a GGUF header says otherwise."""
    info = read_weights_info(write(tmp_path / "m", tokenizer_config={"chat_template": "T"}))
    assert (2048, 259, 4, "T") == (info.trained_context_length, info.vocab_size, info.size_bytes, info.chat_template)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096, "vocab_size": 5}}, 4096),
        ({"text_config": None}, None),
        ({}, None),
    ],
)
def test_the_context_has_more_names_than_one(tmp_path: Path, config: dict[str, Any], length: int | None) -> None:
    """GPT-2 calls it n_positions; a model that also sees has it in a part of its own."""
    assert length == read_weights_info(write(tmp_path / "m", config=config)).trained_context_length


def test_the_template_is_the_default_of_several_or_in_a_file_of_its_own(tmp_path: Path) -> None:
    """https://huggingface.co/docs/transformers/chat_templating: three places, the newest first."""
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = write(tmp_path / "m", tokenizer_config={"chat_template": named})
    assert "yes" == read_weights_info(folder).chat_template
    (folder / "chat_template.jinja").write_text("newer")
    assert "newer" == read_weights_info(folder).chat_template
    assert read_weights_info(write(tmp_path / "base")).chat_template is None


def test_every_added_token_is_known_whatever_it_looks_like(tmp_path: Path) -> None:
    """DESIGN 5: of a folder the spellings are known, and not guessed by their looks."""
    folder = write(
        tmp_path / "m",
        tokenizer={"added_tokens": [{"id": 1, "content": "@@end@@", "special": True}, {"id": 2, "content": "  "}]},
        tokenizer_config={"added_tokens_decoder": {"3": {"content": "<think>"}, "4": {"content": "word"}}},
    )
    assert {1: "@@end@@", 2: "  ", 3: "<think>", 4: "word"} == read_added_tokens(folder)
    vocabulary = read_vocabulary_of(folder)
    assert [(2, 9), (9, 16)] == vocabulary.find("a @@end@@<think> word   ")


def test_a_part_that_is_named_and_not_there_is_told(tmp_path: Path) -> None:
    """A download that was cut is not a model, and is fetched again."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    folder = write(tmp_path / "m", weights=["model-00001-of-00002.safetensors"], **{"model.safetensors.index": index})
    assert not is_whole(folder)
    with pytest.raises(InvalidModelError, match=r"it has no model-00002-of-00002\.safetensors"):
        read_weights_info(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"12")
    assert is_whole(folder)
    assert 6 == read_weights_info(folder).size_bytes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "it has no config.json: is it a folder of safetensors?"),
        (b"{", "its config.json cannot be read"),
        (b"[]", "its config.json cannot be read"),
        (b"\xff\xfe", "its config.json cannot be read"),
    ],
)
def test_what_is_no_such_folder_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    """STYLE: what, which, and what is wrong with it."""
    folder = tmp_path / "m"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(InvalidModelError) as caught:
        read_weights_info(folder)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not is_whole(folder)
