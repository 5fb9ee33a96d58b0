"""`llmsession pull` and `llmsession models`, as a person meets them. API 6."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest

from llmsession.models.registry_file import shipped_path
from tests.command import COMMAND, run, run_program
from tests.hub_server import FILES, REPO, TINY, Hub
from tests.model_files import write_random_model

REF = f"hf:{REPO}/HEAD/tiny-Q8_0.gguf"
REGISTRY = f"""\
knownllms:
- source: hf:{REPO}/HEAD/tiny-
  prompt_encoding: tiny-chat
  aliases: [my-tiny]
  license: apache-2.0
  context_length: 2048
  parameter_count: 1_900_000
  default_quantization: q8_0
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own, named by its variable."""
    path = tmp_path / "mine.yaml"
    path.write_text(REGISTRY)
    monkeypatch.setenv("LLMSESSION_REGISTRY", str(path))
    return path


def test_pull_prints_where_the_file_is(hub: Hub, registry: Path) -> None:
    """E2: the path on stdout, and nothing else there; a second time nothing is fetched."""
    done = run_program("pull", REF)
    assert (0, "") == (done.returncode, done.stderr)
    assert TINY == Path(done.stdout.strip()).read_bytes()
    again = run("pull", "my-tiny", "--json")
    assert {"ref": "my-tiny", "path": done.stdout.strip(), "size_bytes": len(TINY)} == json.loads(again.stdout)
    assert len(TINY) == hub.sent()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pull", f"hf:{REPO}/HEAD/q9_z"], 1, "has no file 'q9_z'"),
        (["pull", "hf:foo/Nope/HEAD/q8_0"], 1, "no repository foo/Nope"),
        (["pull", "hf:foo"], 2, "is not a reference"),
        (["pull", "qwen2.5-0.5b-instrct"], 2, "did you mean qwen2.5-0.5b-instruct"),
        (["pull", f"hf:{REPO}/HEAD/q4_k_m", "--offline"], 1, "not in the cache"),
        (["models", "show", "nobody-knows-this"], 2, "no model is called"),
        (["models", "lint", "/nowhere.yaml"], 2, "cannot be read (No such file or directory)"),
        (["models", "verify", "/nowhere.gguf"], 2, "is not a usable model"),
        (["run", "hi", "--model", "hf:foo/Nope/HEAD/q8_0"], 1, "no repository foo/Nope"),
        (["run", "hi", "--model", REF, "--locked"], 2, "is not in llmsession.lock"),
        (["run", "hi", "--locked"], 2, "--locked runs models of Hugging Face"),
    ],
)
def test_what_goes_wrong_is_one_sentence(hub: Hub, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """API 6: 1 where the work failed, 2 where the call is wrong; never a traceback."""
    done = run(*arguments, cwd=tmp_path)
    assert code == done.returncode
    assert "" == done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_run_from_an_alias_to_a_reply(hub: Hub, registry: Path) -> None:
    """Issue 4: from a name to a reply."""
    done = run("run", "--model", "my-tiny", 'reply with "ok chief"')
    assert ("ok chief\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_a_bar_in_a_terminal_and_ctrl_c_that_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    """Issue 4: a bar with bytes and speed; Ctrl-C ends it with 130; the next time goes on."""
    hub.chunk, hub.pause = 1 << 14, 0.02
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "pull", REF], encoding="utf-8", timeout=30, dimensions=(24, 100))
    child.expect("fetching the model")
    child.expect(r"MB/s|kB/s")
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    child.close()
    assert 130 == child.exitstatus
    (partial,) = (tmp_path / "hf").rglob("*.incomplete")
    kept = partial.stat().st_size
    assert kept > 0
    hub.pause = 0
    assert 0 == run("pull", REF).returncode
    assert f"bytes={kept}-" == hub.asked("GET", "signature")[-1].range


def test_the_list_of_models(hub: Hub, registry: Path) -> None:
    """E2: a table, with what is here; the same as JSON."""
    assert "qwen2.5-0.5b-instruct" in run("models", "list").stdout
    assert "my-tiny" not in run("models", "list", "--cached").stdout
    run("pull", "my-tiny")
    (line,) = [line for line in run("models", "list", "--cached").stdout.splitlines() if "my-tiny" in line]
    assert ["my-tiny", "0.00", "B", "2048", "apache-2.0", "Q8_0", "(1.9", "MB)"] == line.split()
    listed = json.loads(run("models", "list", "--json").stdout)
    assert {"tiny-Q8_0.gguf": len(TINY)} == listed[0]["cached"]
    assert len(listed) > 40


def test_what_is_known_of_a_model(hub: Hub, registry: Path) -> None:
    """E2: its entry; of a file that is here, what it says, and the memory that it needs."""
    shown = run("models", "show", "my-tiny").stdout
    assert "not fetched" in shown
    run("pull", "my-tiny")
    facts = json.loads(run("models", "show", "my-tiny", "--json").stdout)
    assert ("llama", "Q8_0", 2048, "apache-2.0") == (
        facts["architecture"], facts["quantization"], facts["trained context"], facts["licence"],
    )  # fmt: skip
    assert "MB for 4 replies at once with 2048 tokens each" in facts["memory"]
    assert "tiny-chat" in run("models", "show").stdout


def test_a_registry_is_looked_through(registry: Path) -> None:
    """E2: with the line of what is wrong."""
    assert 0 == run("models", "lint", str(shipped_path())).returncode
    assert {"path": str(registry), "models": 1, "encodings": 0} == (
        json.loads(run("models", "lint", str(registry), "--json").stdout)
    )
    registry.write_text(REGISTRY.replace("license", "licence"))
    done = run("models", "lint", str(registry))
    assert 2 == done.returncode
    assert f"{registry}, line 2: entry 1 of knownllms: there is no field 'licence'" in done.stderr


def test_an_encoding_against_the_models_own_template(tmp_path: Path) -> None:
    """CAPABILITIES A13: equal, or the first difference in both with its token ids, and exit code 1."""
    assert 0 == run("models", "verify").returncode
    done = run("models", "verify", "--encoding", "qwen-2.5")
    assert 1 == done.returncode
    assert "DIFFERS   a question" in done.stdout
    assert "equal     with a system prompt" in done.stdout
    assert "from token" in done.stdout
    compared = json.loads(run("models", "verify", "--encoding", "qwen-2.5", "--json").stdout)
    assert compared[0]["our_ids"][compared[0]["at"]] != compared[0]["their_ids"][compared[0]["at"]]
    path = write_random_model(tmp_path / "base.gguf", template="")
    done = run("models", "verify", str(path), "--encoding", "chatml")
    assert (2, True) == (done.returncode, "carries no template" in done.stderr)


def test_a_lock_holds(hub: Hub, registry: Path, tmp_path: Path) -> None:
    """CAPABILITIES A13: commit, sha256 and size of each file; what has changed since is refused."""
    commit = hub.repos[REPO].branches["main"]
    assert 0 == run("models", "lock", "my-tiny", f"hf:{REPO}/HEAD/f16", cwd=tmp_path).returncode
    lock = json.loads((tmp_path / "llmsession.lock").read_text())
    locked = lock["models"][f"hf:{REPO}/HEAD/tiny-q8_0"]
    assert (commit, ["tiny-Q8_0.gguf"]) == (locked["commit"], list(locked["files"]))
    assert 2 == len(lock["models"][f"hf:{REPO}/HEAD/f16"]["files"])
    # The branch moves on: what is locked stays.
    hub.add(REPO, {**FILES, "tiny-Q8_0.gguf": TINY + b"new"})
    assert 0 == run("pull", "my-tiny").returncode
    done = run("run", "--model", "my-tiny", "--locked", 'reply with "ok chief"', cwd=tmp_path)
    assert ("ok chief\n", 0) == (done.stdout, done.returncode)
    # The bytes of the locked commit change: refused.
    blob = next((tmp_path / "hf").rglob(f"snapshots/{commit}/tiny-Q8_0.gguf")).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = run("run", "--model", "my-tiny", "--locked", "hi", cwd=tmp_path)
    assert (1, True) == (done.returncode, "is not the file that was locked" in done.stderr)
    (tmp_path / "llmsession.lock").write_text("{")
    assert 2 == run("run", "--model", "my-tiny", "--locked", "hi", cwd=tmp_path).returncode


def test_the_commands_say_what_they_are_for() -> None:
    """E2: --help, everywhere."""
    for command in (["pull"], ["models"], *(["models", name] for name in ("list", "show", "lint", "verify", "lock"))):
        done = run(*command, "--help")
        assert 0 == done.returncode
        assert "Usage:" in done.stdout


def test_nothing_is_left_after_a_killed_pull(hub: Hub) -> None:
    """The command is killed: so is what fetched for it."""
    hub.chunk, hub.pause = 1 << 12, 0.05
    with subprocess.Popen([*COMMAND, "pull", REF], stdout=subprocess.DEVNULL) as program:
        assert hub.begun.wait(20)
        os.kill(program.pid, signal.SIGKILL)
