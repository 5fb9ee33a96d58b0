"""The process that downloads files from Hugging Face: a process can be ended at any time.

It reads one request, a line of JSON, from stdin, and ends when stdin closes; it writes lines of JSON to stdout.
"""

from __future__ import annotations

import os
import sys
import threading

import msgspec

from llmsession.models.hub.protocol import DownloadRequest, Report
from llmsession.types.errors import FetchError


def main() -> None:
    """Serve one request."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=DownloadRequest)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no line of ours
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(report: Report) -> None:
        out.write(msgspec.json.encode(report) + b"\n")

    def tell_progress(done: int, total: int | None) -> None:
        tell(Report(done=done, total=total))

    # Only this process needs huggingface_hub.
    from llmsession.models.hub.download import Fetch

    try:
        tell(Report(paths=tuple(str(path) for path in Fetch(request, tell_progress).run())))
    except FetchError as error:
        details = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        tell(Report(error=str(error), kind=type(error).__name__, details=details))


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
