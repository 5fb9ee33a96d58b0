"""The table of what a Launch asks for: as flags of llama-server, of several builds, and as fields of xllamacpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsession import Lora, UnsupportedFeatureError
from llmsession.backends.flags.argv import write_flags
from llmsession.backends.flags.capabilities import Capabilities, Option
from llmsession.backends.flags.launch_table import list_option_rows, list_rows, write_csv
from llmsession.backends.launch import Launch
from llmsession.types.device import DeviceRequest, Gpu

# What the build of 2026-11 knows of it; those with `=` take a value.
ALL = (
    "--device= --gpu-layers= --flash-attn= --no-kv-offload --cache-type-k= --cache-type-v= --rope-freq-base= "
    "--override-kv= --lora= --model-draft= --spec-type= --device-draft= --gpu-layers-draft= --mmproj= "
    "--no-mmproj-offload --jinja --chat-template-file= --slot-save-path="
)
GPU = Gpu(name="CUDA1", index=1, text="", memory_bytes=1, free_bytes=1)


def make(**fields: Any) -> Launch:
    """One that asks for no more than it must."""
    here = Path()
    return Launch(
        model_path=here, alias="m", context_length=100, parallel=3, threads=1, cache_ram_mib=0, cache=here, logs=here,
        records=here, **fields,
    )  # fmt: skip


def build(flags: str) -> Capabilities:
    """One that has these."""
    options = [(flag.rstrip("="), "N" if flag.endswith("=") else "") for flag in flags.split()]
    return Capabilities(
        options=tuple(Option(flags=(flag,), takes=takes, text="comma-separated") for flag, takes in options)
    )


def flags(launch: Launch, capabilities: Capabilities) -> list[str]:
    """What llama-server is told of the options."""
    return list(write_flags(list_option_rows(launch), capabilities, backend="llama-server"))


def fields(launch: Launch) -> dict[str, Any]:
    """What the embedded engine is told of the options."""
    return {name: value for row in list_option_rows(launch) for name, value, _ in row.fields}


def test_every_option_on_both_engines(tmp_path: Path) -> None:
    """B13, B18: as llama-server reads it, and by the fields of the wheel."""
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    launch = make(
        device=DeviceRequest(kind="gpu", index=1), gpu=GPU, gpu_layers=20, flash_attention=False, kv_offload=False,
        cache_type_k="q8_0", cache_type_v="f32", rope_freq_base=2e4, kv_folder=Path("/kv"),
        metadata=("llama.context_length=int:9",), lora=(Lora(Path("/a,b.gguf"), 0.5),), draft_model=Path("/d"),
        mmproj=Path("/p"), chat_template=template,
    )  # fmt: skip
    assert [
        "--gpu-layers", "20", "--device", "CUDA1", "--flash-attn", "off", "--no-kv-offload", "--cache-type-k", "q8_0",
        "--cache-type-v", "f32", "--rope-freq-base", "20000.0", "--slot-save-path", "/kv", "--override-kv",
        "llama.context_length=int:9", "--lora", '"/a,b.gguf"', "--model-draft", "/d", "--spec-type", "draft-simple",
        "--mmproj", "/p", "--chat-template-file", str(template),
    ] == flags(launch, build(ALL))  # fmt: skip
    assert {
        "n_gpu_layers": 20, "main_gpu": 1, "split_mode": "LLAMA_SPLIT_MODE_NONE",
        "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_DISABLED", "no_kv_offload": True, "cache_type_k": "GGML_TYPE_Q8_0",
        "cache_type_v": "GGML_TYPE_F32", "rope_freq_base": 2e4, "slot_save_path": "/kv/",
        "speculative.draft.mparams.path": "/d", "speculative.types": ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"],
        "mmproj.path": "/p", "chat_template": "{{ messages }}",
    } == fields(launch)  # fmt: skip


def test_no_option_asks_for_nothing() -> None:
    """As the engine thinks best."""
    launch = make(device=DeviceRequest(kind="gpu"))
    assert ([], {}) == (flags(launch, build(ALL)), fields(launch))


def test_every_session_has_slots_of_their_own() -> None:
    """LLAMA_SERVER F4: each conversation has its context_length, on both engines."""
    rows = list(list_rows(make()))
    words = [word for row in rows for word in row.words]
    assert "--parallel 3 --ctx-size 300 --no-kv-unified" in " ".join(words)
    settings = {name: value for row in rows for name, value, _ in row.fields}
    assert (3, 300, False) == (settings["n_parallel"], settings["n_ctx"], settings["kv_unified"])


def test_the_cpu_alone() -> None:
    """B13: nothing goes to a GPU, also not the draft model and the projector; an old build is told what it knows."""
    launch = make(device=DeviceRequest(kind="cpu"), draft_model=Path("/d"), mmproj=Path("/p"))
    assert [
        "--device", "none", "--gpu-layers", "0", "--model-draft", "/d", "--spec-type", "draft-simple", "--device-draft",
        "none", "--gpu-layers-draft", "0", "--mmproj", "/p", "--no-mmproj-offload",
    ] == flags(launch, build(ALL))  # fmt: skip
    assert (0, 0, True, False) == tuple(
        fields(launch)[name]
        for name in ("n_gpu_layers", "speculative.draft.n_gpu_layers", "no_op_offload", "mmproj_use_gpu")
    )
    only = make(device=DeviceRequest(kind="cpu"))
    assert ["--gpu-layers", "0"] == flags(only, build("--gpu-layers="))
    assert [] == flags(only, build("--ctx-size="))


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"cache_type_k": "q8_0"}, "cache_type_k"),
        ({"mmproj": Path("/p")}, "mmproj"),
        ({"lora": (Lora(Path("/a"), 1.0),)}, "lora"),
        ({"metadata": ("a=int:1",)}, "context_length"),
        ({"device": DeviceRequest(kind="gpu", index=1), "gpu": GPU}, "device=gpu"),
    ],
)
def test_what_a_build_lacks_is_refused_by_name(given: dict[str, Any], option: str) -> None:
    """B16: an old build does not get a flag that ends it; it is said which option it cannot be given."""
    with pytest.raises(UnsupportedFeatureError, match=f"cannot be given {option}: name a newer build") as caught:
        flags(make(**given), build("--ctx-size="))
    assert option == caught.value.feature


def test_a_build_without_lists_is_given_one_adapter_after_the_other() -> None:
    """B16: today's builds read a list; those before took the flag again and again, and paths as they are."""
    old = Capabilities(options=(Option(flags=("--lora",), takes="FNAME", text="path to LoRA adapter"),))
    launch = make(lora=(Lora(Path('/a,"b"'), 1.0), Lora(Path("/c"), 1.0)))
    assert ["--lora", '/a,"b"', "--lora", "/c"] == flags(launch, old)


def test_paths_are_quoted_as_the_engine_reads_lists() -> None:
    """LLAMA_SERVER 4.4: commas and quotation marks in the path of an adapter."""
    assert """/a,"/b,c","/d ""e"".gguf",/f 'g'""" == write_csv(["/a", "/b,c", '/d "e".gguf', "/f 'g'"])
