"""Messages to and from the download process: one JSON line each."""

from __future__ import annotations

from typing import Any

import msgspec


class DownloadRequest(msgspec.Struct, kw_only=True):
    """Files of `repo_id` at `revision`: the model `file` with all its shards, or all that match `patterns`.

    `recheck`: check cached files again, since one could not be read.
    """

    repo_id: str
    revision: str
    file: str = ""
    patterns: tuple[str, ...] = ()
    token: str | None = None
    recheck: bool = False


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message from the process: progress (`total` in bytes), the `paths` of the files, or an `error`."""

    done: int = 0
    total: int | None = None
    paths: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""
    details: dict[str, Any] = {}
