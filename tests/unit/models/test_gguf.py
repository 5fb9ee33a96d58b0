"""The header of a GGUF file. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsession.models.bundled import bundled_path
from llmsession.models.gguf import read_model_info, read_vocabulary
from llmsession.prompts.vocabulary import read_vocabulary_of
from llmsession.types.errors import InvalidModelError
from tests.model_files import TEMPLATE, write_random_model
from tests.vocabularies import CHATML


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one with known facts."""
    return write_random_model(tmp_path_factory.mktemp("model") / "m.gguf", width=32, layers=2, context=512)


def test_what_the_file_says_of_itself(model: Path) -> None:
    """API 2, ModelInfo."""
    info = read_model_info(model)
    assert ("llama", "random", 512, 2, 2, 258) == (
        info.architecture, info.name, info.trained_context_length, info.layer_count, info.gqa_factor, info.vocab_size,
    )  # fmt: skip
    assert (TEMPLATE, model.stat().st_size, None) == (info.chat_template, info.size_bytes, info.quantization)
    assert (257, None) == (info.special_tokens["eos"], info.special_tokens["bos"])
    assert "tokenizer.ggml.tokens" not in info.metadata


def test_the_parameters_are_counted(model: Path) -> None:
    """By the gguf package's own reader."""
    theirs = sum(int(np.prod(tensor.shape)) for tensor in gguf.GGUFReader(model).tensors)
    assert theirs == read_model_info(model).parameter_count


def test_the_bundled_model_is_what_its_card_says() -> None:
    """DESIGN 7: at most 2 MB as Q8_0."""
    info = read_model_info(bundled_path())
    assert ("tiny-chat", "Q8_0", 2048, 264) == (
        info.name, info.quantization, info.trained_context_length, info.vocab_size,
    )  # fmt: skip
    assert info.size_bytes < 2_000_000
    assert info.parameter_count < 2_000_000


def test_the_vocabulary_is_read_when_asked_for(model: Path) -> None:
    """Row A12: no vocabulary in memory unless asked for."""
    vocabulary = read_vocabulary(model)
    assert (258, "A", CHATML) == (len(vocabulary), vocabulary[65], vocabulary[256:])


def test_the_other_byte_order(tmp_path: Path) -> None:
    """The specification: a big-endian file is one whose version reads so."""
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(77)
    writer.add_array("numbers", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_model_info(tmp_path / "big.gguf")
    assert (77, [1, 2, 3]) == (info.trained_context_length, info.metadata["numbers"])


def test_the_version_before(tmp_path: Path, model: Path) -> None:
    """The specification: 2 is laid out as 3 is."""
    path = tmp_path / "two.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 2) + model.read_bytes()[8:])
    assert read_model_info(model) == read_model_info(path)


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    """The specification knows 1, 2 and 3; 1 had other lengths."""
    path = tmp_path / "one.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(InvalidModelError, match="version 1"):
        read_model_info(path)


@pytest.mark.parametrize(("tensors", "entries"), [(2**63, 0), (0, 2**63), (10**9, 0), (0, 10**9)])
def test_absurd_counts_are_refused_without_a_loop(tmp_path: Path, tensors: int, entries: int) -> None:
    """Row A12: a twisted header gives our error, quickly, without large allocation."""
    path = tmp_path / "absurd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + b"\0" * 100)
    with pytest.raises(InvalidModelError, match="claims to have"):
        read_model_info(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(share=st.floats(0, 0.9999))
def test_any_cut_is_found(model: Path, tmp_path: Path, share: float) -> None:
    """Issue 1: a cut GGUF."""
    whole = model.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InvalidModelError) as caught:
        read_model_info(path)
    assert path == caught.value.path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(twists=st.lists(st.tuples(st.integers(4, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_twisted_byte_gives_our_error_or_a_value(
    model: Path, tmp_path: Path, twists: list[tuple[int, int]]
) -> None:
    """Row A12: nothing of Python's own gets out, whatever stands in the header."""
    twisted = bytearray(model.read_bytes())
    for at, byte in twists:
        twisted[at] = byte
    path = tmp_path / "twisted.gguf"
    path.write_bytes(twisted)
    with contextlib.suppress(InvalidModelError):
        read_model_info(path).memory_needed(1024, 4)
    with contextlib.suppress(InvalidModelError):
        read_vocabulary_of(path)


WRONG_TYPES = {
    "general.architecture": 5,
    "general.name": [1, 2],
    "general.file_type": "x",
    "general.alignment": "x",
    "llama.context_length": "x",
    "llama.block_count": [1],
    "llama.attention.head_count": "x",
    "llama.attention.head_count_kv": [1, 0],
    "llama.rope.freq_base": "x",
    "tokenizer.chat_template": 5,
    "tokenizer.ggml.eos_token_id": "x",
    "tokenizer.ggml.tokens": 5,
    "tokenizer.ggml.token_type": ["x"],
}


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_an_entry_of_another_type_is_none(tmp_path: Path, key: str) -> None:
    """Row A12: a header may say anything."""
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    entries: dict[str, object] = {
        "llama.block_count": 2,
        "llama.embedding_length": 32,
        "tokenizer.ggml.tokens": ["a", "b"],
        key: None,
    }
    for name, usual in entries.items():
        value = WRONG_TYPES[key] if name == key else usual
        if name == "general.architecture":
            writer.kv_data[0].pop(name)
        match value:
            case int():
                writer.add_uint32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_model_info(path)
    assert info.memory_needed(512, 1) > 0
    assert "unknown" == info.architecture or key != "general.architecture"
    assert set(info.special_tokens.values()) == {None}
    read_vocabulary_of(path)


def test_a_split_model_is_counted_whole(tmp_path: Path, model: Path) -> None:
    """Row A9: its files lie side by side; a missing one is told."""
    names = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path in names:
        path.write_bytes(model.read_bytes())
    one, both = read_model_info(model), read_model_info(names[0])
    assert (2 * one.parameter_count, 2 * one.size_bytes) == (both.parameter_count, both.size_bytes)
    names[1].unlink()
    with pytest.raises(InvalidModelError, match="00002-of-00002"):
        read_model_info(names[0])


def test_what_the_header_says_is_one_line() -> None:
    """F8: the repr had thousands of numbers."""
    shown = repr(read_model_info(bundled_path()))
    assert shown.startswith("<ModelInfo of ")
    assert len(shown) < 120
    assert "2048 tokens" in shown
