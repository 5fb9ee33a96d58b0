"""Fills the table of pinned releases from what GitHub's API says of one: see scripts/pin_release.

https://docs.github.com/en/rest/releases/releases#get-a-release-by-tag-name
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

import anyio
import msgspec

from llmsession.backends.install.pinned import (
    ArchiveName,
    Asset,
    Build,
    Release,
    ReleaseTable,
    parse_archive_name,
    read_table,
    shipped_table,
)
from llmsession.types.errors import LLMSessionError
from llmsession.wire.download import fetch_small

API = "https://api.github.com/repos/ggml-org/llama.cpp/releases/tags"
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*")
DIGEST = "sha256:"


class Listed(msgspec.Struct):
    """An asset, as the API lists it."""

    name: str
    size: int
    browser_download_url: str
    digest: str | None = None


class Answer(msgspec.Struct):
    """A release, as the API gives it."""

    tag_name: str
    assets: list[Listed]


def main() -> None:
    """Read, choose, write."""
    parser = argparse.ArgumentParser(prog="pin_release", description=__doc__)
    parser.add_argument("source", help="a tag such as b6123, the API's URL of a release, or a file with its answer")
    parser.add_argument("--table", type=Path, default=shipped_table(), help="the table to write (the package's)")
    parser.add_argument("--keep", type=int, default=2, help="releases that the table has at most (2)")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        parser.error("--keep is at least 1")
    try:
        release = make_release(read_answer(arguments.source))
        former = read_table(arguments.table) if arguments.table.exists() else ReleaseTable()
    except LLMSessionError as error:
        die(str(error))
    others = [other for other in former.releases if other.tag != release.tag]
    write_table(arguments.table, ReleaseTable(releases=(release, *others)[: arguments.keep]))
    for build in release.builds:
        size = sum(asset.size or 0 for asset in build.assets) / 1e6
        print(f"{release.tag} {build.platform}, {build.variant}: {size:,.1f} MB")
    say(f"{arguments.table} pins {release.tag}: look at the change, then commit it")


def read_answer(source: str) -> Answer:
    """From the API, or from a file."""
    if Path(source).is_file():
        body = Path(source).read_bytes()
    elif source.startswith(("https://", "http://")):
        body = anyio.run(fetch_small, source)
    elif TAG.fullmatch(source):
        body = anyio.run(fetch_small, f"{API}/{source}")
    else:
        die(f"{source!r} is neither a file nor a URL nor a tag such as b6123")
    try:
        return msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError as error:
        die(f"{source} does not say what a release of GitHub's API does: {error}")


def make_release(answer: Answer) -> Release:
    """The builds that can be pinned."""
    known = [(asset, said) for asset in answer.assets if (said := parse_archive_name(asset.name)) is not None]
    undigested = [asset.name for asset, _ in known if not (asset.digest or "").startswith(DIGEST)]
    for name in undigested:
        say(f"{name} has no digest in the list: it is not pinned")
    pinned = [(asset, said) for asset, said in known if asset.name not in undigested]
    runtimes = {said.variant: asset for asset, said in pinned if said.runtime}
    builds = [
        build for asset, said in pinned if not said.runtime and (build := make_build(asset, said, runtimes)) is not None
    ]
    if not builds:
        die(f"{answer.tag_name} lists no build of llama-server with a digest: there is nothing to pin")
    folders = {asset.browser_download_url.rpartition("/")[0] for asset, _ in pinned}
    if len(folders) != 1:
        die(f"the archives of {answer.tag_name} lie in several places: {', '.join(sorted(folders))}")
    builds.sort(key=lambda build: (str(build.platform), build.variant))
    made = {"tag": answer.tag_name, "url": folders.pop(), "builds": [msgspec.to_builtins(build) for build in builds]}
    try:
        return msgspec.convert(made, Release)
    except msgspec.ValidationError as error:
        die(f"{answer.tag_name} cannot be pinned: {error}")


def make_build(asset: Listed, said: ArchiveName, runtimes: dict[str, Listed]) -> Build | None:
    """With CUDA's own libraries where it needs them; None where these are missing."""
    archives = [asset]
    if said.accelerator == "cuda" and said.platform.system == "windows":
        if said.variant not in runtimes:
            say(f"{asset.name} comes without CUDA's libraries for {said.variant}: it is not pinned")
            return None
        archives.append(runtimes[said.variant])
    return Build(
        platform=said.platform,
        accelerator=said.accelerator,
        variant=said.variant,
        assets=tuple(
            Asset(name=one.name, size=one.size, sha256=(one.digest or "").removeprefix(DIGEST)) for one in archives
        ),
    )


def write_table(path: Path, table: ReleaseTable) -> None:
    """All of it or nothing."""
    half = path.with_name(f".{path.name}.new")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2) + b"\n")
    half.replace(path)


def say(sentence: str) -> None:
    """On stderr."""
    print(f"pin_release: {sentence}", file=sys.stderr)


def die(sentence: str) -> NoReturn:
    """Nothing was written."""
    say(sentence)
    sys.exit(1)


if __name__ == "__main__":
    main()
