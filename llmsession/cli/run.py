"""`llmsession run`: one prompt, one reply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio

from llmsession.cli.start import load_options, started
from llmsession.session.config.options import Options
from llmsession.types.errors import UsageError
from llmsession.types.messages import Message


def run_prompt(
    prompt: str,
    *,
    options: dict[str, Any],
    locked: bool,
    config: Path | None,
    system: str | None,
    keywords: dict[str, Any],
    as_json: bool,
    verbose: bool,
) -> None:
    """Stream the reply to stdout. Raises LLMSessionError, and KeyboardInterrupt after Ctrl-C, once all is closed."""
    text = _read_stdin() if prompt == "-" else prompt
    messages = [*([Message.system(system)] if system else []), Message.user(text)]
    opening = {"verbose": verbose, "locked": locked}
    anyio.run(_reply, messages, load_options(options, config), keywords, as_json, opening)


def _read_stdin() -> str:
    """Return all of stdin, decoded as UTF-8, without the line break at its end. Raises UsageError if it is empty."""
    if sys.stdin is None:
        raise UsageError("there is no standard input to read the prompt from: it is closed")
    text = sys.stdin.buffer.read().decode("utf-8-sig", errors="replace").removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise UsageError("there is nothing on standard input to reply to")
    return text


async def _reply(
    messages: list[Message],
    options: Options,
    keywords: dict[str, Any],
    as_json: bool,
    opening: dict[str, bool],
) -> None:
    async with started(options, **opening) as session:
        if as_json:
            print((await session.prompt(messages, **keywords)).to_json())  # noqa: T201
            return
        async with session.prompt_streaming(messages, **keywords) as stream:
            await stream.print()
