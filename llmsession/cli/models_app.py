"""The commands for models: `pull`, and those of `models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsession.cli.app import Json, Registry, app, reported_errors
from llmsession.models.lockfile import NAME

models = typer.Typer(
    help="Models: which are known, which are here, and whether they are as they should be.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(models, name="models")

Reference = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="hf:author/repo/HEAD/file, or an alias such as qwen2.5-0.5b-instruct:q8_0."),
]


@app.command()
def pull(
    model: Reference,
    *,
    registry: Registry = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look into the cache.")] = False,
    as_json: Json = False,
) -> None:
    """Download a model, or its newest version, and print its path. An interrupted download is resumed."""
    from llmsession.cli import models as command

    with reported_errors():
        command.pull(model, registry=registry, offline=offline, as_json=as_json)


@models.command("list")
def list_(
    *,
    registry: Registry = None,
    cached: Annotated[bool, typer.Option("--cached", help="Only those of which a file is here.")] = False,
    as_json: Json = False,
) -> None:
    """List the models that have a short name."""
    from llmsession.cli.models import list_models

    with reported_errors():
        list_models(registry=registry, cached=cached, as_json=as_json)


@models.command()
def show(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for pull, or a GGUF file. [default: the bundled one]")
    ] = None,
    *,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show what is known about a model; for a downloaded one, also its file's header, and the memory that it needs."""
    from llmsession.cli.models import show_model

    with reported_errors():
        show_model(model, registry=registry, as_json=as_json)


@models.command()
def lint(
    file: Annotated[Path, typer.Argument(help="A registry of your own, like knownllms.yaml.")], *, as_json: Json = False
) -> None:
    """Check whether a registry can be used; if not, show which line is wrong."""
    from llmsession.cli import models as command

    with reported_errors():
        command.lint(file, as_json=as_json)


@models.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As for pull, or a GGUF file. [default: the bundled one]")
    ] = None,
    *,
    registry: Registry = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding to compare. [default: the registry's]")] = None,
    as_json: Json = False,
) -> None:
    """Compare the prompt encoding with the model's own template, token by token. Exit code 1 if they differ."""
    from llmsession.cli.verify import verify_model

    with reported_errors():
        equal = verify_model(model, registry=registry, encoding=encoding, as_json=as_json)
    if not equal:
        raise typer.Exit(1)


@models.command()
def lock(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help="As for pull.")],
    *,
    file: Annotated[Path, typer.Option(help="The lock to write.")] = Path(NAME),
    registry: Registry = None,
) -> None:
    """Record the commit and the digests of a model as it is now; `--locked` then refuses anything else."""
    from llmsession.cli.models import lock_models

    with reported_errors():
        lock_models(model, file=file, registry=registry)
