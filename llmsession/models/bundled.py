"""The small demonstration model inside the package: what a first run talks to, with no download."""

from __future__ import annotations

from pathlib import Path

NAME = "tiny-chat"
ENCODING = "tiny-chat"

# Said once by the command line, so that nobody takes its answers for more than they are.
NOTICE = (
    "tiny-chat is a demonstration of two megabytes: it repeats phrases, remembers a name and little more. "
    "For a real model, give a GGUF file with --model PATH; a good first one is Qwen3-0.6B-Q8_0.gguf "
    "of Qwen/Qwen3-0.6B-GGUF on Hugging Face."
)


def bundled_path() -> Path:
    """Where it lies."""
    return Path(__file__).with_name("tiny-chat.gguf")
