"""How far a download or a start is, on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from llmsession.progress import Progress, ProgressCallback

_WORDS = {"engine": "fetching llama.cpp", "download": "fetching the model", "load": "loading the model"}


@contextlib.contextmanager
def shown_progress(words: str = "starting") -> Iterator[ProgressCallback]:
    """A bar that is gone when the block is left; nothing where stderr is no terminal."""
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
