"""`llmsession run`: one prompt, one reply."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from llmsession.models import bundled
from llmsession.session import Session


def run_prompt(prompt: str, *, model: Path | None, backend: str, verbose: bool) -> None:
    """Stream the reply to stdout. Raises LLMSessionError; KeyboardInterrupt after Ctrl-C, with everything put away."""
    if model is None:
        _say(bundled.NOTICE)
    anyio.run(_reply, prompt, model, backend, verbose)


async def _reply(prompt: str, model: Path | None, backend: str, verbose: bool) -> None:
    async with Session(model, backend=backend) as session:
        if verbose:
            _say(f"{session.backend} {session.version}, log in {session.log_path}")
        async with session.prompt_streaming(prompt) as stream:
            await stream.print()


def _say(sentence: str) -> None:
    print(f"llmsession: {sentence}", file=sys.stderr)  # noqa: T201
