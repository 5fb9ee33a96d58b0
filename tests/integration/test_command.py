"""The command as a person or a script meets it. API 6."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.model_files import write_random_model

COMMAND = [sys.executable, "-W", "error", "-m", "llmsession"]


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """To its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, input=stdin)


def test_run_prints_the_reply_and_nothing_else() -> None:
    """Issue 1: `ok chief` on stdout; that it is a demonstration stands on stderr."""
    done = run("run", 'reply with "ok chief"')
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
        (["run", "hi", "--model", "/nowhere/x.gguf"], 2, "llmsession: /nowhere/x.gguf is no usable model"),
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
    path = write_random_model(tmp_path / "random.gguf", context=100_000)
    program = subprocess.Popen(
        [*COMMAND, "run", "hi", "--model", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.read(1)
    program.stdout.close()
    assert (1, b"") == (program.wait(timeout=20), program.stderr.read())
    program.stderr.close()


def test_version_names_what_runs() -> None:
    """API 6."""
    done = run("version")
    assert done.stdout.startswith("llmsession 0.")
    assert "Python 3." in done.stdout
    assert 0 == done.returncode


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version", "-h"]])
def test_everything_has_help(arguments: list[str]) -> None:
    """API 6: every one takes --help."""
    done = run(*arguments)
    assert ("", 0) == (done.stderr, done.returncode)
    assert done.stdout.startswith("Usage: llmsession")
