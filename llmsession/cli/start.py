"""What `run` and `chat` share: the options, what is said on stderr, the progress of loading."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

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
    console = Console(stderr=True, highlight=False)
    status = console.status("starting")

    def show(share: float) -> None:
        status.update(f"loading the model: {share:.0%}")

    session = Session(msgspec.structs.replace(options, on_progress=show) if options.remote is None else options)
    with contextlib.ExitStack() as starting:
        if console.is_terminal:
            starting.enter_context(status)
        async with session:
            starting.close()
            if verbose:
                where = f", log in {session.log_path}" if session.log_path is not None else f" at {session.base_url}"
                say(f"{session.backend} {session.version}{where}")
            yield session
