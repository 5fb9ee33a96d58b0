"""Installs a release of llama.cpp: downloads it, compares its digest, unpacks it, tries it, and only then uses it.

If this is interrupted, even by `kill -9`, what was installed before keeps working, and the next installation removes
what was left behind. What had been downloaded is kept for it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.from_thread
import anyio.to_thread
import msgspec

from llmsession.backends.install.archive import check_disk_space, unpack, unpacked_size
from llmsession.backends.install.installed import FILES, Installation, Installed, Manifest, list_installed, opened
from llmsession.backends.install.pinned import Asset, Chosen
from llmsession.backends.install.verify import verify_engine
from llmsession.types.errors import (
    DigestError,
    DiskFullError,
    FetchError,
    LLMSessionError,
    OfflineError,
    StartFailedError,
    UsageError,
)
from llmsession.types.progress import Progress, ProgressCallback, Speedometer

UNPACKING = "unpacking"
SCRATCH = "scratch"
SERVERS = ("llama-server", "llama-server.exe")
# The assumed size of an archive's content, relative to the archive, for a first check of the free disk space.
EXPANSION = 4
# Seconds between two reports of a download's progress.
TELL_EVERY = 0.1
PIECE = 1 << 20


async def install(
    chosen: Chosen,
    cache: Path,
    *,
    offline: bool = False,
    unverified: frozenset[str] = frozenset(),
    on_progress: ProgressCallback | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> Installed:
    """Install the build and use it. If it is installed already, it is only tried and used.

    `unverified` names archives that may be installed without a digest. `on_wait` is called if another process is
    installing; what that one has installed is then used. Cancelling keeps what was downloaded. Raises UsageError,
    FetchError and StartFailedError; then the release that was used before stays in use.
    """
    names = [asset.name for asset in chosen.build.assets]
    if stray := unverified.difference(names):
        raise UsageError(f"{', '.join(sorted(stray))} is not an archive of {chosen.name}, which is {', '.join(names)}")
    for asset in chosen.build.assets:
        if asset.sha256 is None and asset.name not in unverified:
            raise DigestError(
                f"nobody has said what is in {asset.name}: give its digest with --sha256 (its page shows it beside the "
                f"file), or allow this one unchecked with --unverified {asset.name}"
            )
    async with opened(cache, on_wait) as store:
        with _explained(store):
            if (found := await _already_there(store, chosen, cache, must_run=offline)) is not None:
                store.clear()
                return found
            if offline:
                raise OfflineError(
                    f"{chosen.name} of llama.cpp is not installed, and this is offline: install it once online"
                )
            fetched = _kept_names(chosen)
            store.clear(keep=fetched)
            try:
                await _Fetch(store, chosen, on_progress).run()
                installed = await _install_fetched(store, chosen, cache)
            except StartFailedError:
                store.clear()
                raise
            except BaseException:
                store.clear(keep=fetched)
                raise
            store.clear()
            return installed


async def use(installed: Installed, cache: Path) -> None:
    """Use an installed release, after checking that it runs.

    Raises FetchError, and StartFailedError if it does not run; then nothing has changed.
    """
    async with opened(cache) as store:
        with _explained(store):
            await verify_engine(installed.binary, installed.name, cache=cache, scratch=store.staging / SCRATCH)
            store.use(installed)


async def remove(installed: list[Installed], cache: Path) -> None:
    """Remove these releases. Raises FetchError."""
    async with opened(cache) as store:
        with _explained(store):
            for one in installed:
                store.remove(one)


async def _install_fetched(store: Installation, chosen: Chosen, cache: Path) -> Installed:
    staged = store.staging / UNPACKING
    binary = await anyio.to_thread.run_sync(_unpack_all, store, chosen, staged)
    version = await verify_engine(binary, chosen.name, cache=cache, scratch=store.staging / SCRATCH)
    manifest = Manifest(
        tag=chosen.tag,
        variant=chosen.build.variant,
        platform=chosen.build.platform,
        assets=chosen.build.assets,
        binary=binary.relative_to(staged / FILES).as_posix(),
        version=version,
    )
    installed = store.adopt(staged, chosen, manifest)
    store.use(installed)
    return msgspec.structs.replace(installed, state="used")


async def _already_there(store: Installation, chosen: Chosen, cache: Path, *, must_run: bool) -> Installed | None:
    """Use an installed release with the same digests, if it still runs, and return it; else None.

    Raises StartFailedError if it does not run and `must_run` is set.
    """
    for one in list_installed(cache):
        digests = [asset.sha256 for asset in one.manifest.assets]
        if one.name == chosen.name and None not in digests and digests == [a.sha256 for a in chosen.build.assets]:
            try:
                await verify_engine(one.binary, one.name, cache=cache, scratch=store.staging / SCRATCH)
            except StartFailedError:
                if must_run:
                    raise
                continue  # it is damaged, so it is installed again
            store.use(one)
            return msgspec.structs.replace(one, state="used")
    return None


def _partial_name(asset: Asset) -> str:
    """Return the name of a partial download. It contains the digest, so that no other file of that name is resumed."""
    return f"{asset.name}.{asset.sha256 or 'unverified'}.part"


def _kept_names(chosen: Chosen) -> frozenset[str]:
    names = [_partial_name(asset) for asset in chosen.build.assets]
    return frozenset([*names, *(f"{name}.validator" for name in names)])


class _Fetch:
    """Downloads the archives of one build into the staging folder."""

    def __init__(self, store: Installation, chosen: Chosen, on_progress: ProgressCallback | None) -> None:
        self._store = store
        self._chosen = chosen
        self._on_progress = on_progress
        self._speedometer = Speedometer()
        self._before, self._told = 0, 0.0
        sizes = [asset.size for asset in chosen.build.assets]
        self._total = sum(size or 0 for size in sizes) if None not in sizes else None

    async def run(self) -> None:
        """Download all archives. Raises FetchError."""
        self._check_room(sum(asset.size or 0 for asset in self._chosen.build.assets))
        for asset in self._chosen.build.assets:
            await self._fetch(asset)

    async def _fetch(self, asset: Asset) -> None:
        from llmsession.wire.download import download

        path = self._store.staging / _partial_name(asset)
        url = f"{self._chosen.url.rstrip('/')}/{asset.name}"
        room_checked = asset.size is not None

        def advance(done: int, total: int | None) -> None:
            nonlocal room_checked
            if not room_checked and total is not None:
                room_checked = True
                self._check_room(total)
            self._tell(done, total)

        for attempt in (1, 2):
            resumed = path.exists() and path.stat().st_size > 0
            await download(url, path, size=asset.size, advance=advance)
            if asset.sha256 is None or (found := await anyio.to_thread.run_sync(_digest, path)) == asset.sha256:
                break
            path.unlink()
            if attempt == 2 or not resumed:  # else the resumed part may have been damaged, for example by a power loss
                raise DigestError(
                    f"{url} is not what was pinned: its sha256 is {found[:16]}…, expected is {asset.sha256[:16]}…; "
                    "nothing was installed. Look for a proxy that changes what passes, or at the release's page"
                )
        self._before += path.stat().st_size

    def _tell(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._on_progress is None or (now - self._told < TELL_EVERY and done != total):
            return
        self._told = now
        done += self._before
        whole = self._total if self._total is not None else total
        speed = self._speedometer.measure(done)
        self._on_progress(Progress(stage="engine", done=done, total=whole, speed=speed))

    def _check_room(self, size: int) -> None:
        there = sum(path.stat().st_size for path in self._store.staging.glob("*.part"))
        check_disk_space(self._store.staging, max(0, size - there) + EXPANSION * size, self._chosen.name)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            anyio.from_thread.check_cancelled()
    return digest.hexdigest()


def _unpack_all(store: Installation, chosen: Chosen, staged: Path) -> Path:
    """Unpack the first archive, and the others into the folder of its llama-server. Return the path of that binary."""
    files = staged / FILES
    binary = None
    for asset in chosen.build.assets:
        archive = store.staging / _partial_name(asset)
        check_disk_space(store.staging, unpacked_size(archive), chosen.name)
        unpack(archive, binary.parent if binary is not None else files, anyio.from_thread.check_cancelled)
        binary = binary or _find_server(files, asset)
    assert binary is not None  # noqa: S101 - a build has an archive
    return binary


def _find_server(files: Path, asset: Asset) -> Path:
    found = sorted((path for name in SERVERS for path in files.rglob(name)), key=lambda path: len(path.parts))
    if not found:
        raise FetchError(f"{asset.name} holds no llama-server: choose an archive whose name has -bin- in it")
    return found[0]


@contextlib.contextmanager
def _explained(store: Installation) -> Iterator[None]:
    """Turn errors of the disk into FetchError."""
    try:
        yield
    except LLMSessionError:  # some of these are OSErrors as well
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk of {store.home} is full: make room and try again, what had arrived is kept"
            ) from error
        raise FetchError(
            f"{error.filename or store.home} cannot be written ({error.strerror}): name another folder with "
            "LLMSESSION_CACHE_DIR"
        ) from error
