"""Releases of llama.cpp: fetched from a host of ours, unpacked, tried with the demonstration model, used.

CAPABILITIES B6.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest

from llmsession import (
    BackendNotFoundError,
    ClosedError,
    DigestError,
    DiskFullError,
    FetchError,
    OfflineError,
    Progress,
    Session,
    StartFailedError,
    UsageError,
)
from llmsession.backends import find, survey
from llmsession.backends.install.installed import find_installed, list_installed, require_installed, require_previous
from llmsession.backends.install.installer import install, remove, use
from llmsession.backends.install.pinned import Chosen, choose_build, choose_release, read_table
from llmsession.backends.install.platforms import this_platform
from llmsession.wire import download
from tests.hub_server import Hub
from tests.process.programs import wait_for
from tests.releases import HANDED_OVER, REPO, SERVERS, archive_name, pack, pack_server, pack_zip, script, write_table

pytestmark = pytest.mark.anyio

REAL = script(f"exec {HANDED_OVER}")
# Large enough to be cut somewhere.
PADDING = {"libpadding.so": os.urandom(1 << 19)}
COMMAND = [sys.executable, "-W", "error", "-m", "llmsession", "server", "install"]
FAKE = f"{sys.executable} -I -S {Path(__file__).parents[1] / 'fake_llama_server.py'}"


class Host(NamedTuple):
    """Where releases are published, and where they are installed."""

    hub: Hub
    cache: Path
    table: Path

    def publish(self, archives: dict[str, bytes], **changes: Any) -> None:
        """These tags, for the processor; the first is the one to install."""
        write_table(self.table, self.hub, {tag: {"cpu": data} for tag, data in archives.items()}, **changes)

    def choose(self, tag: str | None = None) -> Chosen:
        """As the command does."""
        platform = this_platform()
        assert platform is not None
        return choose_build(choose_release(read_table(self.table), tag), platform, ["cpu"])

    @property
    def home(self) -> Path:
        """Of all releases."""
        return self.cache / "engines" / "llama.cpp"

    def left(self) -> list[str]:
        """In the staging folder."""
        return sorted(path.name for path in (self.home / ".staging").iterdir())

    def names(self) -> list[tuple[str, str]]:
        """What is installed, and its state."""
        return [(one.name, one.state) for one in list_installed(self.cache)]


@pytest.fixture
def host(hub: Hub, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """With no release, and a table that the environment names."""
    cache_dir.mkdir()
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
    monkeypatch.setenv("LLMSESSION_RELEASES", str(tmp_path / "table.json"))
    return Host(hub, cache_dir, tmp_path / "table.json")


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any engine."""
    (tmp_path / "bin").mkdir()
    for name in ("sh", "setpriv"):
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(find, "find_wheel", lambda: None)
    monkeypatch.setattr(find, "_find_in_wheel", lambda: None)


@pytest.mark.parametrize("server", SERVERS, ids=["handed-over", "llama-server"][: len(SERVERS)])
async def test_a_release_is_installed_and_answers(host: Host, server: str, nothing_else: None) -> None:
    """B6, B1: fetched once, compared, tried; then it is the llama-server of a session, by the cache alone."""
    host.publish({"b6123": pack_server("b6123", server)})
    told: list[Progress] = []
    installed = await install(host.choose(), host.cache, on_progress=told.append)
    assert [("b6123-cpu", "used")] == host.names()
    assert [] == host.left()
    archive = host.hub.repos[REPO].commits[host.hub.repos[REPO].branches["main"]][archive_name("b6123")]
    assert (len(archive), len(archive), "engine") == (told[-1].done, told[-1].total, told[-1].stage)
    async with Session(threads=1) as session:
        assert ("ok chief", "llama-server") == ((await session.prompt('reply with "ok chief"')).text, session.backend)
    found = await survey.list_candidates(cache=host.cache)
    assert (str(installed.binary), "release b6123-cpu") == (found[0].path, found[0].source)
    again = await install(host.choose(), host.cache)
    assert (installed.folder, len(archive)) == (again.folder, host.hub.sent())


async def test_an_older_zip_is_installed(host: Host) -> None:
    """B6: build/bin/llama-server in a zip, as of 2025."""
    name = archive_name("b4000").replace(".tar.gz", ".zip")
    data = pack_zip(REAL)
    host.publish({"b4000": data}, name=name)
    host.hub.add(REPO, {name: data})
    installed = await install(host.choose(), host.cache)
    assert "build/bin/llama-server" == installed.manifest.binary


async def test_one_can_go_back(host: Host) -> None:
    """B6: the one before stays, and is used again by command; removing takes what is named."""
    host.publish({"b2": pack("b2", REAL), "b1": pack("b1", REAL)})
    first = await install(host.choose("b1"), host.cache)
    await install(host.choose(), host.cache)
    assert [("b2-cpu", "used"), ("b1-cpu", "before")] == host.names()
    await use(require_previous(host.cache), host.cache)
    assert [("b1-cpu", "used"), ("b2-cpu", "before")] == host.names()
    found = find_installed(host.cache)
    assert found is not None
    assert first.binary == found.binary
    await remove([require_installed(host.cache, "b2-cpu")], host.cache)
    with pytest.raises(UsageError, match="no release to go back to"):
        require_previous(host.cache)
    with pytest.raises(UsageError, match="there are b1-cpu"):
        require_installed(host.cache, "b2-cpu")
    await remove(list_installed(host.cache), host.cache)
    assert find_installed(host.cache) is None
    assert [] == host.left()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"#!/bin/sh\necho \"libc.so.6: version 'GLIBC_2.38' not found\" >&2; exit 1\n", "GLIBC_2.38"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "cannot be run"),
        (b"#!/bin/sh\necho hello\n", "hello"),
        (b'#!/bin/sh\n[ "$1" = --version ] && echo "version: 1" || exit 3\n', "does not know --ctx-size"),
        (script(f'[ "$1" = --version ] && echo "version: 1" && exit; exec {FAKE}'), "computes nonsense.*'word1 word2"),
        (
            script(f'[ "$1" = --version ] && echo "version: 1" && exit; FAKE="--die-while-loading 7" exec {FAKE}'),
            "made of cheese",
        ),
    ],
    ids=["library", "machine", "other", "help", "nonsense", "dies"],
)
async def test_one_that_does_not_run_here_is_not_used(host: Host, program: bytes, words: str) -> None:
    """B6: the smoke test; what was used before still is, and nothing of the new one is left."""
    host.publish({"b2": pack("b2", program), "b1": pack("b1", REAL)})
    await install(host.choose("b1"), host.cache)
    with pytest.raises(StartFailedError, match=f"(?s)b2-cpu (does not run on this machine|runs.*).*{words}"):
        await install(host.choose(), host.cache)
    assert [("b1-cpu", "used")] == host.names()
    assert [] == host.left()
    broken = require_installed(host.cache, "b1-cpu")
    broken.binary.write_bytes(program)
    with pytest.raises(StartFailedError):
        await use(broken, host.cache)


async def test_what_was_damaged_is_installed_anew(host: Host) -> None:
    """B6: the same release again mends it; the one that is replaced goes."""
    host.publish({"b1": pack("b1", REAL)})
    damaged = await install(host.choose(), host.cache)
    damaged.binary.write_bytes(b"")
    with pytest.raises(StartFailedError):
        await install(host.choose(), host.cache, offline=True)
    mended = await install(host.choose(), host.cache)
    assert [("b1-cpu", "used")] == host.names()
    assert (False, REAL) == (damaged.folder.exists(), mended.binary.read_bytes())
    with pytest.raises(UsageError, match="no release to go back to"):
        require_previous(host.cache)


async def test_other_bytes_than_pinned_are_refused(host: Host) -> None:
    """B6: a wrong digest, with both; a wrong length before anything is read; nothing is installed."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.damaged = True
    with pytest.raises(DigestError, match=r"is not what was pinned: its sha256 is .* expected is"):
        await install(host.choose(), host.cache)
    assert ([], []) == (host.names(), host.left())
    host.hub.damaged, host.hub.web_page, sent = False, True, host.hub.sent()
    with pytest.raises(FetchError, match=r"has 26 bytes, where .* are expected: is a login page"):
        await install(host.choose(), host.cache)
    assert sent == host.hub.sent()


async def test_without_a_digest_only_what_is_allowed_by_name(host: Host) -> None:
    """B6: no digest, no download; allowed by name it is; another name allows nothing."""
    host.publish({"b1": pack("b1", REAL)}, sha256=None)
    name = archive_name("b1")
    with pytest.raises(DigestError, match=f"nobody has said what is in {name}.*--unverified {name}"):
        await install(host.choose(), host.cache)
    with pytest.raises(UsageError, match=rf"x\.tar\.gz is not an archive of b1-cpu, which is {name}"):
        await install(host.choose(), host.cache, unverified=frozenset(["x.tar.gz"]))
    assert [] == host.hub.requests
    await install(host.choose(), host.cache, unverified=frozenset([name]))
    assert [("b1-cpu", "used")] == host.names()


async def test_a_cut_connection_is_gone_on_with(host: Host) -> None:
    """B6: by ranges, and only of the same file; a server that is ill is asked again."""
    data = pack("b1", REAL, **PADDING)
    host.publish({"b1": data})
    host.hub.cuts = [100_000, 200_000]
    host.hub.statuses = [503, 429]
    await install(host.choose(), host.cache)
    ranges = [request.range for request in host.hub.requests if request.sent]
    assert ["", "bytes=100000-", "bytes=300000-"] == ranges
    assert len(data) == host.hub.sent()


async def test_a_server_without_ranges_begins_anew(host: Host) -> None:
    """B6: it sends all of it once more."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.cuts, host.hub.ignores_ranges = [100_000], True
    await install(host.choose(), host.cache)
    assert [("b1-cpu", "used")] == host.names()


async def test_a_bad_beginning_is_fetched_anew(host: Host) -> None:
    """B6: what a lost machine left may be wrong: then once more from the start."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.halt_at = 100_000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(install, host.choose(), host.cache)
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(host.hub.halted.wait)
        tasks.cancel_scope.cancel()
    host.hub.halt_at = None
    host.hub.may_go_on.set()
    (partial,) = (host.home / ".staging").glob("*.part")
    partial.write_bytes(bytes(partial.stat().st_size))
    await install(host.choose(), host.cache)
    assert [("b1-cpu", "used")] == host.names()


async def test_what_goes_wrong_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: FetchError for the network, with what to do next; nothing is left of it."""
    host.publish({"b1": pack("b1", REAL)})
    chosen = host.choose()
    with pytest.raises(FetchError, match=r"there is no such file.*HTTP 404"):
        await install(msgspec.structs.replace(chosen, url=f"{host.hub.url}/nowhere"), host.cache)
    with pytest.raises(FetchError, match="cannot be reached"):
        await install(msgspec.structs.replace(chosen, url="http://127.0.0.1:9"), host.cache)
    host.hub.statuses = [500] * 9
    with pytest.raises(FetchError, match="status 500; try again later"):
        await install(chosen, host.cache)
    monkeypatch.setenv("HTTP_PROXY", "bogus://x")
    with pytest.raises(FetchError, match="bogus"):
        await install(chosen, host.cache)
    with pytest.raises(OfflineError, match=r"b1-cpu of llama\.cpp is not installed, and this is offline"):
        await install(chosen, host.cache, offline=True)
    assert [] == host.names()


async def test_room_is_looked_for_before_anything_is_fetched(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: DiskFullError with both numbers, also where only the server knows the size."""
    data = pack("b1", REAL, **PADDING)
    host.publish({"b1": data})
    usage = shutil.disk_usage(host.cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(data)))
    with pytest.raises(DiskFullError) as caught:
        await install(host.choose(), host.cache)
    assert (5 * len(data), len(data)) == (caught.value.needed_bytes, caught.value.free_bytes)
    assert [] == host.hub.requests
    host.publish({"b1": data}, size=None)
    with pytest.raises(DiskFullError):
        await install(host.choose(), host.cache)
    assert ([], []) == (host.names(), host.left())


async def test_a_folder_that_cannot_be_written_is_told(host: Host) -> None:
    """B6: what, which, and what to do next."""
    host.publish({"b1": pack("b1", REAL)})
    (host.cache / "engines").touch()
    with pytest.raises(FetchError, match=r"cannot be written.*LLMSESSION_CACHE_DIR"):
        await install(host.choose(), host.cache)


async def test_an_archive_without_a_server_is_told(host: Host) -> None:
    """B6: such as the one with the user interface alone."""
    host.publish({"b1": pack_zip(REAL).replace(b"llama-server", b"llama-nobody")})
    with pytest.raises(FetchError, match="holds no llama-server"):
        await install(host.choose(), host.cache)


# Without any engine, a session fetches one.


async def test_a_session_fetches_what_is_pinned(host: Host, nothing_else: None) -> None:
    """B1: last in the order of choice; its progress has a stage of its own."""
    host.publish({"b1": pack("b1", REAL)})
    told: list[Progress] = []
    async with Session(threads=1, on_progress=told.append) as session:
        assert ("ok chief", "llama-server") == ((await session.prompt('reply with "ok chief"')).text, session.backend)
    assert "engine" == told[0].stage
    sent = host.hub.sent()
    async with Session(threads=1, backend="llama-server") as session:
        assert "llama-server" == session.backend
    assert sent == host.hub.sent()


@pytest.mark.parametrize("case", ["offline", "empty table", "no digest", "another machine"])
async def test_without_a_pinned_one_there_is_none(host: Host, nothing_else: None, case: str) -> None:
    """B1, B6: BackendNotFoundError with its hint; nobody is asked."""
    host.publish({"b1": pack("b1", REAL)}, sha256=None if case == "no digest" else hashlib.sha256(b"").hexdigest())
    if case == "empty table":
        host.table.write_text("{}")
    if case == "another machine":
        host.table.write_text(host.table.read_text().replace('"linux"', '"windows"').replace('"macos"', '"windows"'))
    with pytest.raises(BackendNotFoundError) as caught:
        async with Session(threads=1, offline=case == "offline"):
            pass
    assert 'pip install "llmsession[embedded]"' == caught.value.hint
    assert [] == host.hub.requests


async def test_closing_a_session_ends_its_download(host: Host, nothing_else: None) -> None:
    """B6: at once, from another task; what had arrived is kept."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.halt_at = 100_000
    session = Session(threads=1)
    async with anyio.create_task_group() as tasks:

        async def open_it() -> None:
            with pytest.raises(ClosedError, match="while something was fetched"):
                await session.__aenter__()

        tasks.start_soon(open_it)
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(host.hub.halted.wait)
            await session.aclose()
    host.hub.may_go_on.set()
    assert any((host.home / ".staging").glob("*.part"))


# Interrupted, and in company.

KILLED_AT = """
import os, signal, sys
at, seen, folder = int(sys.argv[1]), 0, sys.argv[2]
WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "subprocess.Popen"}
def hook(event, arguments):
    global seen
    if event in WATCHED and folder in str(arguments):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
sys.argv[1:] = sys.argv[3:]
import atexit
atexit.register(lambda: print(seen, file=sys.stderr))
from llmsession.cli import main
main()
"""


def install_until(at: int, host: Host) -> subprocess.CompletedProcess[str]:
    """The command, which kills itself with SIGKILL before the `at`-th thing that it does in the folder."""
    argv = [sys.executable, "-c", KILLED_AT, str(at), str(host.home), "server", "install"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("part", range(4))
def test_killed_anywhere_the_old_one_still_works(host: Host, tmp_path: Path, part: int) -> None:
    """B6: kill -9 before any change of a file: the one in use runs, and the next installation mends all.

    Each eighth step; LLMSESSION_TEST_EVERY_STEP=1 takes all.
    """
    every = 1 if os.environ.get("LLMSESSION_TEST_EVERY_STEP") else 8
    host.publish({"b1": pack("b1", REAL)})
    assert 0 == install_until(0, host).returncode
    shutil.copytree(host.home, tmp_path / "before", symlinks=True)
    host.publish({"b2": pack("b2", REAL, **PADDING), "b1": pack("b1", REAL)})
    used = []
    for at in range(1 + every * part, 1000, 4 * every):
        shutil.rmtree(host.home)
        shutil.copytree(tmp_path / "before", host.home, symlinks=True)
        done = install_until(at, host)
        if done.returncode == 0:
            break
        assert -signal.SIGKILL == done.returncode, done.stderr
        found = find_installed(host.cache)
        assert found is not None
        subprocess.run([found.binary, "--version"], check=True, capture_output=True)
        used.append(found.name)
        assert 0 == install_until(0, host).returncode
        assert [("b2-cpu", "used"), ("b1-cpu", "before")] == host.names()
        assert [] == host.left()
    assert "b1-cpu" == used[0]
    assert set(used) <= {"b1-cpu", "b2-cpu"}


def test_killed_while_it_fetches_it_goes_on(host: Host) -> None:
    """B6: kill -9 in the middle: the next one asks for the rest alone."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.halt_at = 300_000
    with subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL) as program:
        assert host.hub.halted.wait(20)
        (partial,) = (host.home / ".staging").glob("*.part")
        wait_for(lambda: partial.stat().st_size > 100_000)
        program.kill()
    host.hub.halt_at = None
    host.hub.may_go_on.set()
    kept = partial.stat().st_size
    assert 0 == subprocess.run(COMMAND, check=False, stdout=subprocess.DEVNULL).returncode
    assert f"bytes={kept}-" == host.hub.requests[-1].range
    assert [("b1-cpu", "used")] == host.names()
    assert [] == host.left()


def test_another_releases_half_is_cleared(host: Host) -> None:
    """B6: what an interrupted installation left is cleared by the next, whatever that one installs."""
    host.publish({"b2": pack("b2", REAL), "b1": pack("b1", REAL)})
    staging = host.home / ".staging"
    (staging / "unpacking" / "files").mkdir(parents=True)
    (staging / "removed-b0-cpu-1").mkdir()
    (staging / "llama-b0-bin-ubuntu-x64.tar.gz.unverified.part").write_bytes(b"half")
    assert 0 == subprocess.run(COMMAND, check=False, stdout=subprocess.DEVNULL).returncode
    assert [] == host.left()


def test_two_at_once_fetch_once(host: Host) -> None:
    """B6: one lock; the second waits, says so, and finds it installed."""
    data = pack("b1", REAL, **PADDING)
    host.publish({"b1": data})
    host.hub.halt_at = 300_000
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(COMMAND, **pipes) as first:
        assert host.hub.halted.wait(20)
        with subprocess.Popen(COMMAND, **pipes) as second:
            assert second.stderr is not None
            assert "another process is installing a release" in second.stderr.readline()
            host.hub.may_go_on.set()
            outputs = {first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]}
    assert (0, 0, 1) == (first.returncode, second.returncode, len(outputs))
    assert len(data) == host.hub.sent()


def test_a_waiting_one_takes_over_from_one_that_is_killed(host: Host) -> None:
    """B6: the kernel lets go of the lock, and the rest is fetched."""
    host.publish({"b1": pack("b1", REAL, **PADDING)})
    host.hub.halt_at = 300_000
    with subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL) as first:
        assert host.hub.halted.wait(20)
        with subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert "another process" in second.stderr.readline()
            host.hub.halt_at = None
            first.kill()
            host.hub.may_go_on.set()
            assert 0 == second.wait(60)
    assert [("b1-cpu", "used")] == host.names()
