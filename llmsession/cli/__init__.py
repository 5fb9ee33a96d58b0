"""The command `llmsession`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    try:
        import llmsession.cli.memory_app  # adds its commands
        import llmsession.cli.models_app
        import llmsession.cli.server_app  # noqa: F401 - the same
        from llmsession.cli.app import app

        app(prog_name="llmsession")
    except BrokenPipeError:
        # The reader of stdout has gone. Print nothing more, not even when Python flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
