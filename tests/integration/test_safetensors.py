"""Wrong use of the backend `transformers`: each is one sentence with a next step, also where there is no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsession import (
    BackendNotFoundError,
    ConfigError,
    InvalidModelError,
    LLMSessionError,
    OfflineError,
    Options,
    Session,
    UnknownModelError,
    UnsupportedFeatureError,
)
from llmsession.backends.choose import choose_backend
from llmsession.backends.survey import list_candidates
from llmsession.models.bundled import bundled_path
from llmsession.session.server.model_choice import resolve_model
from llmsession.system.paths import cache_folder
from tests.hub_server import Hub

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's safetensors."""
    from tiny_chat.to_safetensors import export_safetensors

    folder = tmp_path_factory.mktemp("weights") / "tiny-chat"
    export_safetensors(bundled_path(), folder)
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with nothing in it."""
    venv = tmp_path_factory.mktemp("bare") / "it's bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    return venv / "bin" / "python"


async def test_an_environment_without_transformers_is_told_with_the_line_that_mends_it(
    folder: Path, bare_python: Path
) -> None:
    """CAPABILITIES B4: a clear error where it is missing, before anything is started."""
    with pytest.raises(BackendNotFoundError) as caught:
        await Session.open(folder, python_path=bare_python)
    assert '"\'"\'s bare/bin/python\' -m pip install "transformers[serving]>=5" torch' in caught.value.hint
    assert f"{bare_python} has no transformers, torch, accelerate, fastapi" in str(caught.value)
    assert "python_path=" in str(caught.value)
    assert [] == psutil.Process().children(recursive=True)


async def test_an_old_transformers_is_told(folder: Path, tmp_path: Path) -> None:
    """`serve` with a model on its command line came with version 5."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'missing / 4.57.1'\n")
    python.chmod(0o755)
    with pytest.raises(BackendNotFoundError, match=r"has transformers 4\.57\.1, and the backend needs 5 or newer"):
        await Session.open(folder, python_path=python)


@pytest.mark.parametrize(
    ("python", "words"),
    [("/no/such/python", "is not a program that can be run"), ("/bin/echo", "is not a Python: it says")],
)
async def test_what_is_no_python_is_told(folder: Path, python: str, words: str) -> None:
    """STYLE: the option by name, its value, and what it should be."""
    with pytest.raises(ConfigError, match=words) as caught:
        await Session.open(folder, python_path=python)
    assert f"python_path='{python}'" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "python"}, ConfigError, "the bundled one is a GGUF file: name the path of a folder, hf:author/repo"),
        ({"backend": "transformers"}, ConfigError, "the bundled one is a GGUF file"),
        ({"backend": "transformers", "model": str(bundled_path())}, ConfigError, "tiny-chat.gguf is a file"),
        ({"backend": "transformers", "model": "hf:foo/Bar/HEAD/x.gguf"}, ConfigError, "name them, hf:author/repo"),
        ({"backend": "transformers", "model": "no-such"}, UnknownModelError, "no model is called 'no-such'"),
        ({"model": "hf:foo/Bar", "prompt_encoding": "chatml"}, UnsupportedFeatureError, 'prompt_encoding="chat"'),
        ({"model": "hf:foo/Bar", "remote": "x:1", "python_path": "p"}, ConfigError, "python_path: not for a remote"),
    ],
)
def test_a_model_that_it_cannot_run_is_told_at_once(fields: Any, error: type[LLMSessionError], words: str) -> None:
    """API.md 3: `"python"` is the seed's word for the backend; which model, it does not say."""
    with pytest.raises(error) as caught:
        Session(**fields)
    assert words in str(caught.value)


@pytest.mark.parametrize("backend", ["llama-server", "llamafile", "embedded"])
async def test_an_engine_for_gguf_refuses_a_folder(folder: Path, backend: str) -> None:
    """Our decision: auto takes transformers for a folder, and never for a GGUF file."""
    with pytest.raises(ConfigError, match=f"backend='{backend}' runs GGUF files"):
        await Session.open(folder, backend=backend)
    with pytest.raises(ConfigError, match="server_path= is for GGUF files"):
        await Session.open(folder, server_path="/bin/echo")
    assert "transformers" != (await choose_backend("auto", cache=cache_folder())).name


async def test_flags_of_llama_server_are_refused(folder: Path) -> None:
    """API.md 3: extra_args are llama-server's flags."""
    with pytest.raises(UnsupportedFeatureError, match="cannot take --flash-attn on"):
        await Session.open(folder, extra_args=("--flash-attn", "on"))


async def test_a_folder_that_is_none_and_a_base_model_are_told(folder: Path, tmp_path: Path) -> None:
    """It applies the model's template, and has nothing else: without one there is nothing to ask it."""
    with pytest.raises(InvalidModelError, match="is it a folder of safetensors"):
        await Session.open(tmp_path, backend="transformers")
    with pytest.raises(InvalidModelError, match=r"it is a folder; give the \.gguf file in it"):
        await Session.open(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    for file in folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedFeatureError, match="has no chat template"):
        await Session.open(base)


async def test_a_context_beyond_the_trained_one_is_refused(folder: Path) -> None:
    """API.md 3: never capped in silence."""
    with pytest.raises(ConfigError, match="more than the 2048 tokens"):
        await Session.open(folder, context_length=4096)


def test_an_alias_means_the_original_of_its_gguf_files(tmp_path: Path) -> None:
    """CAPABILITIES B4: the registry's `upstream`; an entry of safetensors needs no backend to be named."""
    registry = tmp_path / "known.yaml"
    registry.write_text(
        "knownllms:\n"
        "- {source: 'hf:a/Tiny-GGUF/HEAD/tiny-', upstream: 'hf:a/Tiny', aliases: [tiny-x]}\n"
        "- {source: 'hf:b/Whole', packaging_type: safetensors, aliases: [whole-x]}\n"
    )
    by_alias = resolve_model(Options(model="tiny-x", backend="transformers", registry=registry))
    assert ("hf:a/Tiny", "Tiny", True) == (by_alias.repo, by_alias.name, by_alias.is_weights)
    assert not resolve_model(Options(model="tiny-x", registry=registry)).is_weights
    whole = resolve_model(Options(model="whole-x", registry=registry))
    assert ("hf:b/Whole", True) == (whole.repo, whole.is_weights)
    assert resolve_model(Options(model="hf:c/Other")).is_weights


async def test_a_repository_is_fetched_and_then_run_from_the_cache(hub: Hub, folder: Path, bare_python: Path) -> None:
    """CAPABILITIES M6, B4: fetched by our own process; what is whole in the cache needs no hub."""
    hub.add("foo/Weights", {file.name: file.read_bytes() for file in folder.iterdir()})
    with pytest.raises(OfflineError, match="hf:foo/Weights is not in the cache"):
        await Session.open("hf:foo/Weights", offline=True)
    with pytest.raises(BackendNotFoundError):  # all of it is there, and the engine is not
        await Session.open("hf:foo/Weights", python_path=bare_python)
    with pytest.raises(BackendNotFoundError):
        await Session.open("hf:foo/Weights", python_path=bare_python, offline=True)


async def test_the_doctor_names_it(monkeypatch: pytest.MonkeyPatch, bare_python: Path) -> None:
    """CAPABILITIES B4: `llmsession doctor` shows every engine, there or not, and what would bring it."""
    monkeypatch.setattr(sys, "executable", str(bare_python))
    listed = {engine.backend: engine for engine in await list_candidates(cache=cache_folder())}
    assert listed["transformers"].path is None
    assert "pip install" in (listed["transformers"].hint or "")
