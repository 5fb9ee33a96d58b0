"""The user's own flags: what fights ours is refused; what the embedded engine takes is translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsession import ConfigError, Lora, UnsupportedFeatureError
from llmsession.backends.flags.embedded import translate_flags
from llmsession.backends.flags.extra_args import check_extra_args
from llmsession.backends.launch import Launch
from llmsession.types.device import DeviceRequest


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
