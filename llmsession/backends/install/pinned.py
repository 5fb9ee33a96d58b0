"""Pinned builds of llama.cpp: the archives for each kind of machine, with their digests. Only reads files.

releases.json in this folder is the package's table; its first release is the one that is installed. It is written by
scripts/pin_release. LLMSESSION_RELEASES names another table, such as that of a mirror. The names of archives are set in
https://github.com/ggml-org/llama.cpp/blob/master/.github/workflows/release.yml
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from llmsession.backends.install.platforms import Accelerator, Platform
from llmsession.types.errors import ConfigError, UsageError

VARIABLE = "LLMSESSION_RELEASES"
# The page on which llama.cpp publishes its builds.
PAGE = "https://github.com/ggml-org/llama.cpp/releases"

# Best first, for machines that can use several.
_PREFERENCE: tuple[Accelerator, ...] = ("cuda", "rocm", "metal", "vulkan", "cpu")
_SYSTEMS: dict[str, Literal["linux", "macos", "windows"]] = {"ubuntu": "linux", "macos": "macos", "win": "windows"}
_ARCHIVE = re.compile(
    r"llama-(?P<tag>[A-Za-z0-9][A-Za-z0-9._]*)-bin-(?P<system>ubuntu|macos|win)-"
    r"(?:(?P<variant>cpu|vulkan|hip-radeon|rocm-[\d.]+|cuda-[\d.]+)-)?(?P<machine>x64|arm64|s390x)(?:\.zip|\.tar\.gz)"
)
# The additional archive for CUDA builds, needed on machines without CUDA's libraries, which is all but developers'.
_RUNTIME = re.compile(r"cudart-llama-bin-win-(?P<variant>cuda-[\d.]+)-(?P<machine>x64)\.zip")

# Used as a file name and as a part of a URL.
FileName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")]
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s?#]+$")]


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An archive. `size`: bytes; None if not known. Without `sha256`, it has to be allowed by name."""

    name: FileName
    size: Size | None = None
    sha256: Sha256 | None = None


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A build for one kind of machine. `assets`: its archives, the one with the server first.

    `variant` is unique within a platform.
    """

    platform: Platform
    accelerator: Accelerator
    variant: FileName
    assets: Annotated[tuple[Asset, ...], msgspec.Meta(min_length=1)]

    @property
    def is_pinned(self) -> bool:
        """Whether the digests of all its archives are known."""
        return all(asset.sha256 is not None for asset in self.assets)


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The builds of one version. `url`: the folder with the archives."""

    tag: FileName
    url: Address
    builds: tuple[Build, ...] = ()


class ReleaseTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of releases, in the order of choice."""

    version: Literal[1] = 1
    note: str = ""
    releases: tuple[Release, ...] = ()


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The build to install."""

    tag: str
    url: str
    build: Build

    @property
    def name(self) -> str:
        """The build's name, such as `b6123-vulkan`."""
        return f"{self.tag}-{self.build.variant}"


class ArchiveName(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive's name says about it. `runtime`: it holds no server, but libraries that another archive needs."""

    tag: str | None
    platform: Platform
    accelerator: Accelerator
    variant: str
    runtime: bool = False


def read_table(path: Path | None = None) -> ReleaseTable:
    """Read the table at `path`, else the one that LLMSESSION_RELEASES names, else the package's. Raises ConfigError."""
    if path is None and (named := os.environ.get(VARIABLE)):
        path = Path(named).expanduser()
    path = path or shipped_table()
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReleaseTable)
    except OSError as error:
        raise ConfigError(f"the table of releases {path} cannot be read: {error.strerror}", path=path) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the table of releases {path} is wrong: {error}", path=path) from error


def shipped_table() -> Path:
    """Return the path of the package's own table."""
    return Path(__file__).with_name("releases.json")


def parse_archive_name(name: str) -> ArchiveName | None:
    """Parse the name of an archive; None if it is not a build of the server for a known system and accelerator."""
    if found := _RUNTIME.fullmatch(name):
        platform = Platform(system="windows", machine="x64")
        return ArchiveName(tag=None, platform=platform, accelerator="cuda", variant=found["variant"], runtime=True)
    if (found := _ARCHIVE.fullmatch(name)) is None:
        return None
    platform = Platform(system=_SYSTEMS[found["system"]], machine=found["machine"])  # type: ignore[arg-type]
    variant = found["variant"] or "cpu"
    if platform == Platform(system="macos", machine="arm64"):
        variant = "metal"  # not a part of the archive's name
    kind = variant.partition("-")[0]
    accelerator: Accelerator = "rocm" if kind == "hip" else kind  # type: ignore[assignment]
    return ArchiveName(tag=found["tag"], platform=platform, accelerator=accelerator, variant=variant)


def choose_release(table: ReleaseTable, tag: str | None = None) -> Release:
    """Return the release with this tag; the first one if no tag is given. Raises UsageError if there is none."""
    if not table.releases:
        named = f"{tag!r} is not pinned: " if tag is not None else ""
        raise UsageError(
            f"{named}this version of llmsession pins no release of llama.cpp. Name an archive of your choice from "
            f"{PAGE} and its digest (`llmsession server install ARCHIVE --sha256 DIGEST`), "
            'or pip install "llmsession[embedded]"'
        )
    if tag is None:
        return table.releases[0]
    for release in table.releases:
        if release.tag == tag:
            return release
    raise UsageError(
        f"{tag!r} is neither a pinned release, of which there are {', '.join(r.tag for r in table.releases)}, nor an "
        f"archive such as llama-b6123-bin-ubuntu-x64.tar.gz from {PAGE}"
    )


def choose_build(
    release: Release, platform: Platform, kinds: Collection[Accelerator], variant: str | None = None
) -> Chosen:
    """Return the best build for these accelerators, or the one of the named variant. Raises UsageError if none fits."""
    here = [build for build in release.builds if build.platform == platform]
    if variant is not None:
        fitting = [b for b in here if b.variant == variant] or [b for b in here if b.accelerator == variant]
    else:
        fitting = [build for build in here if build.accelerator in kinds]
    if not here or not fitting:
        what = f"variant {variant!r}" if variant is not None and here else "build"
        there = f"it has {', '.join(build.variant for build in here)}" if here else "compile llama.cpp, or name another"
        raise UsageError(f"the release {release.tag} of llama.cpp has no {what} for {platform}: {there}")
    # Of several versions of CUDA, the oldest: each driver runs builds for older versions.
    best = min(fitting, key=lambda build: (_PREFERENCE.index(build.accelerator), _numbers(build.variant)))
    return Chosen(tag=release.tag, url=release.url, build=best)


def choose_archive(table: ReleaseTable, name: str, platform: Platform, sha256: str | None) -> Chosen:
    """Return the build for a named archive of llama.cpp: from the table if it is there, else with this archive alone.

    Raises UsageError if it is not such an archive, or for another platform.
    """
    said = parse_archive_name(name)
    if said is None or said.tag is None:
        raise UsageError(
            f"{name!r} is neither a pinned release nor the name of an archive with llama-server, "
            f"such as llama-b6123-bin-ubuntu-x64.tar.gz: look at {PAGE}"
        )
    if said.platform != platform:
        raise UsageError(f"{name} is for {said.platform}, and this is {platform}: choose another archive")
    for release in table.releases:
        for build in release.builds:
            if build.assets[0].name == name and (sha256 is None or build.assets[0].sha256 == sha256):
                return Chosen(tag=release.tag, url=release.url, build=build)
    build = Build(
        platform=platform,
        accelerator=said.accelerator,
        variant=said.variant,
        assets=(Asset(name=name, sha256=sha256),),
    )
    return Chosen(tag=said.tag, url=f"{PAGE}/download/{said.tag}", build=build)


def _numbers(variant: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", variant))
