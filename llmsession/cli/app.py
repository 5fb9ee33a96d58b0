"""The commands and what they share: options, errors as one sentence on stderr, exit codes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llmsession.errors import LLMSessionError, UsageError

app = typer.Typer(
    help="Run a local language model, and be sure that it is gone when you are.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _commands() -> None:
    """Only there so that one command alone keeps its name."""


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Our errors as one sentence on stderr and an exit code; Ctrl-C as 130."""
    try:
        yield
    except LLMSessionError as error:
        print(f"llmsession: {error}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 - leaves the ^C on a line of its own
        raise typer.Exit(130) from None


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to say to the model.")],
    *,
    model: Annotated[Path | None, typer.Option(help="A GGUF file. [default: the bundled demonstration model]")] = None,
    backend: Annotated[str, typer.Option(help="Which engine: auto, llama-server or embedded.")] = "auto",
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say where the engine's log is.")] = False,
) -> None:
    """One reply to PROMPT on stdout, and nothing else there."""
    from llmsession.cli.run import run_prompt

    with reported_errors():
        run_prompt(prompt, model=model, backend=backend, verbose=verbose)


@app.command()
def version() -> None:
    """The versions of llmsession and Python."""
    print(  # noqa: T201
        f"llmsession {importlib.metadata.version('llmsession')}, "
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
