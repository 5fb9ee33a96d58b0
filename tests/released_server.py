"""A program with llama-server's command line that hands over to the embedded engine: a real server, wherever the tests
run, to be put into archives.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "llmsession"
FLAGS = (
    "--model --alias --host --port --parallel --ctx-size --threads --threads-batch --metrics --batch-size "
    "--ubatch-size --cache-ram --models-max"
)
BARE = ("--metrics",)


def load(name: str) -> Any:
    """A module by its file: this runs without the package on its path."""
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "backends" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    embedded = load("embedded_child")
    embedded.die_with(os.getppid())
    embedded.say("loading", value=0.0)
    server = embedded.serve(
        {
            "api_key": os.environ["LLAMA_API_KEY"],
            "model_path": given["--model"],
            "alias": given["--alias"],
            "parallel": int(given["--parallel"]),
            "context_length": int(given["--ctx-size"]),
            "threads": int(given["--threads"]),
            "cache_ram_mib": int(given["--cache-ram"]),
            "lora": [],
            "fields": [],
        }
    )
    embedded.say("ready", url=server.listening_address)
    for line in sys.stdin.buffer:
        if line.startswith(embedded.EXIT):
            break
    os._exit(0)


if __name__ == "__main__":
    main()
