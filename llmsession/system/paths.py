"""Where our files lie: engines, logs and records, in the platform's own folders, made private to the user."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from llmsession.types.errors import ConfigError


def locate_cache(given: str | Path | None = None) -> Path:
    """What `cache_dir=` or LLMSESSION_CACHE_DIR names, else the platform's cache folder. Absolute; it is not made."""
    named = (
        given or os.environ.get("LLMSESSION_CACHE_DIR") or platformdirs.user_cache_dir("llmsession", appauthor=False)
    )
    return Path(named).expanduser().absolute()


def cache_folder(given: str | Path | None = None) -> Path:
    """The same, made where there is none. Raises ConfigError."""
    return _private(locate_cache(given))


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
