"""What people type or paste for a model: addresses of the hub, names of other programs, files beside models."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsession import ConfigError, Options, UnknownModelError
from llmsession.models.hub.ensure import resolve_ref
from llmsession.models.lockfile import ref_of_cached
from llmsession.models.quantization import list_models
from llmsession.models.references import understand
from llmsession.models.registry import KnownLLM
from llmsession.models.registry_file import load_shipped, read_registry
from llmsession.session.server.model_choice import describe_found, resolve_model

NEMO = "bartowski/Mistral-Nemo-Instruct-2407-GGUF"
NEMO_FILE = "Mistral-Nemo-Instruct-2407-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("https://huggingface.co/a/b/blob/main/c-Q8_0.gguf", "hf:a/b/HEAD/c-Q8_0.gguf"),
        ("https://huggingface.co/a/b/resolve/main/d/c.gguf?download=true", "hf:a/b/HEAD/d/c.gguf"),
        ("huggingface.co/a/b/resolve/v1.0/c.gguf", "hf:a/b/v1.0/c.gguf"),
        ("https://hf.co/a/b-GGUF", "hf:a/b-GGUF/HEAD/Q4_K_M"),
        ("https://huggingface.co/a/b-GGUF/tree/main", "hf:a/b-GGUF/HEAD/Q4_K_M"),
        ("https://huggingface.co/a/b", "hf:a/b"),
        ("hf.co/a/b-GGUF:Q8_0", "hf:a/b-GGUF/HEAD/Q8_0"),
        (" a/b-GGUF:Q8_0\n", "hf:a/b-GGUF/HEAD/Q8_0"),
        ("hf:a/b:Q8_0", "hf:a/b/HEAD/Q8_0"),
        ("a/b", "hf:a/b"),
        ("a/b-gguf", "hf:a/b-gguf/HEAD/Q4_K_M"),
        ("hf:a/b/HEAD/c", "hf:a/b/HEAD/c"),
        ("./a/b.gguf", "./a/b.gguf"),
        ("models/b.gguf", "models/b.gguf"),
        ("a/b/c", "a/b/c"),
        ("qwen3-4b", "qwen3-4b"),
    ],
)
def test_an_address_of_the_hub_is_a_reference(text: str, reference: str) -> None:
    """E6: "no such file; look at the path", before."""
    assert reference == understand(text)


def test_pull_understands_them_too() -> None:
    """E6: by the same function."""
    assert "hf:a/b/HEAD/c.gguf" == resolve_ref("https://huggingface.co/a/b/blob/main/c.gguf", load_shipped())


def test_a_name_as_ollama_writes_it_gets_the_right_neighbour() -> None:
    """E6: qwen3-32b was proposed."""
    with pytest.raises(UnknownModelError, match=r"did you mean qwen2\.5-0\.5b-instruct"):
        resolve_ref("qwen2.5:0.5b", load_shipped())


@pytest.mark.parametrize("asked", ["Q4_K_M", "q4_k_m", "Mistral-Nemo-Instruct-2407-Q4_K_M", "instruct-2407-q4_k_m"])
def test_the_entry_belongs_to_the_file_however_it_was_asked_for(tmp_path: Path, asked: str) -> None:
    """E2: README's own example lost the registry's encoding and temperature."""
    known = load_shipped().find("mistral-nemo")
    assert known is not None
    options = Options(model=f"hf:{NEMO}/HEAD/{asked}")
    path = tmp_path / f"models--{NEMO.replace('/', '--')}" / "snapshots" / ("0" * 40) / NEMO_FILE
    model = describe_found(options, resolve_model(options), path)
    assert (known.prompt_encoding, known.sampling) == (model.encoding, model.sampling)
    by_path = resolve_model(Options(model=str(path)))
    assert (known.prompt_encoding, known.sampling) == (by_path.encoding, by_path.sampling)


def test_another_file_of_the_same_repository_is_not_taken_for_it(tmp_path: Path) -> None:
    """E2: the name of the file that was found decides."""
    options = Options(model=f"hf:{NEMO}/HEAD/Q4_K_M")
    path = tmp_path / f"models--{NEMO.replace('/', '--')}" / "snapshots" / ("0" * 40) / "Another-Q4_K_M.gguf"
    assert describe_found(options, resolve_model(options), path).encoding is None
    assert ref_of_cached(tmp_path / "elsewhere" / NEMO_FILE) is None


def test_an_alias_goes_before_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E13: a folder `mistral-nemo` in the working directory was the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mistral-nemo").mkdir()
    (tmp_path / "mine").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    assert resolve_model(Options(model="mistral-nemo")).ref is not None
    assert tmp_path / "mistral-nemo" == resolve_model(Options(model="./mistral-nemo")).path
    assert tmp_path / "mine" == resolve_model(Options(model="mine")).path
    assert tmp_path / "a" / "b" == resolve_model(Options(model="a/b")).path


@pytest.mark.parametrize("name", ["model", "registry", "server_path", "cache_dir", "mmproj"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_what_no_path_can_hold(name: str, text: str) -> None:
    """E13: a foreign ValueError, before."""
    with pytest.raises(ConfigError):
        Options(**{name: text})  # type: ignore[arg-type]


def test_an_entry_for_one_file_without_a_quantization(tmp_path: Path) -> None:
    """E12: it could never be found, and lint said nothing."""
    known = KnownLLM(source="hf:a/b/HEAD/whole.gguf", aliases=("whole",))
    assert "hf:a/b/HEAD/whole.gguf" == known.file_ref() == known.file_ref("Q8_0")
    path = tmp_path / "mine.yaml"
    path.write_text("knownllms:\n- source: hf:a/b/HEAD/x-\n  default_quantization: best\n")
    with pytest.raises(ConfigError, match=r"line 2: .*'best' names no quantization"):
        read_registry(path)


def test_files_beside_a_model_are_none() -> None:
    """E7: they were offered as models, and made `q4_k_m` ambiguous."""
    files = dict.fromkeys(
        ["m-Q4_K_M.gguf", "imatrix.gguf", "imatrix-Q4_K_M.gguf", "m-imatrix.gguf", "mtp-Q4_K_M.gguf",
         "MTP/m-Q4_K_M.gguf", "mmproj-m-f16.gguf", "m-mmproj.gguf", "imatrix.dat", "smtp-Q8_0.gguf",
         "m-imatrixed-Q8_0.gguf"], 1,
    )  # fmt: skip
    assert {"m-Q4_K_M.gguf", "smtp-Q8_0.gguf", "m-imatrixed-Q8_0.gguf"} == set(list_models(files))
