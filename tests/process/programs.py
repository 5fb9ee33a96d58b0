"""For tests that watch processes from outside: bounded waits, and who is alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

# The one bound on time that tests assert: it is the promise itself (DESIGN 9, P8).
GONE_WITHIN = 0.5


def is_alive(pid: int) -> bool:
    """A dead one whose new parent has not reaped it yet is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Look until it holds; fail when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s")


def without_child_mode(folder: Path, binary: str) -> Path:
    """The real binary as a build that knows no router: its --help does not name the flag by which we know."""
    path = folder / "old-llama-server"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in --help) {binary} --help | sed "s/--models-max//" ;;\n*) exec {binary} "$@" ;; esac\n'
    )
    path.chmod(0o755)
    return path
