"""Messages between this process and the one that downloads: one JSON line each."""

from __future__ import annotations

from typing import Any

import msgspec


class DownloadRequest(msgspec.Struct, kw_only=True):
    """Of `repo_id` at `revision`: the model that `file` means with all its shards, or all files of the `patterns`.

    `recheck`: what is in the cache is not trusted, since it could not be read.
    """

    repo_id: str
    revision: str
    file: str = ""
    patterns: tuple[str, ...] = ()
    token: str | None = None
    recheck: bool = False


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What it writes: how far it is (`total` in bytes), or the `paths` of what was asked for, or the `error`."""

    done: int = 0
    total: int | None = None
    paths: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""
    details: dict[str, Any] = {}
