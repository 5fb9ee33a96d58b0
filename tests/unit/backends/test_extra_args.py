"""The user's own flags: what fights ours is refused; what the embedded engine takes is translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsession import ConfigError, Lora, UnsupportedFeatureError
from llmsession.backends.flags.argv import write_csv, write_engine_flags
from llmsession.backends.flags.capabilities import Capabilities, Option
from llmsession.backends.flags.embedded import translate_flags
from llmsession.backends.flags.extra_args import check_extra_args
from llmsession.backends.launch import Launch
from llmsession.types.device import DeviceRequest, Gpu

# What the build of 2026-11 knows of it.
ALL = (
    "--device --gpu-layers --flash-attn --no-kv-offload --cache-type-k --cache-type-v --rope-freq-base --override-kv "
    "--lora --model-draft --spec-type --device-draft --gpu-layers-draft --mmproj --no-mmproj-offload --jinja "
    "--chat-template-file"
)


def make(extra_args: tuple[str, ...] = (), **fields: Any) -> Launch:
    """One that asks for no more than it must."""
    here = Path()
    return Launch(
        model_path=here, alias="m", context_length=1, parallel=1, threads=1, cache_ram_mib=0, cache=here, logs=here,
        records=here, extra_args=extra_args, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "words"),
    {
        "-m": "use model=", "--model": "use model=", "-hf": "use model=", "--hf-repo": "use model=",
        "-c": "use context_length=", "--ctx_size": "use context_length=", "--ctx-size=5": "use context_length=",
        "-np": "use parallel=", "--kv-unified": "use parallel=", "-t": "use threads=", "--device": "use device=",
        "--lora": "use lora=", "--lora_scaled": "use lora=", "-md": "use draft_model=", "--mmproj-url": "use mmproj=",
        "--chat-template": "use chat_template=", "--api-key": "draws a key", "--api_key_file=x": "draws a key",
        "--host": "chooses where", "--port=1": "chooses where", "--cors-origins": "chooses where",
        "--api-prefix": "chooses where", "--ui": "no page", "--webui": "no page", "--tools": "no page",
        "--ui-mcp-proxy": "no page", "-ag": "no page", "--mcp-servers-json": "no page", "--slots": "reads what",
        "--log-disable": "reads what", "--version": "print it and end", "--offline": "fetches files",
        "--fim-qwen-7b-default": "stands for a model", "--gpt-oss-20b-default": "stands for a model",
    }.items(),
)  # fmt: skip
def test_flags_that_fight_ours_are_refused(flag: str, words: str) -> None:
    """B18: short forms, `--flag=value` and underscores; the error names the option to use, or says why."""
    with pytest.raises(ConfigError, match=words) as caught:
        check_extra_args(make(("--top-k", "3", flag, "x")))
    assert flag.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "option", "value"),
    [
        ("-fa --flash-attn --flash_attn", "flash_attention", True),
        ("-ctk --cache-type-k", "cache_type_k", "q8_0"),
        ("-ctv --cache-type-v", "cache_type_v", "q8_0"),
        ("-nkvo --no-kv-offload", "kv_offload", False),
        ("-ngl --gpu-layers --n-gpu-layers", "gpu_layers", 3),
        ("-ngl --main-gpu", "device", DeviceRequest(kind="cpu")),
        ("-sm -ts", "device", DeviceRequest(kind="gpu", index=1)),
        ("--rope-freq-base", "rope_freq_base", 1e4),
        ("--override-kv", "metadata", ("llama.context_length=int:9",)),
        ("-cram --cache-ram", "lora", (Lora("a.gguf"),)),
    ],
)
def test_a_flag_and_its_option_are_not_given_both(flags: str, option: str, value: object) -> None:
    """B18: with the option left alone the flag is the user's."""
    for flag in flags.split():
        check_extra_args(make((flag, "1")))
        with pytest.raises(ConfigError, match=f"{flag} beside"):
            check_extra_args(make((flag, "1"), **{option: value}))


def test_how_a_model_is_split_over_any_gpu_is_the_users() -> None:
    """B13: with device="gpu", --split-mode and --tensor-split may be given."""
    check_extra_args(make(("--split-mode", "row", "--tensor-split", "3,1"), device=DeviceRequest(kind="gpu")))


def test_a_value_goes_beside_its_flag() -> None:
    """LLAMA_SERVER 4.6: the engine says no more than `invalid argument` to --temp=1."""
    with pytest.raises(ConfigError, match="two arguments"):
        check_extra_args(make(("--temp=1",)))
    check_extra_args(make(("--override-kv", "a=int:1")))


def test_flags_of_the_embedded_engine_become_fields() -> None:
    """API 3: the embedded backend translates those it knows, in every spelling."""
    assert [("sampling.temp", 0.5, None), ("sampling.top_k", 3, None), ("warmup", False, None)] == list(
        translate_flags(["--temperature", "0.5", "--top_k", "3", "--no-warmup"])
    )
    assert [("flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_ENABLED", "llama_flash_attn_type")] == list(
        translate_flags(["-fa", "on"])
    )
    assert [("timeout_read", 9, None), ("timeout_write", 9, None)] == list(translate_flags(["--timeout", "9"]))
    assert [("default_template_kwargs", {"a": "true"}, None)] == list(
        translate_flags(["--chat-template-kwargs", '{"a": true}'])
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--rpc", "x"], UnsupportedFeatureError, "nothing in it is --rpc"),
        (["--top-k", "3", "stray"], UnsupportedFeatureError, "stray"),
        (["--top-k"], ConfigError, "--top-k needs a value"),
        (["--top-k", "many"], ConfigError, "--top-k takes a whole number, not 'many'"),
        (["--temp", ""], ConfigError, "--temp takes a number"),
        (["-fa", "maybe"], ConfigError, "-fa takes one of on, off, auto, not 'maybe'"),
        (["-ctk", "q9"], ConfigError, "one of f32, f16"),
        (["--spec-type", "ngram-mod,x"], ConfigError, "ngram-mod"),
        (["--chat-template-kwargs", "[1]"], ConfigError, "an object of JSON"),
        (["--chat-template-kwargs", "[" * 100_000], ConfigError, "an object of JSON"),
        (["--tensor-split", "1,x"], ConfigError, "numbers with commas"),
        (["--fit", "maybe"], ConfigError, "on or off"),
    ],
    ids=str,
)
def test_what_the_embedded_engine_cannot_take(arguments: list[str], error: type[Exception], words: str) -> None:
    """B18: refused by name, with what would do."""
    with pytest.raises(error, match=words):
        list(translate_flags(arguments))


def build(flags: str) -> Capabilities:
    """One that has these."""
    return Capabilities(options=tuple(Option(flags=(flag,), text="comma-separated") for flag in flags.split()))


def test_options_as_flags() -> None:
    """B13, B18: what a Launch asks for, as llama-server reads it."""
    launch = make(
        device=DeviceRequest(kind="gpu", index=1),
        gpu=Gpu(name="CUDA1", index=1, text="", memory_bytes=1, free_bytes=1),
        gpu_layers=20, flash_attention=False, kv_offload=False, cache_type_k="f16", cache_type_v="f32",
        rope_freq_base=2e4, metadata=("llama.context_length=int:9",), lora=(Lora(Path("/a,b.gguf"), 0.5),),
        draft_model=Path("/d"), mmproj=Path("/p"), chat_template=Path("/t"),
    )  # fmt: skip
    assert [
        "--gpu-layers", "20", "--device", "CUDA1", "--flash-attn", "off", "--no-kv-offload", "--cache-type-k", "f16",
        "--cache-type-v", "f32", "--rope-freq-base", "20000.0", "--override-kv", "llama.context_length=int:9",
        "--lora", '"/a,b.gguf"', "--model-draft", "/d", "--spec-type", "draft-simple", "--mmproj", "/p", "--jinja",
        "--chat-template-file", "/t",
    ] == write_engine_flags(launch, build(ALL), backend="llama-server")  # fmt: skip
    assert [] == write_engine_flags(make(device=DeviceRequest(kind="gpu")), build(ALL), backend="llama-server")


def test_the_cpu_alone() -> None:
    """B13: nothing goes to a GPU, also not the draft model and the projector; an old build is told what it knows."""
    launch = make(device=DeviceRequest(kind="cpu"), draft_model=Path("/d"), mmproj=Path("/p"))
    assert [
        "--device", "none", "--gpu-layers", "0", "--model-draft", "/d", "--spec-type", "draft-simple", "--device-draft",
        "none", "--gpu-layers-draft", "0", "--mmproj", "/p", "--no-mmproj-offload",
    ] == write_engine_flags(launch, build(ALL), backend="llama-server")  # fmt: skip
    assert ["--gpu-layers", "0"] == write_engine_flags(
        make(device=DeviceRequest(kind="cpu")), build("--gpu-layers"), backend="llama-server"
    )


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"cache_type_k": "q8_0"}, "cache_type_k"),
        ({"chat_template": Path("/t")}, "chat_template"),
        ({"mmproj": Path("/p")}, "mmproj"),
        (
            {"device": DeviceRequest(kind="gpu", index=0),
             "gpu": Gpu(name="A", index=0, text="", memory_bytes=1, free_bytes=1)},
            "device=gpu",
        ),
    ],
)  # fmt: skip
def test_what_a_build_lacks_is_refused_by_name(fields: dict[str, Any], option: str) -> None:
    """B16: an old build does not get a flag that ends it; it is said which option it cannot be given."""
    with pytest.raises(UnsupportedFeatureError, match=f"cannot be given {option}"):
        write_engine_flags(make(**fields), build("--ctx-size"), backend="llama-server")


def test_a_build_without_lists_is_told_one_adapter_after_the_other() -> None:
    """B16: today's builds read a list; those before took the flag again and again, and paths as they are."""
    old = Capabilities(options=(Option(flags=("--lora",), text="path to LoRA adapter (can be repeated)"),))
    launch = make(lora=(Lora(Path("/a,b"), 1.0), Lora(Path("/c"), 1.0)))
    assert ["--lora", "/a,b", "--lora", "/c"] == write_engine_flags(launch, old, backend="llama-server")


def test_paths_are_quoted_as_the_engine_reads_lists() -> None:
    """LLAMA_SERVER 4.4: commas and quotation marks in the path of an adapter."""
    assert """/a,"/b,c","/d ""e"".gguf",/f 'g'""" == write_csv(["/a", "/b,c", '/d "e".gguf', "/f 'g'"])
