"""Names of files: quantizations, shards, and which one somebody means."""

from __future__ import annotations

import pytest

from llmsession.models.quantization import find_meant, find_nearest, list_models, list_shards, parse_quantization
from llmsession.types.units import describe_size


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("qwen2.5-0.5b-instruct-q5_k_m.gguf", "Q5_K_M"),
        ("Llama-3.2-1B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("x.Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("UD-Q4_K_XL/m-UD-Q4_K_XL-00001-of-00002.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "FP16"),
        ("m-bf16.gguf", "BF16"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("Q4_K_M/model.gguf", "Q4_K_M"),
        ("model.gguf", None),
        ("qwen3-0.6b.gguf", None),
    ],
)
def test_a_quantization_is_read_off_the_name(name: str, quantization: str | None) -> None:
    """The forms that publishers use."""
    assert quantization == parse_quantization(name)


def test_the_models_of_a_repository() -> None:
    """CAPABILITIES A9, A10: smallest first; a split one once, with all its bytes; no projectors, no other files."""
    files = {"b-F16-00002-of-00002.gguf": 5, "b-F16-00001-of-00002.gguf": 5, "b-Q8_0.gguf": 7, "b-Q4_0.GGUF": 3,
             "mmproj-b-f16.gguf": 1, "README.md": 1, "imatrix.dat": 9}  # fmt: skip
    assert {"b-Q4_0.GGUF": 3, "b-Q8_0.gguf": 7, "b-F16-00001-of-00002.gguf": 10} == list_models(files)
    assert ["b-Q4_0.GGUF", "b-Q8_0.gguf", "b-F16-00001-of-00002.gguf"] == list(list_models(files))


def test_the_shards_of_a_model() -> None:
    """CAPABILITIES A9: from any of them."""
    assert ["a/x-00001-of-00003.gguf", "a/x-00002-of-00003.gguf", "a/x-00003-of-00003.gguf"] == (
        list_shards("a/x-00002-of-00003.gguf")
    )
    assert ["x.gguf"] == list_shards("x.gguf")


NAMES = ["sub/m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_K_M.gguf", "m-F16-00001-of-00002.gguf"]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("m-q4_k_s", ["m-Q4_K_S.gguf"]),
        ("M-Q4_K_M.GGUF", ["sub/m-Q4_K_M.gguf"]),
        ("q4_k_m", ["sub/m-Q4_K_M.gguf"]),
        ("m-f16", ["m-F16-00001-of-00002.gguf"]),
        ("m-f16-00002-of-00002.gguf", ["m-F16-00001-of-00002.gguf"]),
        ("4_k_m", []),
        ("Q5_K_M", []),
    ],
)
def test_what_somebody_means(wanted: str, meant: list[str]) -> None:
    """CAPABILITIES A10: any case, with or without the suffix, by its end at a joint."""
    assert meant == find_meant(wanted, NAMES)


def test_the_nearest_name() -> None:
    """CAPABILITIES A10: by the whole name, or by the quantization; none where none is like it."""
    assert "m-Q4_K_S.gguf" == find_nearest("m-Q4_K_X.gguf", NAMES)
    assert "m-F16-00001-of-00002.gguf" == find_nearest("bf16", NAMES)
    assert find_nearest("zzzzzzzz", NAMES) is None
    assert find_nearest("x", []) is None


def test_sizes_as_people_write_them() -> None:
    """Three digits are enough."""
    assert ["17 B", "1.9 MB", "135 MB", "4.9 GB", "145 GB"] == [
        describe_size(size) for size in (17, 1_932_288, 134_515_008, 4.92e9, 145.4e9)
    ]
