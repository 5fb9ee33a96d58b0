"""The command `llmsession`, as a program of its own, or within this process, which takes half a second less."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from llmsession.cli import main

COMMAND = [sys.executable, "-W", "error", "-m", "llmsession"]


class Done(NamedTuple):
    """What it printed, and its exit code."""

    stdout: str
    stderr: str
    returncode: int


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> Done:
    """To its end, in this process: for what is the same there. Nothing is on its standard input.

    Libraries that read the environment once, when they are imported, do not see `environment`: see `run_program`.
    """
    files = [io.BytesIO() for _ in range(3)]
    stdin, stdout, stderr = (io.TextIOWrapper(file, encoding="utf-8", write_through=True) for file in files)
    argv = ["llmsession", *arguments]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch.multiple(sys, argv=argv, stdin=stdin, stdout=stdout, stderr=stderr))
        stack.enter_context(contextlib.chdir(cwd or Path.cwd()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error")
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(files[1].getvalue().decode(), files[2].getvalue().decode(), code)


def run_program(
    *arguments: str, cwd: Path | None = None, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """To its end, as a process: for what is only there, as signals, pipes and the end of an interpreter."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, input=stdin, cwd=cwd,
        env=os.environ | environment,
    )  # fmt: skip
