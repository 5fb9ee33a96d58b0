"""The command `llmsession`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run it. Exit codes: 0 done, 1 the work failed, 2 wrong use, 130 interrupted."""
    try:
        import llmsession.cli.models_app  # adds its commands
        import llmsession.cli.server_app  # noqa: F401 - the same
        from llmsession.cli.app import app

        app(prog_name="llmsession")
    except BrokenPipeError:
        # Whoever read our output has left; say nothing more, also not when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
