"""Patterns of fatal errors in llama.cpp's log, and what each of them means. Does no I/O.

The texts are from builds of 2024 to 2026. Those about GPUs are from llama.cpp's issues, and were not reproduced.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["memory", "device memory", "model", "option", "engine"]

_ANOTHER = "take another conversion of the model"
_OTHER_OR_NEWER = f"{_ANOTHER}, or, if it is a new one, a newer engine"
_REPORT = "take another build, and report it to llama.cpp with the log"


class Saying(msgspec.Struct, frozen=True):
    """A pattern in the log, and what it means.

    In `what`, `{0}` and `{1}` are the pattern's groups, `{any}` those that matched, `{parser}` the error of the
    template parser. `{newer}` is the advice to use a newer build.
    """

    pattern: str
    kind: Kind
    what: str = ""
    advice: str = ""


# The first pattern that is found decides, so the most specific ones come first.
SAYINGS = (
    Saying(r"couldn't bind HTTP server socket", "engine", "another program took its port", "try again"),
    # Files besides the model.
    Saying(
        r"failed to load lora adapter '(.*)'",
        "option",
        "the LoRA adapter {0} cannot be loaded",
        "give a GGUF adapter that was made for this model",
    ),
    Saying(
        r"(?i:failed to load CLIP model from) (\S+)",
        "option",
        "the projector {0} cannot be loaded",
        "give the mmproj file of this model",
    ),
    Saying(
        r"failed to load draft model, '(.*)'",
        "option",
        "the draft model {0} cannot be loaded",
        "give a GGUF file with the same vocabulary",
    ),
    Saying(
        r"the supplied chat template is not supported",
        "option",
        "the chat template in extra_args cannot be parsed ({parser})",
        "correct it, or leave it away",
    ),
    Saying(
        r"chat template parsing error|failed to initialize chat template",
        "model",
        "its chat template cannot be parsed ({parser})",
        'take another conversion of the model, or give backend="llama-server" a template with '
        'extra_args=("--chat-template-file", FILE)',
    ),
    # The memory of a GPU.
    Saying(
        r"(?:CUDA|ROCm|MUSA) error: out of memory|(?:cuda|hip|musa)Malloc\w* failed: out of memory"
        r"|ErrorOutOfDeviceMemory|Device memory allocation of size \d+ failed"
        r"|kIOGPUCommandBufferCallbackErrorOutOfMemory"
        r"|(?:failed|unable) to allocate (?:CUDA|ROCm|Vulkan|Metal|MTL|SYCL|MUSA)\w* buffer",
        "device memory",
    ),
    # A GPU or driver that the build does not support.
    Saying(
        r"no kernel image is available for execution on the device",
        "engine",
        "it was not compiled for this GPU",
        "take a build for its compute capability, or one for the CPU",
    ),
    Saying(
        r"CUDA driver version is insufficient|PTX was compiled with an unsupported toolchain",
        "engine",
        "NVIDIA's driver is older than the CUDA that it was built with",
        "update the driver, or take a build for an older CUDA",
    ),
    Saying(
        r"ErrorDeviceLost|vk::DeviceLostError",
        "engine",
        "the GPU was lost while it computed (Vulkan: device lost)",
        "update the GPU's driver, or give it less to do",
    ),
    Saying(
        r"(CUDA|ROCm) error: (.+)",
        "engine",
        "the GPU failed ({0}: {1})",
        "look whether its driver works (nvidia-smi, rocm-smi)",
    ),
    # The memory of the machine.
    Saying(
        r"ggml_aligned_malloc: insufficient memory|failed to allocate buffer for kv cache"
        r"|(?:failed|unable) to allocate \w+ buffer|failed to allocate compute"
        r"|mmap failed: Cannot allocate memory|std::bad_alloc|^MemoryError",
        "memory",
    ),
    # The model's file, or a build that is too old for it.
    Saying(r"unknown model architecture: '(.*)'", "engine", "it does not know {model}'s architecture {0}", "{newer}"),
    Saying(r"unknown pre-tokenizer type: '(.*)'", "engine", "it does not know {model}'s tokenizer {0}", "{newer}"),
    Saying(r"unknown tokenizer: '?(.+?)'?$", "engine", "it does not know {model}'s tokenizer {0}", "{newer}"),
    Saying(
        r"tensor '(.*?)' has invalid ggml type (\d+)",
        "engine",
        "it does not know the format {1} in which {model} keeps its tensor {0}",
        "{newer}",
    ),
    Saying(r"data is not within the file bounds", "model", "it is cut", "fetch it again"),
    Saying(
        r"failed to open GGUF file '.*' \((.*)\)",
        "model",
        "the engine cannot open it ({0})",
        "look at the path",
    ),
    Saying(
        r"invalid magic characters|failed to read magic",
        "model",
        "it is not a GGUF file",
        "give one, or fetch it again",
    ),
    Saying(
        r"GGUFv1 is no longer supported|bad GGUF version|this GGUF file is version",
        "model",
        "it is of a version of the GGUF format that the engine does not read",
        _ANOTHER,
    ),
    Saying(
        r"(?:missing tensor|check_tensor_dims: tensor) '(.*?)'(?: not found)?$",
        "model",
        "it lacks the tensor {0}",
        _OTHER_OR_NEWER,
    ),
    Saying(
        r"tensor '.*?' has wrong shape|wrong number of tensors",
        "model",
        "its tensors are not those of its architecture",
        _OTHER_OR_NEWER,
    ),
    Saying(r"key not found in model: (\S+)", "model", "its header lacks {0}", _ANOTHER),
    Saying(
        r"cannot find tokenizer merges|error loading model vocabulary",
        "model",
        "its vocabulary cannot be read",
        _ANOTHER,
    ),
    Saying(r"error loading model: (.+)", "model", "the engine cannot load it ({0})", _OTHER_OR_NEWER),
    # Options.
    Saying(
        r"n_seq_max must be <= (\d+)",
        "option",
        "parallel={parallel} is more than the {0} conversations that an engine serves at once",
        "ask for fewer",
    ),
    Saying(
        r"(?:failed to initialize the context|llama_init_from_model): (.+)",
        "engine",
        "it cannot make a context ({0})",
        "look at extra_args, or take another build",
    ),
    # The embedded engine's Python.
    Saying(
        r"OverflowError: value too large to convert",
        "option",
        "context_length={context} times parallel={parallel} is more than an engine can count",
        "ask for less",
    ),
    Saying(
        r"No module named 'xllamacpp",
        "engine",
        "its wheel is damaged",
        'install it again: pip install --force-reinstall "llmsession[embedded]"',
    ),
    # Bugs of the engine.
    Saying(r"GGML_ASSERT\((.*)\) failed", "engine", "it gave up by itself (GGML_ASSERT: {0})", _REPORT),
    Saying(
        r"terminate called after throwing an instance of '(.*)'(?:\s+what\(\): *(.*))?",
        "engine",
        "it gave up by itself ({any})",
        _REPORT,
    ),
)
_COMPILED = tuple((re.compile(saying.pattern, re.MULTILINE), saying) for saying in SAYINGS)


def find_saying(words: str) -> tuple[Saying, re.Match[str]] | None:
    """Return the first saying whose pattern is in the log, and its match; None if there is none."""
    for pattern, saying in _COMPILED:
        if (found := pattern.search(words)) is not None:
            return saying, found
    return None
