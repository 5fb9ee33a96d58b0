"""The small demonstration model inside the package: what a first run talks to, with no download."""

from __future__ import annotations

from pathlib import Path

from llmsession.models.encoding import PromptEncoding

NAME = "tiny-chat"
# How it is prompted; the registry has it by the same name. Here and not in knownllms.yaml, so that a first run needs
# not read that.
ENCODING = PromptEncoding(
    system_token_start="<|im_start|>system\n",
    system_token_end="<|im_end|>\n",
    user_token_start="<|im_start|>user\n",
    user_token_end="<|im_end|>\n",
    assistant_token_start="<|im_start|>assistant\n",
    assistant_token_end="<|im_end|>\n",
    tools_available_token_start="# Tools\n<tools>\n",
    tools_available_token_end="\n</tools>",
    tool_call_token_start="<tool_call>\n",
    tool_call_token_end="\n</tool_call>",
    tool_call_result_token_start="<tool_response>\n",
    tool_call_result_token_end="\n</tool_response>",
    results_in_user_turn=True,
)

# Said once by the command line, so that nobody takes its answers for more than they are.
NOTICE = (
    "tiny-chat is a demonstration of two megabytes: it repeats phrases, remembers a name and little more. "
    "For a real model, try --model qwen3-0.6b, which fetches 640 MB; `llmsession models list` shows others."
)


def bundled_path() -> Path:
    """Return the path of the model file."""
    return Path(__file__).with_name("tiny-chat.gguf")
