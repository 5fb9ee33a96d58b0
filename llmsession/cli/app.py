"""The commands, and what they share: options, errors as one sentence on stderr, exit codes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsession.terminal.reply_view import Reasoning
from llmsession.types.errors import LLMSessionError, UsageError

app = typer.Typer(
    help="Run a local language model, and be sure that it is gone when you are.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Option(
        help="A GGUF file, hf:author/repo/HEAD/file, or an alias (llmsession models list). "
        "[default: the bundled demonstration model]"
    ),
]
Registry = Annotated[
    Path | None, typer.Option(help="A file like knownllms.yaml, whose models and encodings are added.")
]
Locked = Annotated[bool, typer.Option("--locked", help="Run only what ./llmsession.lock names, byte for byte.")]
Remote = Annotated[
    str | None,
    typer.Option(help="HOST:PORT or the URL of a server that is already there; its key in LLMSESSION_API_KEY."),
]
Backend = Annotated[
    str | None,
    typer.Option(help="Which engine: auto, llama-server, llamafile, embedded or transformers. [default: auto]"),
]
Config = Annotated[Path | None, typer.Option(help="A YAML file of options.")]
System = Annotated[str | None, typer.Option(help="The system prompt; {now} and {model} in it are filled in.")]
MaxTokens = Annotated[int | None, typer.Option(help="The longest reply, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 for the likeliest words, more for variety.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same reply.")]
Json = Annotated[bool, typer.Option("--json", help="Print data for programs.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say where the engine's log is.")]


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Turn an LLMSessionError into one sentence on stderr and an exit code, and Ctrl-C into exit code 130."""
    try:
        yield
    except LLMSessionError as error:
        print(f"llmsession: {error}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 - ends the line on which the terminal shows ^C
        raise typer.Exit(130) from None


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to say to the model; - reads it from stdin.")],
    *,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    model: Model = None,
    remote: Remote = None,
    backend: Backend = None,
    registry: Registry = None,
    locked: Locked = False,
    config: Config = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print one reply to PROMPT on stdout, and nothing else there."""
    from llmsession.cli.run import run_prompt

    with reported_errors():
        run_prompt(
            prompt,
            options=_given(model=model, remote=remote, backend=backend, registry=registry),
            locked=locked,
            config=config,
            system=system,
            keywords=_given(max_tokens=max_tokens, temperature=temperature, seed=seed),
            as_json=as_json,
            verbose=verbose,
        )


@app.command()
def chat(
    *,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    model: Model = None,
    remote: Remote = None,
    backend: Backend = None,
    registry: Registry = None,
    locked: Locked = False,
    config: Config = None,
    memory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Remember the conversation in this file, and go on with it.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose conversation it is. [default: your login]")
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of the user's conversations. [default: one without a name]"),
    ] = None,
    color: Annotated[bool, typer.Option("--color/--no-color", help="Colours, where NO_COLOR is not set.")] = True,
    reasoning: Annotated[Reasoning, typer.Option(help="What a model thinks before it answers.")] = Reasoning.DIM,
    verbose: Verbose = False,
) -> None:
    """Chat with a model: each line is a question, also from a pipe. Ctrl-C stops a reply, Ctrl-D leaves."""
    from llmsession.cli.chat import Remembered, run_chat

    with reported_errors():
        run_chat(
            options=_given(model=model, remote=remote, backend=backend, registry=registry),
            locked=locked,
            config=config,
            system=system,
            remembered=Remembered(memory=memory, user=user, channel=channel),
            color=color,
            reasoning=reasoning,
            keywords=_given(max_tokens=max_tokens, temperature=temperature, seed=seed),
            verbose=verbose,
        )


@app.command()
def metrics(
    *,
    remote: Remote = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again each second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show tokens and rates of this user's running servers, or of a remote one."""
    from llmsession.cli.metrics import show_metrics

    with reported_errors():
        show_metrics(remote=remote, watch=watch, as_json=as_json)


@app.command()
def devices(*, backend: Backend = None, as_json: Json = False) -> None:
    """List the CPU and the GPUs that the engine can use, with the free memory of each."""
    from llmsession.cli.devices import show_devices

    with reported_errors():
        show_devices(options=_given(backend=backend), as_json=as_json)


@app.command()
def doctor(
    *,
    model: Model = None,
    registry: Registry = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Report what would run here, why, and whether it works: engines, versions, memory, folders, a first reply."""
    from llmsession.cli.doctor import examine

    with reported_errors():
        healthy = examine(options=_given(model=model, backend=backend, registry=registry), as_json=as_json)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the versions of llmsession and Python."""
    print(  # noqa: T201
        f"llmsession {importlib.metadata.version('llmsession')}, "
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    )


def _given(**values: Any) -> dict[str, Any]:
    """Return the values that were given, which is those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
