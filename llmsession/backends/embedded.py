"""llama.cpp's own server from the xllamacpp wheel, in a child process of its own: see embedded_server."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from llmsession.backends.backend import Endpoint, Launch, child_environment, new_api_key, start_engine
from llmsession.backends.child_mode import EXIT, ChildModeProbe
from llmsession.backends.room import check_room
from llmsession.errors import UnsupportedFeatureError
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile


def find_wheel() -> Path | None:
    """The folder that holds the package xllamacpp, found without importing it."""
    spec = importlib.util.find_spec("xllamacpp")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin is not None else None


class Embedded:
    """Backend `embedded`."""

    name = "embedded"

    def __init__(self, wheel_folder: Path) -> None:
        self._wheel_folder = wheel_folder

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start it and wait until it is ready. When this raises, no process is left."""
        if launch.extra_args:
            raise UnsupportedFeatureError(
                f"the embedded engine has no command line, so it cannot take {' '.join(launch.extra_args)}: "
                'use backend="llama-server" for extra_args',
                feature="extra_args",
                backend=self.name,
            )
        check_room(launch)
        api_key = new_api_key()
        settings = {
            "parent": os.getpid(),
            "api_key": api_key,
            "model_path": str(launch.model_path),
            "alias": launch.alias,
            "parallel": launch.parallel,
            "context_length": launch.context_length * launch.parallel,
            "threads": launch.threads,
            "cache_ram_mib": launch.cache_ram_mib,
        }
        command = Command(
            name=self.name,
            # -I and -S: neither the user's Python settings nor site-packages are read, which saves half the start.
            argv=[
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("embedded_server.py")),
                str(self._wheel_folder),
            ],
            env=child_environment(launch.cache, {}),
            watches_stdin=True,
            # By stdin and not by argv, which everyone can read.
            greeting=msgspec.json.encode(settings) + b"\n",
            farewell=EXIT,
        )

        def make_probe(log: LogFile) -> ChildModeProbe:
            return ChildModeProbe(log, launch.on_progress)

        return await start_engine(
            self.name,
            command,
            launch,
            make_probe,
            api_key=api_key,
            child_started=child_started,
            version=f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        )
