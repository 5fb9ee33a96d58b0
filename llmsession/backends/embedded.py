"""The embedded engine: llama.cpp's own server from the xllamacpp wheel, in a child process (see embedded_child)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.backends.diagnosis.preflight import check_memory
from llmsession.backends.endpoint import Endpoint
from llmsession.backends.environment import allowed_environment, child_environment, new_api_key
from llmsession.backends.flags.embedded import translate_flags
from llmsession.backends.flags.extra_args import check_extra_args
from llmsession.backends.flags.launch_table import list_rows
from llmsession.backends.gpus import pick_gpu
from llmsession.backends.launch import Launch
from llmsession.backends.probes import EXIT, ChildModeProbe
from llmsession.backends.start import start_engine
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.types.device import Gpu
from llmsession.types.errors import ConfigError, StartFailedError

# Seconds. Importing the wheel and asking it takes 0.1 s; finding the GPUs of a large machine takes several seconds.
LISTING_TIMEOUT = 20.0


def find_wheel() -> Path | None:
    """Return the folder that holds the package xllamacpp, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    return Path(spec.origin).parents[1] if spec is not None and spec.origin is not None else None


class Embedded:
    """The backend `embedded`."""

    name = "embedded"

    def __init__(self, wheel_folder: Path) -> None:
        self._wheel_folder = wheel_folder

    def _argv(self, *words: str) -> list[str]:
        # -I and -S: neither the user's Python settings nor site-packages are read, which halves the start-up time.
        program = Path(__file__).with_name("embedded_child.py")
        return [sys.executable, "-I", "-S", str(program), str(self._wheel_folder), *words]

    async def list_gpus(self) -> list[Gpu]:
        """Return the GPUs that this wheel sees. Raises StartFailedError if it cannot be asked."""
        try:
            with anyio.fail_after(LISTING_TIMEOUT):
                answer = await anyio.run_process(self._argv("devices"), env=allowed_environment())
            return msgspec.json.decode(answer.stdout.splitlines()[-1], type=list[Gpu])
        except (OSError, TimeoutError, subprocess.CalledProcessError, msgspec.DecodeError, IndexError) as error:
            raise StartFailedError(
                f"the embedded engine cannot say which devices it sees: {error}", returncode=None, log_tail=""
            ) from error

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start the engine and wait until it is ready. If this raises, no process is left."""
        check_extra_args(launch)
        check_memory(launch)
        if launch.device.kind == "gpu":
            gpu = pick_gpu(launch.device, await self.list_gpus(), "the embedded engine")
            launch = msgspec.structs.replace(launch, gpu=gpu)
        api_key = new_api_key()
        settings = {
            "parent": os.getpid(),
            "api_key": api_key,
            "model_path": str(launch.model_path),
            "alias": launch.alias,
            "lora": [(str(lora.path), lora.scale) for lora in launch.lora],
            "fields": [
                *(field for row in list_rows(launch) for field in row.fields),
                *translate_flags(launch.extra_args),
            ],
        }
        command = Command(
            name=self.name,
            argv=self._argv(),
            env=child_environment(launch.cache, {}),
            watches_stdin=True,
            # Sent on stdin and not in argv, which every user of the machine can read.
            greeting=_encode(settings),
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


def _encode(settings: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(settings) + b"\n"
    except UnicodeEncodeError as error:
        raise ConfigError(f"the embedded engine takes only paths in UTF-8, and {error.object!r} is not one") from error
