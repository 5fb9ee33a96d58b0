"""The child that runs `transformers serve`, in an environment that has it. A program of its own, without our modules.

Of itself that server has no key and asks for none: here every request but the question for its health needs the one
that comes as the first line on stdin. Then stdin is the parent's hand: closed, or with another line, it ends us.
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
    """End at once: there is nothing here to put away."""
    sys.stdin.buffer.readline()
    os._exit(0)


def require_key(app: Any, key: bytes) -> Any:
    """The application behind a key. https://asgi.readthedocs.io/en/latest/specs/www.html"""
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
    """Until the parent has had enough."""
    key = sys.stdin.buffer.readline().strip()
    if not key:
        sys.exit("no key came: the parent is gone")
    threading.Thread(target=watch_stdin, daemon=True).start()
    sys.path.pop(0)  # the folder of this file, whose modules are not meant by any import below
    # By name: they are there in the environment that runs this, not where it is checked.
    uvicorn: Any = importlib.import_module("uvicorn")
    plain = uvicorn.Config

    def configure(app: Any, *arguments: Any, **keywords: Any) -> Any:
        return plain(require_key(app, key), *arguments, **keywords)

    uvicorn.Config = configure
    sys.argv[0] = "transformers"
    importlib.import_module("transformers.cli.transformers").app()


if __name__ == "__main__":
    main()
