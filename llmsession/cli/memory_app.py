"""The commands of `memory`: the file in which conversations are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsession.cli.app import Json, app, reported_errors

memory = typer.Typer(
    help="Conversations on disk: copy them while a program runs, check the file, export a user's.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(memory, name="memory")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file that Memory.open or --memory names.")]


@memory.command()
def backup(
    file: File,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The copy: one file that must not exist yet.")],
    *,
    as_json: Json = False,
) -> None:
    """Copy a memory, also while programs write to it, and check the copy."""
    from llmsession.cli.memory import back_up_memory

    with reported_errors():
        back_up_memory(file, target, as_json=as_json)


@memory.command()
def check(file: File, *, as_json: Json = False) -> None:
    """Check whether a memory is whole, and print what it holds. Exit code 1 if it is damaged."""
    from llmsession.cli.memory import check_memory_file

    with reported_errors():
        is_whole = check_memory_file(file, as_json=as_json)
    if not is_whole:
        raise typer.Exit(1)


@memory.command()
def export(
    file: File,
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose conversations.")],
) -> None:
    """Print everything that is stored of a user, as JSON."""
    from llmsession.cli.memory import export_user

    with reported_errors():
        export_user(file, user)
