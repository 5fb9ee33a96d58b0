"""Options by keyword, from the environment and from a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmsession import ConfigError, Device, Lora, Options, PromptEncoding, Sampling


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the caller's own."""
    for name in os.environ:
        if name.startswith("LLMSESSION_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One to write into."""
    return tmp_path / "options.yaml"


def test_explicit_before_environment_before_file_before_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """API.md 3: Options.load; `Options()` reads neither."""
    file.write_text("parallel: 2\nthreads: 2\ncontext_length: 2\n")
    monkeypatch.setenv("LLMSESSION_THREADS", "3")
    monkeypatch.setenv("LLMSESSION_CONTEXT_LENGTH", "3")
    loaded = Options.load(file, context_length=4)
    assert (2, 3, 4, 60.0) == (loaded.parallel, loaded.threads, loaded.context_length, loaded.idle_timeout)
    monkeypatch.setenv("LLMSESSION_CONFIG", str(file))
    assert 2 == Options.load().parallel
    assert Options() == Options(parallel=4)


def test_a_file_may_hold_every_field(file: Path) -> None:
    """API.md 3: each by its own name, in YAML's types; a preset by its name."""
    file.write_text(
        "model: some/model.gguf\nbackend: embedded\nprompt_encoding: {user_token_start: U, stop: [x]}\n"
        "context_length: null\nsampling: min_p\nserver_path: null\ncache_dir: here\nstart_timeout: 5\n"
        "first_token_timeout: 6.5\nidle_timeout: 7\nextra_args: [--flash-attn, 'on']\n"
    )
    loaded = Options.load(file)
    assert PromptEncoding(user_token_start="U", stop=("x",)) == loaded.prompt_encoding
    assert Sampling.MIN_P == loaded.sampling
    assert ("--flash-attn", "on") == loaded.extra_args
    assert (5.0, 6.5, 7.0) == (loaded.start_timeout, loaded.first_token_timeout, loaded.idle_timeout)
    file.write_text(
        "device: cpu:2\ngpu_layers: 0\nflash_attention: true\nkv_offload: false\ncache_type_k: q8_0\n"
        "cache_type_v: f16\nrope_freq_base: 20000\nlora: [a.gguf, {path: b.gguf, scale: 0.5}]\ndraft_model: d.gguf\n"
        "mmproj: p.gguf\nchat_template: |\n  {{ messages }}\n"
    )
    loaded = Options.load(file)
    assert ("cpu:2", 0, True, False, "q8_0", "f16", 20000.0) == (
        loaded.device, loaded.gpu_layers, loaded.flash_attention, loaded.kv_offload, loaded.cache_type_k,
        loaded.cache_type_v, loaded.rope_freq_base,
    )  # fmt: skip
    assert (Lora("a.gguf"), Lora("b.gguf", 0.5)) == loaded.lora
    assert ("d.gguf", "p.gguf", "{{ messages }}\n") == (loaded.draft_model, loaded.mmproj, loaded.chat_template)
    file.write_text("remote: host:1\napi_key: k\nheaders: {A: b}\nverify: false\nsampling: {top_k: 3}\n")
    loaded = Options.load(file)
    assert ("host:1", "k", {"A": "b"}, False) == (loaded.remote, loaded.api_key, loaded.headers, loaded.verify)
    assert Sampling(top_k=3) == loaded.sampling
    file.write_text("")
    assert Options() == Options.load(file)


WRONG_FILES = {
    "paralel: 8": (1, "did you mean 'parallel'"),
    "parallel: 1\n\nnothing_like_it: 8": (3, "there are model, remote"),
    "parallel: 1\nparallel: 2": (2, "a second time"),
    "- parallel": (1, "a mapping of options"),
    "just words": (1, "a mapping of options"),
    "parallel: many": (1, "Expected `int`, got `str`"),
    "threads: 2\nparallel: 0": (2, "at least 1, not 0"),
    "parallel: 2.5": (1, "Expected `int`"),
    "parallel: true": (1, "Expected `int`"),
    "sampling: gredy": (1, "there are CLASSIC"),
    "sampling: {temprature: 1}": (1, "temprature"),
    "backend: chatgpt": (1, "use one of auto"),
    "idle_timeout: .nan": (1, "above 0"),
    "extra_args: --flash-attn": (1, "Expected `array`"),
    "on_progress: print": (1, "is a function"),
    "headers: {A: 1}": (1, "Expected `str`"),
    "model: [1": (1, "expected"),
    "model: x\n\tparallel: 2": (2, "tab|cannot start|mapping values"),
    "model: !!python/object/apply:os.system [id]": (1, "a tag that is not allowed"),
    "model: !secret x": (1, "a tag that is not allowed"),
    "sampling: &a {temperature: *a}": (1, "recursive"),
    "? {a: b}\n: 3": (1, "is not an option"),
    "device: tpu": (1, "use best, cpu"),
    "gpu_layers: -1": (1, "at least 0"),
    "cache_type_k: q9": (1, "use one of f32"),
    "flash_attention: maybe": (1, "Expected `bool"),
    "rope_freq_base: 0": (1, "above 0"),
    "lora: [{path: a, scales: 2}]": (1, "scales"),
    "lora: [{path: a, scale: .nan}]": (1, "is a number"),
    "parallel: 1\nlora: [a, a]": (2, "names a twice"),
    "lora: {path: a}": (1, "Expected `str | array`"),
}


@pytest.mark.parametrize(("text", "wrong"), WRONG_FILES.items(), ids=range(len(WRONG_FILES)))
def test_what_is_wrong_in_a_file_is_told_with_its_line(file: Path, text: str, wrong: tuple[int, str]) -> None:
    """Issue 3: file, line and nearest name; a Python tag runs nothing."""
    line, words = wrong
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        Options.load(file)
    assert str(caught.value).startswith(f"{file}, line {line}: ")
    assert (file, line) == (caught.value.path, caught.value.line)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"[" * 5000], ids=["no UTF-8", "NUL", "deep"])
def test_what_is_no_yaml_is_told_with_its_file(file: Path, content: bytes) -> None:
    """Bad input: one clear error of ours."""
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Options.load(file)
    assert str(file) in str(caught.value)
    assert file == caught.value.path


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Bad input: one clear error of ours."""
    with pytest.raises(ConfigError, match=r"nowhere.*cannot be read"):
        Options.load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Options.load(tmp_path)


def test_every_field_has_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3: by environment; an empty one counts as none, and other people's are theirs."""
    variables = {
        "MODEL": "tiny-chat", "PARALLEL": "8", "EXTRA_ARGS": "--flash-attn 'on'", "SAMPLING": "{top_k: 3}",
        "LORA": "[a.gguf, {path: b.gguf, scale: 2}]", "DEVICE": "gpu:1", "CHAT_TEMPLATE": "{{ x }}",
        "CACHE_DIR": "/x", "PROMPT_ENCODING": "chat", "THREADS": "", "PYTHON": "python3", "OF_SOMEBODY_ELSE": "1",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(f"LLMSESSION_{name}", value)
    loaded = Options.load()
    assert ("tiny-chat", 8, ("--flash-attn", "on")) == (loaded.model, loaded.parallel, loaded.extra_args)
    assert ((Lora("a.gguf"), Lora("b.gguf", 2.0)), "gpu:1", "{{ x }}") == (
        loaded.lora, loaded.device, loaded.chat_template,
    )  # fmt: skip
    monkeypatch.setenv("LLMSESSION_LORA", "one.gguf")
    assert (Lora("one.gguf"),) == Options.load().lora
    assert (Sampling(top_k=3), "/x", "chat", None) == (
        loaded.sampling, loaded.cache_dir, loaded.prompt_encoding, loaded.threads,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PARALLEL", "many", "LLMSESSION_PARALLEL='many'"),
        ("PARALLEL", "[", "cannot be read"),
        ("EXTRA_ARGS", "'", "not arguments"),
        ("PARALEL", "8", "did you mean LLMSESSION_PARALLEL"),
        ("IDLE_TIMEOUT", "-1", "above 0"),
    ],
)
def test_what_is_wrong_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """Issue 3: a variable of the environment with a wrong type."""
    monkeypatch.setenv(f"LLMSESSION_{name}", value)
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        Options.load()


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """API.md 3: `repr` hides api_key and headers; so do the errors."""
    monkeypatch.setenv("LLMSESSION_HEADERS", "{X-Key: [hunter2]}")
    with pytest.raises(ConfigError, match="LLMSESSION_HEADERS=…") as caught:
        Options.load()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Options(remote="x", api_key="hunter2", headers={"X-Key": "hunter2"}))


@pytest.mark.parametrize(
    "fields",
    [
        {"remote": 1}, {"remote": "x", "api_key": b"k"}, {"remote": "x", "headers": ["a"]},
        {"remote": "x", "headers": {"a": 1}}, {"remote": "x", "headers": {"a\n": "b"}}, {"remote": "x", "verify": 1},
        {"verify": False}, {"headers": {"a": "b"}}, {"device": 1}, {"device": "cpu:2", "threads": 3},
        {"device": "cpu", "gpu_layers": 3}, {"gpu_layers": True}, {"flash_attention": "on"}, {"kv_offload": None},
        {"cache_type_v": "q8_0", "flash_attention": False}, {"cache_type_k": 8}, {"rope_freq_base": "1"},
        {"rope_freq_base": float("inf")}, {"lora": 3}, {"lora": [3]}, {"lora": [""]}, {"draft_model": 1},
        {"mmproj": b"x"}, {"chat_template": ["x"]}, {"chat_template": "x", "prompt_encoding": "chatml"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_keyword_is_a_config_error(fields: dict[str, Any]) -> None:
    """Bad input: one clear error of ours."""
    with pytest.raises(ConfigError):
        Options(**fields)


def test_a_device_is_taken_by_its_id() -> None:
    """API 2: the id, or the Device."""
    device = Device(id="gpu:1", name="x", kind="gpu", memory_bytes=1, free_bytes=1)
    assert Options(device="gpu:1") == Options(device=device)


def test_adapters_are_named_in_any_form() -> None:
    """API 3: one or several, by path or with a scale."""
    assert (Lora("a"),) == Options(lora="a").lora == Options(lora=[Lora("a")]).lora == Options(lora=Lora("a")).lora  # type: ignore[arg-type]
    assert (Lora(Path("a"), 0.0), Lora("hf:a/b/HEAD/c")) == Options(lora=[Lora(Path("a"), 0), "hf:a/b/HEAD/c"]).lora  # type: ignore[arg-type]
