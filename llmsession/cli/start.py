"""What the commands share: options, messages on stderr, starting a session, and the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from llmsession.models import bundled
from llmsession.session.config.options import Options
from llmsession.session.session import Session
from llmsession.types.errors import ConfigError
from llmsession.types.progress import Progress, ProgressCallback


def say(sentence: str) -> None:
    """Print a sentence on stderr. On a terminal, lines are wrapped between words."""
    console = Console(stderr=True, highlight=False)
    console.print(f"llmsession: {sentence}", markup=False, soft_wrap=not console.is_terminal)


def load_options(given: dict[str, Any], config: Path | None) -> Options:
    """Load options from the command line, the environment and a file.

    Prints a notice if the demonstration model is what runs.
    """
    options = Options.load(config, **given)
    if options.remote is None and options.model in (None, bundled.NAME):
        say(bundled.NOTICE)
    return options


@contextlib.asynccontextmanager
async def started(options: Options, *, verbose: bool, locked: bool = False) -> AsyncIterator[Session]:
    """Open a session, and close it at the end of the block. Until it is ready, a terminal shows the progress."""
    with contextlib.ExitStack() as starting:
        if options.remote is None:
            show = starting.enter_context(shown_progress())
            options = msgspec.structs.replace(options, on_progress=show)
        if locked:
            options = await _pinned(options)
        async with Session(options) as session:
            starting.close()
            if verbose:
                where = f", log in {session.log_path}" if session.log_path is not None else f" at {session.base_url}"
                say(f"{session.backend} {session.version}{where}")
            yield session


async def _pinned(options: Options) -> Options:
    """Return the options with the model at its locked commit, after checking its digests.

    Raises ConfigError, FetchError.
    """
    from llmsession.models.hub.ensure import ensure_model
    from llmsession.models.lockfile import NAME, check_locked, read_lock
    from llmsession.session.server.model_choice import resolve_model

    ref = resolve_model(options).ref if options.remote is None else None
    if ref is None:
        raise ConfigError(f"--locked runs models of Hugging Face that ./{NAME} names: give one with --model")
    lock = read_lock(Path(NAME))
    pinned = lock.pin(ref, Path(NAME))
    path = await ensure_model(
        pinned, hf_token=options.hf_token, offline=options.offline, on_progress=options.on_progress
    )
    await anyio.to_thread.run_sync(check_locked, lock.models[ref], path)
    return msgspec.structs.replace(options, model=pinned)


_WORDS = {"engine": "fetching llama.cpp", "download": "fetching the model", "load": "loading the model"}


@contextlib.contextmanager
def shown_progress(words: str = "starting") -> Iterator[ProgressCallback]:
    """Show a progress bar inside the block; nothing if stderr is not a terminal."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(words, total=None)
        stage = ""

        def show(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task, total=progress.total, completed=progress.done, description=_WORDS[stage])
            bar.update(task, total=progress.total, completed=progress.done)

        yield show
