"""Where our files lie: engines, logs and records, in the platform's own folders, made private to the user."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from llmsession.types.errors import ConfigError


def cache_folder(given: Path | None = None) -> Path:
    """What `cache_dir=` or LLMSESSION_CACHE_DIR names, else the platform's cache folder."""
    if given is None and (named := os.environ.get("LLMSESSION_CACHE_DIR")):
        given = Path(named)
    return _private(given if given is not None else Path(platformdirs.user_cache_dir("llmsession", appauthor=False)))


def logs_folder(cache: Path) -> Path:
    """One log per run of a server."""
    return _private(cache / "logs")


def records_folder(cache: Path) -> Path:
    """One small file per server that runs."""
    return _private(cache / "running")


def history_folder(cache: Path) -> Path:
    """What a person typed in a chat."""
    return _private(cache / "history")


def kv_folder(cache: Path) -> Path:
    """What engines have read of conversations: as private as the conversations."""
    return _private(cache / "kv")


def empty_folder(cache: Path) -> Path:
    """Where an engine finds no configuration of the user's."""
    return _private(cache / "no-config")


def engines_folder(cache: Path) -> Path:
    """The releases of llama.cpp that were installed. Not made: most never have one."""
    return cache / "engines" / "llama.cpp"


def _private(folder: Path) -> Path:
    other = "name another with cache_dir= or LLMSESSION_CACHE_DIR"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder} ({error.strerror}): {other}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written into the folder {folder}: {other}")
    return folder
