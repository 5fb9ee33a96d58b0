"""`llmsession server`: shows, installs, switches and removes releases of llama-server."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.table import Table

from llmsession.backends.find import BINARY_HINT, find_llama_server
from llmsession.backends.flags.capabilities import ask_version
from llmsession.backends.install.installed import Installed, list_installed, require_installed, require_previous
from llmsession.backends.install.installer import install, remove, use
from llmsession.backends.install.pinned import (
    PAGE,
    Chosen,
    ReleaseTable,
    choose_archive,
    choose_build,
    choose_release,
    read_table,
)
from llmsession.backends.install.platforms import Platform, present_accelerators, this_platform
from llmsession.cli.start import say, shown_progress
from llmsession.models.hub.cache import is_offline
from llmsession.session.config.options import Options
from llmsession.system.paths import cache_folder
from llmsession.types.errors import BackendNotFoundError, UsageError

# Columns, if stdout is not a terminal: then nothing is cut to fit.
WIDE = 200


def install_release(
    release: str | None,
    *,
    variant: str | None,
    sha256: str | None,
    unverified: str | None,
    table: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Install a release, and print the path of its llama-server. After Ctrl-C, what had arrived is kept.

    Raises LLMSessionError.
    """
    options = Options.load()
    chosen = _choose(release or unverified, read_table(table), variant=variant, sha256=sha256)
    with shown_progress(f"installing {chosen.name}") as show:
        installed = anyio.run(
            functools.partial(
                install,
                chosen,
                _cache(options),
                offline=offline or is_offline(options.offline),
                unverified=frozenset([unverified] if unverified is not None else []),
                on_progress=show,
                on_wait=lambda: say("another process is installing a release; waiting for it"),
            )
        )
    _print_installed(installed, as_json=as_json)
    found = find_llama_server(None, _cache(options))
    if found is not None and found.path != installed.binary:
        say(f"{found.path} ({found.source}) comes before it: name this one with LLMSESSION_SERVER_PATH")


def _choose(name: str | None, table: ReleaseTable, *, variant: str | None, sha256: str | None) -> Chosen:
    platform = _platform()
    if name is None or any(release.tag == name for release in table.releases) or not name.startswith("llama-"):
        if sha256 is not None:
            raise UsageError("--sha256 is for an archive that is named: the releases of the table have theirs")
        return choose_build(choose_release(table, name), platform, present_accelerators(), variant)
    if variant is not None:
        raise UsageError(f"--variant is for a pinned release: {name} is one variant")
    if sha256 is not None:
        sha256 = sha256.strip().lower().removeprefix("sha256:")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UsageError(f"--sha256 takes 64 digits from 0 to f, not {sha256!r}")
    return choose_archive(table, name, platform, sha256)


def _platform() -> Platform:
    platform = this_platform()
    if platform is None:
        raise UsageError(f"llama.cpp publishes no builds for {sys.platform} on this processor: {BINARY_HINT}")
    return platform


def list_releases(*, as_json: bool) -> None:
    """Print the installed and the pinned releases as a table, or as JSON. Raises ConfigError."""
    installed = list_installed(_cache(Options.load()))
    platform, kinds = this_platform(), present_accelerators()
    pinned = [
        {
            "name": f"{release.tag}-{build.variant}",
            "release": release.tag,
            "variant": build.variant,
            "size_bytes": sum(asset.size or 0 for asset in build.assets),
            "fits": build.accelerator in kinds,
        }
        for release in read_table().releases
        for build in release.builds
        if build.platform == platform
    ]
    if as_json:
        listed = {"installed": [_describe(one) for one in installed], "pinned": pinned}
        print(msgspec.json.encode(listed).decode())  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("release", "state", "version"):
        table.add_column(heading, no_wrap=True)
    words = {"used": "in use", "before": "installed, in use before", "": "installed"}
    for one in installed:
        table.add_row(one.name, words[one.state], one.manifest.version)
    names = {one.name for one in installed}
    for each in pinned:
        if each["name"] not in names:
            fit = "" if each["fits"] else ", for an accelerator that is not here"
            table.add_row(str(each["name"]), f"pinned, {int(str(each['size_bytes'])) / 1e6:,.0f} MB{fit}", "")
    if not table.rows:
        say(f"no release is installed, and this version of llmsession pins none; archives are at {PAGE}")
        return
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)


def use_release(name: str | None, *, previous: bool, as_json: bool) -> None:
    """Use an installed release, and print the path of its llama-server.

    Raises LLMSessionError; then nothing has changed.
    """
    if (name is None) != previous:
        raise UsageError("name one release to use, or say --previous")
    cache = _cache(Options.load())
    installed = require_previous(cache) if name is None else require_installed(cache, name)
    anyio.run(use, installed, cache)
    _print_installed(msgspec.structs.replace(installed, state="used"), as_json=as_json)


def show_server(*, as_json: bool) -> None:
    """Print the path of the llama-server that would run. Raises BackendNotFoundError if there is none."""
    options = Options.load()
    found = find_llama_server(Path(options.server_path) if options.server_path is not None else None, _cache(options))
    if found is None:
        raise BackendNotFoundError(
            f"there is no llama-server: {BINARY_HINT}, or look at `llmsession server install --help`", hint=BINARY_HINT
        )
    if as_json:
        version = anyio.run(ask_version, found.path)
        facts = {"path": str(found.path), "source": found.source, "version": version}
        print(msgspec.json.encode(facts).decode())  # noqa: T201
    else:
        print(found.path)  # noqa: T201


def remove_releases(names: list[str], *, everything: bool, as_json: bool) -> None:
    """Remove releases. Raises LLMSessionError; if one of the names is wrong, nothing is removed."""
    if bool(names) == everything:
        raise UsageError("name the releases to remove, or say --all")
    cache = _cache(Options.load())
    found = list_installed(cache) if everything else [require_installed(cache, name) for name in dict.fromkeys(names)]
    if found:
        anyio.run(remove, found, cache)
    if as_json:
        print(msgspec.json.encode({"removed": [one.name for one in found]}).decode())  # noqa: T201
        return
    say(f"removed: {', '.join(one.name for one in found) or 'nothing, since nothing was installed'}")
    left = list_installed(cache)
    if left and all(one.state != "used" for one in left):
        say(f"no release is in use now: `llmsession server use {left[0].name}` chooses one")


def _print_installed(installed: Installed, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(_describe(installed)).decode())  # noqa: T201
    else:
        print(installed.binary)  # noqa: T201


def _describe(installed: Installed) -> dict[str, Any]:
    return {
        "name": installed.name,
        "release": installed.manifest.tag,
        "variant": installed.manifest.variant,
        "version": installed.manifest.version,
        "state": installed.state or "installed",
        "path": str(installed.binary),
    }


def _cache(options: Options) -> Path:
    return cache_folder(options.cache_dir)
