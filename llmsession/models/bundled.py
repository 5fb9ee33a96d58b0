"""The small demonstration model inside the package: what a first run talks to, with no download."""

from __future__ import annotations

from pathlib import Path

NAME = "tiny-chat"
ENCODING = "tiny-chat"

# Said once by the command line, so that nobody takes its answers for more than they are.
NOTICE = (
    "tiny-chat is a demonstration of two megabytes: it repeats phrases, remembers a name and little more. "
    "For a real model, try --model qwen3-0.6b, which fetches 640 MB; `llmsession models list` shows others."
)


def bundled_path() -> Path:
    """Where it lies."""
    return Path(__file__).with_name("tiny-chat.gguf")
