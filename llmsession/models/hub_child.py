"""The process that fetches files from Hugging Face, for hub.py: a process can be ended at any moment.

It reads one request, a line of JSON, from stdin, and ends when stdin does; it writes lines of JSON to stdout.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import msgspec

from llmsession.errors import FetchError


class Request(msgspec.Struct, kw_only=True):
    """Of `repo_id` at `revision`: the model that `file` means with all its shards, or all files of the `patterns`.

    `recheck`: what is in the cache is not trusted, since it could not be read.
    """

    repo_id: str
    revision: str
    file: str = ""
    patterns: tuple[str, ...] = ()
    token: str | None = None
    recheck: bool = False


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What it writes: how far it is (`total` in bytes), or the `paths` of what was asked for, or the `error`."""

    done: int = 0
    total: int | None = None
    paths: tuple[str, ...] = ()
    error: str = ""
    kind: str = ""
    details: dict[str, Any] = {}


def main() -> None:
    """One request, to its end."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no line of ours
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(told: Told) -> None:
        out.write(msgspec.json.encode(told) + b"\n")

    def tell_progress(done: int, total: int | None) -> None:
        tell(Told(done=done, total=total))

    # Only this process needs huggingface_hub.
    from llmsession.models.hub_fetch import Fetch

    try:
        tell(Told(paths=tuple(str(path) for path in Fetch(request, tell_progress).run())))
    except FetchError as error:
        details = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        tell(Told(error=str(error), kind=type(error).__name__, details=details))


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
