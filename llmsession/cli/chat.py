"""`llmsession chat`: a chat in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio

from llmsession.cli.start import load_options, started
from llmsession.options import Options
from llmsession.terminal.chat_loop import chat


def run_chat(
    *,
    options: dict[str, Any],
    locked: bool,
    config: Path | None,
    system: str | None,
    keywords: dict[str, Any],
    verbose: bool,
) -> None:
    """Until the input ends. Raises LLMSessionError, and KeyboardInterrupt where Ctrl-C met no answer and no prompt."""
    opening = {"verbose": verbose, "locked": locked}
    anyio.run(_chat, load_options(options, config), system, keywords, opening)


async def _chat(
    options: Options,
    system: str | None,
    keywords: dict[str, Any],
    opening: dict[str, bool],
) -> None:
    async with started(options, **opening) as session:
        await chat(session, system=system, keywords=keywords)
