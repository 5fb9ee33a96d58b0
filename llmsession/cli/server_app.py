"""The commands of `server`: releases of llama.cpp in the cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsession.cli.app import Json, app, reported_errors

server = typer.Typer(
    help="The llama-server that is run: install a release of llama.cpp, go back to an older one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(server, name="server")


@server.command()
def install(
    release: Annotated[
        str | None,
        typer.Argument(
            metavar="[RELEASE]",
            help="A pinned release, such as b6123, or an archive's name, such as llama-b6123-bin-ubuntu-x64.tar.gz. "
            "[default: the first pinned one]",
        ),
    ] = None,
    *,
    variant: Annotated[
        str | None,
        typer.Option(help="cpu, vulkan, cuda, cuda-12.4, rocm … [default: the best for what is in this machine]"),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="The digest of the archive that is named.")] = None,
    unverified: Annotated[
        str | None, typer.Option(metavar="ARCHIVE", help="Allow this archive, by its name, without a digest.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Another table of pinned releases. [default: LLMSESSION_RELEASES]")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Download a release, check its digest, try it, use it; print its path. An interrupted download is resumed."""
    from llmsession.cli import server as command

    with reported_errors():
        command.install_release(
            release,
            variant=variant,
            sha256=sha256,
            unverified=unverified,
            table=table,
            offline=offline,
            as_json=as_json,
        )


@server.command("list")
def list_(*, as_json: Json = False) -> None:
    """List the installed releases, and those that are pinned for this machine."""
    from llmsession.cli import server as command

    with reported_errors():
        command.list_releases(as_json=as_json)


@server.command()
def use(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="As `server list` shows it.")] = None,
    *,
    previous: Annotated[bool, typer.Option("--previous", help="Go back to the one before.")] = False,
    as_json: Json = False,
) -> None:
    """Use an installed release from now on, after checking that it runs."""
    from llmsession.cli import server as command

    with reported_errors():
        command.use_release(name, previous=previous, as_json=as_json)


@server.command()
def which(*, as_json: Json = False) -> None:
    """Show the llama-server that would run: from LLMSESSION_SERVER_PATH, PATH, a wheel, or the cache folder."""
    from llmsession.cli import server as command

    with reported_errors():
        command.show_server(as_json=as_json)


@server.command()
def remove(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="As `server list` shows them.")] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All that is installed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove installed releases. A server that is running keeps running."""
    from llmsession.cli import server as command

    with reported_errors():
        command.remove_releases(names or [], everything=all_, as_json=as_json)
