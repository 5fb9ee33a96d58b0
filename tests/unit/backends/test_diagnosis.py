"""From what engines have said to one sentence: LLAMA_SERVER §4.6 row by row, by their own words on record."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from llmsession.backends.diagnosis.causes import Death, describe_death, explain_start
from llmsession.backends.diagnosis.loader import explain_refusal
from llmsession.backends.launch import Launch
from llmsession.models.bundled import bundled_path
from llmsession.models.gguf import read_model_info
from llmsession.types.errors import (
    ConfigError,
    InvalidModelError,
    LLMSessionError,
    NotEnoughMemoryError,
    StartFailedError,
)

WORDS = Path(__file__).parents[2] / "fixtures" / "last_words"
MODEL = Path("/models/m.gguf")
INFO = read_model_info(bundled_path())
GB = 10**9


def make_launch(*extra_args: str, context_length: int = 8192, parallel: int = 4) -> Launch:
    """Of a model that needs some megabytes."""
    return Launch(
        model_path=MODEL,
        info=INFO,
        alias="m",
        context_length=context_length,
        parallel=parallel,
        threads=1,
        cache_ram_mib=0,
        extra_args=extra_args,
        cache=Path(),
        logs=Path(),
        records=Path(),
    )


def explain(name: str, launch: Launch | None = None, *, returncode: int = 1) -> LLMSessionError | None:
    """What becomes of the words in a file."""
    backend = "embedded" if name.endswith("_embedded") else "llama-server"
    words = (WORDS / f"{name}.txt").read_text()
    death = Death(backend=backend, returncode=returncode, words=words, free_bytes=6 * GB)
    return explain_start(death, launch or make_launch(), log=Path("/logs/x.log"))


ROWS: dict[str, tuple[type[LLMSessionError], str]] = {
    "missing": (InvalidModelError, r"cannot open it \(No such file or directory\); look at the path"),
    "folder": (InvalidModelError, "it is not a GGUF file"),
    "not_gguf": (InvalidModelError, "it is not a GGUF file; give one, or fetch it again"),
    "cut": (InvalidModelError, "it is cut; fetch it again"),
    "entry": (InvalidModelError, "its header lacks llama.block_count; take another conversion"),
    "tokenizer_entry": (InvalidModelError, "its header lacks tokenizer.ggml.model"),
    "merges": (InvalidModelError, "its vocabulary cannot be read; take another conversion"),
    "tensor": (InvalidModelError, "it lacks the tensor blk.1.ffn_down.weight; .* a newer engine"),
    "tensor_shape": (InvalidModelError, "its tensors are not those of its architecture"),
    "tensor_type": (StartFailedError, "the format 999 in which .* its tensor blk.1.ffn_down.weight; .* server_path="),
    "architecture": (StartFailedError, "does not know /models/m.gguf's architecture xyzzy; .* older .* server_path="),
    "architecture_embedded": (StartFailedError, r"embedded engine .* xyzzy; .* pip install -U .llmsession\[embedded\]"),
    "tokenizer": (StartFailedError, "tokenizer gpt9; the build is older"),
    "pre_tokenizer": (StartFailedError, "tokenizer gpt-9; the build is older"),
    "template_of_model": (InvalidModelError, r"its chat template cannot be parsed \(Parser Error: Expected }} .*FILE"),
    "template_of_user": (ConfigError, r"template in extra_args cannot be parsed \(Parser Error: .*; correct it"),
    "port": (StartFailedError, "another program took its port; try again"),
    "kv_cache": (NotEnoughMemoryError, "llama-server ran out of memory: m needs .* are free: .* would fit"),
    "kv_cache_embedded": (NotEnoughMemoryError, "the embedded engine ran out of memory: m needs"),
    "weights": (NotEnoughMemoryError, "ran out of memory"),
    "weights_mapped": (NotEnoughMemoryError, "ran out of memory"),
    "assert_memory": (NotEnoughMemoryError, "ran out of memory"),
    "parallel": (ConfigError, "parallel=4 is more than the 256 conversations"),
    "too_many_tokens": (ConfigError, "context_length=8192 times parallel=4 is more than .* count; ask for less"),
    "cache_type": (StartFailedError, r"cannot make a context \(quantized V cache requires flash_attn"),
    "lora": (ConfigError, "the LoRA adapter /nope.gguf cannot be loaded; give"),
    "projector": (ConfigError, "the projector /nope.gguf cannot be loaded; give"),
    "draft": (ConfigError, "the draft model /nope.gguf cannot be loaded; give"),
    "library": (StartFailedError, "lacks the library libcuda.so.1; install NVIDIA's driver, or take a build without"),
    "library_embedded": (StartFailedError, "lacks the library libvulkan.so.1; install the Vulkan loader"),
    "glibc": (StartFailedError, 'built for a newer system .*GLIBC 2.38.*; use backend="embedded"'),
    "symbol": (StartFailedError, "different builds .*llama_model_load_from_splits.*; install it again"),
    "cuda_memory": (NotEnoughMemoryError, "the GPU's memory does not hold m, which needs .*: take less"),
    "cuda_kernel": (StartFailedError, "not compiled for this GPU; take a build"),
    "vulkan_memory": (NotEnoughMemoryError, "the GPU's memory does not hold m"),
    "vulkan_buffer": (NotEnoughMemoryError, "the GPU's memory does not hold m"),
    "vulkan_lost": (StartFailedError, "the GPU was lost .*; update the GPU's driver"),
}
FLAGS: dict[str, tuple[str, str, str]] = {
    "flag_unknown": ("--bogus-flag", "knows no --bogus-flag; its --help", "does not take --bogus-flag, which we"),
    "flag_value": ("--top-k", "--top-k: this is not a number", r"does not take --top-k, which we give it \(stoi\)"),
    "flag_without_value": ("--top-k", "--top-k: expected value for argument; its --help", "does not take --top-k"),
    "flag_removed": ("--draft", "no --draft any more; use --spec-draft-n-max", "does not take --draft, which we"),
    "key_file": ("--api-key-file", "--api-key-file: failed to open file '/nope'", "does not take --api-key-file"),
    "slot_path": ("--slot_save-path=/nope", "--slot-save-path: not a directory: /nope", "does not take --slot-save"),
    "device": ("--device", "--device: invalid device: CUDA0", "does not take --device"),
}


def test_every_record_is_explained() -> None:
    """A file that no row reads would prove nothing."""
    assert {path.stem for path in WORDS.glob("*.txt")} == {*ROWS, *FLAGS}


@pytest.mark.parametrize("name", ROWS)
def test_what_was_said_becomes_one_sentence(name: str) -> None:
    """Row B12: what happened, to what, and the next step; never a trace, never a second line."""
    kind, sentence = ROWS[name]
    error = explain(name)
    assert type(error) is kind
    assert re.search(sentence, str(error)), str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_blamed_on_whoever_gave_it(name: str) -> None:
    """Row B12: the user's is a ConfigError with what the engine says; one of ours says that the build is another."""
    flag, theirs, ours = FLAGS[name]
    error = explain(name, make_launch(flag, "x"))
    assert isinstance(error, ConfigError)
    assert re.search(f"^extra_args: .*{theirs}", str(error)), str(error)
    error = explain(name)
    assert isinstance(error, StartFailedError)
    assert re.search(ours, str(error)), str(error)


@pytest.mark.parametrize(
    ("returncode", "sentence"),
    [
        (-9, r"killed from outside \(SIGKILL\): by hand, or by the system for lack of memory; look into .*dmesg"),
        (-15, r"ended from outside \(SIGTERM\)"),
        (-4, r"instructions that this processor does not have \(SIGILL\); use backend=\"embedded\""),
        (-6, r"crashed by a fault of its own \(SIGABRT\); try again"),
        (-11, r"crashed by a fault of its own \(SIGSEGV\)"),
        (-7, r"model's file could not be read any more \(SIGBUS\); .* fetch it again"),
        (-31, r"sandbox .*\(SIGSYS\)"),
        (0xC000001D, "SIGILL"),
        (0xC0000135, "a missing DLL; install Microsoft's Visual C"),
    ],
)
def test_a_signal_that_says_nothing_is_explained(returncode: int, sentence: str) -> None:
    """Row B12, LLAMA_SERVER §4.6: signals of POSIX, and codes of Windows as its documentation has them."""
    death = Death(backend="llama-server", returncode=returncode, words="loading model\n")
    error = explain_start(death, make_launch(), log=Path("/logs/x.log"))
    assert isinstance(error, StartFailedError)
    assert re.search(sentence, str(error)), str(error)
    assert (returncode, "loading model\n") == (error.returncode, error.log_tail)
    assert "/logs/x.log" in str(error)


def test_a_kill_by_the_kernel_is_told_from_one_by_hand() -> None:
    """Row B12: the count of the kernel's own kills for lack of memory has risen."""
    death = Death(backend="embedded", returncode=-9, words="", memory_kills=1, free_bytes=1000)
    error = explain_start(death, make_launch(), log=Path())
    assert isinstance(error, NotEnoughMemoryError)
    assert "was killed by the kernel for lack of memory: m needs" in str(error)
    assert 1000 == error.free_bytes
    said = describe_death(-9, "", make_launch(), backend="embedded", memory_kills=1)
    assert said.startswith("the embedded engine was killed by the kernel for lack of memory while it replied (m needs")
    assert "from outside" in describe_death(-9, "", make_launch(), backend="embedded")


def test_what_is_not_known_is_left_to_the_log() -> None:
    """No sentence is made up."""
    death = Death(backend="llama-server", returncode=3, words="the model is made of cheese\n")
    assert explain_start(death, make_launch(), log=Path()) is None
    assert "llama-server ended with exit code 3 while it replied" == describe_death(
        3, "cheese", make_launch(), backend="llama-server"
    )


def test_an_abort_is_told_with_its_own_words() -> None:
    """LLAMA_SERVER §4.6: GGML_ASSERT, and C++'s terminate."""
    for words, told in (
        ("/build/ggml.c:1644: GGML_ASSERT(n > 0) failed\n", "GGML_ASSERT: n > 0"),
        ("terminate called after throwing an instance of 'std::runtime_error'\n  what():  oh no\n", "error: oh no"),
    ):
        said = describe_death(-6, words, make_launch(), backend="llama-server")
        assert said.startswith("llama-server was ended by SIGABRT while it replied: it gave up by itself")
        assert told in said


def elf(machine: int, interpreter: bytes = b"") -> bytes:
    """The beginning of a 64-bit program."""
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, machine).ljust(44, b"\0") + interpreter


@pytest.mark.parametrize(
    ("head", "number", "why"),
    [
        (elf(183), 8, "built for aarch64, and this machine is x86_64"),
        (elf(3), 8, "built for i386"),
        (elf(9999), 8, "a processor of kind 9999"),
        (elf(62), 8, "damaged, or not for this system"),
        (elf(62, b"/lib/ld-musl-x86_64.so.1"), 2, "its loader /lib/ld-musl-x86_64.so.1 is not on this system"),
        (b"\x7fELF", 8, "damaged"),
        (b"MZ\x90\0", 8, "a program for Windows"),
        (b"\xcf\xfa\xed\xfe", 8, "a program for macOS"),
        (b"", 8, "it is not a program"),
        (b"echo hello\n", 8, "it is not a program"),
        (b"#!/no/such/sh\n", 2, "its interpreter /no/such/sh is not there"),
        (elf(62), 13, "noexec"),
        (b"\xcf\xfa\xed\xfe", 86, "built for another processor"),
    ],
    ids=ascii,
)
def test_why_the_kernel_refuses_a_program(head: bytes, number: int, why: str) -> None:
    """Issue: a binary that is not one, or of another architecture."""
    assert why in explain_refusal(OSError(number, "no"), head, "AMD64")
