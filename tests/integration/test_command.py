"""The command as a person or a script meets it. API 6."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmsession import Session
from tests.command import COMMAND, run, run_program
from tests.engines import Engine
from tests.fake_llama_server import wrapper
from tests.model_files import write_random_model
from tests.played_servers import Played, serve_played


def test_run_prints_the_reply_and_nothing_else() -> None:
    """Issue 1: `ok chief` on stdout; that it is a demonstration stands on stderr."""
    done = run_program("run", 'reply with "ok chief"')
    assert ("ok chief\n", 0) == (done.stdout, done.returncode)
    assert 1 == done.stderr.count("\n")
    assert "demonstration" in done.stderr
    assert "--model" in done.stderr


def test_a_model_of_the_users_own_is_run_without_that_notice(tmp_path: Path, engine: Engine) -> None:
    """API 6: --model, --backend."""
    path = write_random_model(tmp_path / "random.gguf", context=256)
    arguments = ["run", "hi", "--model", str(path), "--backend", engine.backend]
    environment = dict(os.environ)
    if engine.server_path is not None:
        environment["PATH"] = f"{Path(engine.server_path).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, check=False, env=environment)
    assert (b"", 0) == (done.stderr, done.returncode)
    assert done.stdout.endswith(b"\n")


def test_verbose_shows_the_logs_place() -> None:
    """Issue 1: -v."""
    done = run("run", "hello", "-v")
    (line,) = [line for line in done.stderr.splitlines() if "log in " in line]
    assert Path(line.partition("log in ")[2]).exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "hi", "--model", "/nowhere/x.gguf"], 2, "llmsession: /nowhere/x.gguf is not a usable model"),
        (["run", "hi", "--backend", "chatgpt"], 2, "llmsession: backend='chatgpt' is unknown"),
        (["run", "hi", "--bogus"], 2, "No such option"),
        (["run"], 2, "PROMPT"),
        (["bogus"], 2, "bogus"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_two(arguments: list[str], code: int, words: str) -> None:
    """API 6: exit codes; no traceback."""
    done = run(*arguments)
    assert ("", code) == (done.stdout, done.returncode)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_comes_from_stdin_with_a_dash() -> None:
    """Issue 3: `-` reads the prompt from stdin; nothing, or a closed one, is wrong use."""
    assert "river\n" == run_program("run", "-", "--temperature", "0", stdin='say "river"\n').stdout
    for given in ("", " \n"):
        done = run_program("run", "-", stdin=given)
        assert ("", 2) == (done.stdout, done.returncode)
        assert "nothing on standard input" in done.stderr
    closed = ["/bin/sh", "-c", '"$@" <&-', "sh", *COMMAND, "run", "-"]
    refused = subprocess.run(closed, capture_output=True, text=True, timeout=60, check=False)
    assert 2 == refused.returncode
    assert "it is closed" in refused.stderr


def test_a_megabyte_on_stdin_is_one_sentence() -> None:
    """Issue 3: a prompt of 1 MB on stdin."""
    done = run_program("run", "-", stdin="long " * 200_000)
    assert ("", 1) == (done.stdout, done.returncode)
    assert 1 == sum("context_length=" in line for line in done.stderr.splitlines())


def test_run_takes_the_keywords_of_a_reply() -> None:
    """Issue 3: --system, --max-tokens, --temperature, --seed, --json."""
    arguments = ["--temperature", "0", "--seed", "7", "--max-tokens", "5", "--json", "--system", "You are kind."]
    done = run("run", "count to 10", *arguments)
    said = json.loads(done.stdout)
    assert ("1 2 3", 7, "length") == (said["text"], said["seed"], said["stop_reason"])
    assert 5 == said["usage"]["completion_tokens"]


def test_options_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """API 3: explicit before environment before YAML."""
    config = tmp_path / "options.yaml"
    config.write_text("context_length: 512\nbackend: chatgpt\n")
    done = run("run", "hi", "--config", str(config))
    assert 2 == done.returncode
    assert f"{config}, line 2: backend='chatgpt' is unknown" in done.stderr
    monkeypatch.setenv("LLMSESSION_PARALLEL", "many")
    assert "LLMSESSION_PARALLEL='many'" in run("run", "hi").stderr
    monkeypatch.setenv("LLMSESSION_PARALLEL", "2")
    config.write_text("context_length: 100\n")
    monkeypatch.setenv("LLMSESSION_CONFIG", str(config))
    done = run("run", "x" * 2000)
    assert "a conversation may use 256" in done.stderr


def test_a_remote_is_talked_to(engine: Engine) -> None:
    """Issue 3: --remote, its key in the environment."""

    async def ask(*arguments: str) -> tuple[bytes, bytes]:
        async with Session(**engine.options()) as session:
            done = await anyio.run_process(
                [*COMMAND, *arguments, "--remote", session.base_url],
                env={**os.environ, "LLMSESSION_API_KEY": session.api_key},
                check=False,
            )
        return done.stdout, done.stderr

    assert (b"river\n", b"") == anyio.run(ask, "run", 'say "river"', "--temperature", "0")
    out, err = anyio.run(ask, "metrics", "--json")
    assert b"" == err
    assert "tiny-chat" == json.loads(out)[0]["model"]


def test_what_a_server_does_not_count_is_a_question_mark(tmp_path: Path) -> None:
    """CAPABILITIES B17: a server of ours without metrics has its row; a remote one without is told in one sentence."""

    async def ask() -> tuple[str, Any]:
        async with Session(server_path=wrapper(tmp_path, "--play b4100"), extra_args=["--no-slots"]):
            return run_program("metrics").stdout, json.loads(run_program("metrics", "--json").stdout)

    table, (row,) = anyio.run(ask)
    assert ["tiny-chat", "12", "?", "30", "15", "1", "0", "25%"] == [
        cell for cell in table.splitlines()[1].split() if cell != str(row["pid"])
    ]
    assert row["metrics"]["cached_prompt_tokens"] is None
    with serve_played(Played("llamafile-0.9", has_metrics=False)) as played:
        failed = run("metrics", "--remote", played.base_url)
    assert (2, "") == (failed.returncode, failed.stdout)
    assert failed.stderr.endswith(f"llamafile at {played.base_url} has no metrics\n")
    assert 1 == failed.stderr.count("\n")


def test_metrics_lists_what_runs_now(engine: Engine) -> None:
    """Issue 3: tokens and rates of the running servers of this user; nothing where none runs."""
    assert "no server of yours runs now\n" == run("metrics").stdout
    assert "[]\n" == run("metrics", "--json").stdout

    async def ask() -> tuple[Any, str]:
        async with Session(**engine.options()) as session:
            await session.prompt("hello", temperature=0, max_tokens=9)
            return json.loads(run_program("metrics", "--json").stdout), run_program("metrics").stdout

    (row,), table = anyio.run(ask)
    assert ("tiny-chat", 9) == (row["model"], row["metrics"]["generated"]["count"])
    assert row["seconds"] > 0
    assert "tiny-chat" in table
    assert str(row["pid"]) in table


def test_the_record_of_a_server_is_for_its_owner_only(engine: Engine, cache_dir: Path) -> None:
    """The key stands there, so nobody else may read it."""

    async def look() -> list[int]:
        async with Session(**engine.options()):
            files = list((cache_dir / "running").iterdir())
            return [path.stat().st_mode & 0o777 for path in (*files, cache_dir / "running")]

    assert [0o600, 0o700] == anyio.run(look)


def test_doctor_says_what_runs_and_why() -> None:
    """Issue 3: which engine was found and why it was chosen, versions, memory, threads, where logs are."""
    done = run("doctor")
    assert 0 == done.returncode
    for word in ("embedded (chosen)", "xllamacpp", "threads", "GiB", "logs", "first reply", "'ok'"):
        assert word in done.stdout
    report = json.loads(run("doctor", "--json").stdout)
    assert ("embedded", "ok", None) == (report["chosen"], report["reply"], report["error"])
    assert {"httpx", "xllamacpp"} <= set(report["libraries"])
    assert ["cpu"] == [device["id"] for device in report["devices"]]
    assert report["free_memory_bytes"] > 10**8
    failed = run("doctor", "--model", "/nowhere/x.gguf")
    assert 1 == failed.returncode
    assert "not a usable model" in failed.stdout


def test_doctor_tells_a_problem_with_its_remedy_and_no_secret() -> None:
    """Issue 5: good to paste into an issue."""
    secret, home = "hf_secret77", str(Path.home())
    done = run_program("doctor", HF_ENDPOINT="http://127.0.0.1:9", LLMSESSION_HF_TOKEN=secret)
    assert 0 == done.returncode
    (problem,) = [line for line in done.stdout.splitlines() if line.startswith("problem")]
    assert "http://127.0.0.1:9 cannot be reached" in problem
    assert "set HTTPS_PROXY" in problem
    assert "hf_token=…" in done.stdout
    assert secret not in done.stdout
    assert home not in done.stdout
    report = json.loads(run_program("doctor", "--json", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1").stdout)
    assert report["network"].endswith("this is offline")
    assert [] == report["problems"]


def test_work_that_failed_is_exit_code_one() -> None:
    """API 6: the prompt does not fit into the context."""
    done = run("run", "x" * 100_000)
    assert ("", 1) == (done.stdout, done.returncode)
    assert "context_length=" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_reply_is_exit_code_130_and_leaves_nothing(tmp_path: Path) -> None:
    """API 6: 130 interrupted; the fixture looks for what is left."""
    path = write_random_model(tmp_path / "random.gguf", context=100_000)
    program = subprocess.Popen(
        [*COMMAND, "run", "hi", "--model", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.read(1)
    program.send_signal(signal.SIGINT)
    _, stderr = program.communicate(timeout=20)
    assert (130, b"\n") == (program.returncode, stderr)


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    """`llmsession run … | head -c 1`."""
    path, config = write_random_model(tmp_path / "random.gguf", context=100_000), tmp_path / "options.yaml"
    config.write_text("sampling: {ignore_eos: true}\n")  # or it may be at its end before the reader has gone
    with subprocess.Popen(
        [*COMMAND, "run", "hi", "--model", str(path), "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.read(1)
        program.stdout.close()
        assert (1, b"") == (program.wait(timeout=20), program.stderr.read())


def test_version_names_what_runs() -> None:
    """API 6."""
    done = run("version")
    assert done.stdout.startswith("llmsession 0.")
    assert "Python 3." in done.stdout
    assert 0 == done.returncode


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["chat", "-h"], ["metrics", "-h"], ["doctor", "-h"], ["version", "-h"]],
    ids=" ".join,
)
def test_everything_has_help(arguments: list[str]) -> None:
    """API 6: every one takes --help."""
    done = run(*arguments)
    assert ("", 0) == (done.stderr, done.returncode)
    assert done.stdout.startswith("Usage: llmsession")
