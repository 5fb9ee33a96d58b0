"""What `run` and `chat` share: the options, what is said on stderr, the progress of loading."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from llmsession.cli.progress import shown_progress
from llmsession.models import bundled
from llmsession.options import Options
from llmsession.session import Session


def say(sentence: str) -> None:
    """On stderr; a terminal gets its lines broken between words."""
    console = Console(stderr=True, highlight=False)
    console.print(f"llmsession: {sentence}", markup=False, soft_wrap=not console.is_terminal)


def load_options(given: dict[str, Any], config: Path | None) -> Options:
    """From the command line, the environment and a file; says it where the demonstration model is what runs."""
    options = Options.load(config, **given)
    if options.remote is None and options.model in (None, bundled.NAME):
        say(bundled.NOTICE)
    return options


@contextlib.asynccontextmanager
async def started(options: Options, *, verbose: bool) -> AsyncIterator[Session]:
    """The session, once its server is ready; until then a terminal shows how far it is."""
    with contextlib.ExitStack() as starting:
        if options.remote is None:
            show = starting.enter_context(shown_progress())
            options = msgspec.structs.replace(options, on_progress=show)
        async with Session(options) as session:
            starting.close()
            if verbose:
                where = f", log in {session.log_path}" if session.log_path is not None else f" at {session.base_url}"
                say(f"{session.backend} {session.version}{where}")
            yield session
