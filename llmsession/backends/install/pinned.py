"""Pinned builds of llama.cpp: which archives there are for which machine, and what their bytes are. No I/O but reading.

releases.json beside this holds those of the package, the first release being the one that is installed; it is filled
by scripts/pin_release. LLMSESSION_RELEASES names another table, such as that of a mirror. How the archives are called:
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
# Where llama.cpp publishes its builds, and where people read about them.
PAGE = "https://github.com/ggml-org/llama.cpp/releases"

# Best first, where a machine could use several.
_PREFERENCE: tuple[Accelerator, ...] = ("cuda", "rocm", "metal", "vulkan", "cpu")
_SYSTEMS: dict[str, Literal["linux", "macos", "windows"]] = {"ubuntu": "linux", "macos": "macos", "win": "windows"}
_ARCHIVE = re.compile(
    r"llama-(?P<tag>[A-Za-z0-9][A-Za-z0-9._]*)-bin-(?P<system>ubuntu|macos|win)-"
    r"(?:(?P<variant>cpu|vulkan|hip-radeon|rocm-[\d.]+|cuda-[\d.]+)-)?(?P<machine>x64|arm64|s390x)(?:\.zip|\.tar\.gz)"
)
# What CUDA's build needs besides, on machines without CUDA's own libraries: all of them but a developer's.
_RUNTIME = re.compile(r"cudart-llama-bin-win-(?P<variant>cuda-[\d.]+)-(?P<machine>x64)\.zip")

# It becomes the name of a file and a part of an address.
FileName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")]
Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s?#]+$")]


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An archive. `size` in bytes, None if nobody said. Without `sha256` it has to be allowed by name."""

    name: FileName
    size: Size | None = None
    sha256: Sha256 | None = None


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For one kind of machine: its archives, the one with the server first. `variant` is unique within a platform."""

    platform: Platform
    accelerator: Accelerator
    variant: FileName
    assets: Annotated[tuple[Asset, ...], msgspec.Meta(min_length=1)]

    @property
    def is_pinned(self) -> bool:
        """Whether the bytes of all of it are known."""
        return all(asset.sha256 is not None for asset in self.assets)


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The builds of one version. `url` is the folder that holds the archives."""

    tag: FileName
    url: Address
    builds: tuple[Build, ...] = ()


class ReleaseTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`releases` in the order of choice."""

    version: Literal[1] = 1
    note: str = ""
    releases: tuple[Release, ...] = ()


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be installed."""

    tag: str
    url: str
    build: Build

    @property
    def name(self) -> str:
        """As people call it: `b6123-vulkan`."""
        return f"{self.tag}-{self.build.variant}"


class ArchiveName(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive's name says of it. `runtime`: it holds no server, but what another one needs."""

    tag: str | None
    platform: Platform
    accelerator: Accelerator
    variant: str
    runtime: bool = False


def read_table(path: Path | None = None) -> ReleaseTable:
    """That of the package, or the one that the variable names. Raises ConfigError."""
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
    """The package's own."""
    return Path(__file__).with_name("releases.json")


def parse_archive_name(name: str) -> ArchiveName | None:
    """None for what is not a build of the server for a machine that we know: other systems, accelerators and parts."""
    if found := _RUNTIME.fullmatch(name):
        platform = Platform(system="windows", machine="x64")
        return ArchiveName(tag=None, platform=platform, accelerator="cuda", variant=found["variant"], runtime=True)
    if (found := _ARCHIVE.fullmatch(name)) is None:
        return None
    platform = Platform(system=_SYSTEMS[found["system"]], machine=found["machine"])  # type: ignore[arg-type]
    variant = found["variant"] or "cpu"
    if platform == Platform(system="macos", machine="arm64"):
        variant = "metal"  # which it does not say
    kind = variant.partition("-")[0]
    accelerator: Accelerator = "rocm" if kind == "hip" else kind  # type: ignore[assignment]
    return ArchiveName(tag=found["tag"], platform=platform, accelerator=accelerator, variant=variant)


def choose_release(table: ReleaseTable, tag: str | None = None) -> Release:
    """The one of that tag, else the first. Raises UsageError."""
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
    """The best for the accelerators that are there, or the variant that is named. Raises UsageError."""
    here = [build for build in release.builds if build.platform == platform]
    if variant is not None:
        fitting = [b for b in here if b.variant == variant] or [b for b in here if b.accelerator == variant]
    else:
        fitting = [build for build in here if build.accelerator in kinds]
    if not here or not fitting:
        what = f"variant {variant!r}" if variant is not None and here else "build"
        there = f"it has {', '.join(build.variant for build in here)}" if here else "compile llama.cpp, or name another"
        raise UsageError(f"the release {release.tag} of llama.cpp has no {what} for {platform}: {there}")
    # Of several versions of CUDA the oldest, since each driver runs what was made for older ones.
    best = min(fitting, key=lambda build: (_PREFERENCE.index(build.accelerator), _numbers(build.variant)))
    return Chosen(tag=release.tag, url=release.url, build=best)


def choose_archive(table: ReleaseTable, name: str, platform: Platform, sha256: str | None) -> Chosen:
    """An archive of llama.cpp that is named, as the table has it, else by itself. Raises UsageError."""
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
