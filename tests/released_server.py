"""A program with llama-server's command line that hands over to the embedded engine: a real server, wherever the tests
run, to be put into archives.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

FLAGS = (
    "--model --alias --host --port --parallel --ctx-size --threads --threads-batch --metrics --batch-size "
    "--ubatch-size --cache-ram --models-max"
)
BARE = ("--metrics",)


def main() -> None:
    """As the engine."""
    if "--version" in sys.argv:
        print("version: 6123 (deadbeef)", file=sys.stderr)
        return
    if "--help" in sys.argv:
        for flag in FLAGS.split():
            print(f"{flag + (' N' if flag not in BARE else ''):<40}as llama-server has it")
        return
    given = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    sys.path.append(str(Path(__file__).parent))
    hosted = importlib.import_module("hosted_engine")
    embedded = hosted.load_embedded_child()
    embedded.die_with(os.getppid())
    embedded.say("loading", value=0.0)
    server = hosted.serve(embedded, given, os.environ["LLAMA_API_KEY"])
    embedded.say("ready", url=server.listening_address)
    for line in sys.stdin.buffer:
        if line.startswith(embedded.EXIT):
            break
    os._exit(0)


if __name__ == "__main__":
    main()
