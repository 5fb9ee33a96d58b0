"""The child process that runs `transformers serve`, in an environment that has it. It imports nothing of llmsession.

That server itself requires no key. Here, every request except to /health needs the key that arrives as the first line
on stdin. After that, the process exits when stdin is closed or brings another line.
"""

from __future__ import annotations

import hmac
import importlib
import os
import sys
import threading
from typing import Any

FREE = "/health"


def watch_stdin() -> None:
    """Exit as soon as stdin is closed or brings a line. There is nothing to clean up."""
    sys.stdin.buffer.readline()
    os._exit(0)


def require_key(app: Any, key: bytes) -> Any:
    """Return the application, protected by a key. https://asgi.readthedocs.io/en/latest/specs/www.html"""
    expected = b"Bearer " + key

    async def guarded(scope: dict[str, Any], receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or scope.get("path") == FREE or hmac.compare_digest(given, expected):
            await app(scope, receive, send)
            return
        if scope["type"] == "http":
            await send({
                "type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")],
            })  # fmt: skip
            await send({"type": "http.response.body", "body": b'{"detail": "this server wants a key"}'})

    return guarded


def main() -> None:
    """Serve until the parent ends it."""
    key = sys.stdin.buffer.readline().strip()
    if not key:
        sys.exit("no key came: the parent is gone")
    threading.Thread(target=watch_stdin, daemon=True).start()
    sys.path.pop(0)  # the folder of this file, from which nothing below may be imported
    # Imported by name: they exist in the environment that runs this, not in the one in which types are checked.
    uvicorn: Any = importlib.import_module("uvicorn")
    plain = uvicorn.Config

    def configure(app: Any, *arguments: Any, **keywords: Any) -> Any:
        return plain(require_key(app, key), *arguments, **keywords)

    uvicorn.Config = configure
    sys.argv[0] = "transformers"
    importlib.import_module("transformers.cli.transformers").app()


if __name__ == "__main__":
    main()
