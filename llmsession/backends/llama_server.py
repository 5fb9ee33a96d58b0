"""The backend for an installed llama-server binary. The facts and traps in LLAMA_SERVER are tested against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from llmsession.backends.diagnosis.preflight import check_memory
from llmsession.backends.endpoint import Endpoint
from llmsession.backends.environment import child_environment, new_api_key
from llmsession.backends.flags.argv import build_argv
from llmsession.backends.flags.capabilities import Capabilities, ask_devices, probe_capabilities
from llmsession.backends.flags.extra_args import check_extra_args
from llmsession.backends.gpus import parse_listed_gpus, pick_gpu
from llmsession.backends.launch import Launch
from llmsession.backends.machine import may_have_gpu
from llmsession.backends.probes import EXIT, ChildModeProbe, HealthProbe, find_free_port
from llmsession.backends.start import start_engine
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.types.device import Gpu
from llmsession.types.errors import AuthError, ProtocolError, StartFailedError

# A port that was free a moment ago may be taken by the time the server binds it: then another one is tried.
PORT_TRIES = 4


class LlamaServer:
    """The backend `llama-server`."""

    name = "llama-server"
    reads_metadata_otherwise = True

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start the server and wait until it is ready. If this raises, no process is left."""
        check_extra_args(launch)
        # A build that finds a GPU loads the model there; how much of it fits is not known here.
        on_gpu = launch.device.kind != "cpu" and launch.gpu_layers != 0 and may_have_gpu()
        check_memory(launch, offloaded=1.0 if on_gpu else 0.0)
        capabilities = await probe_capabilities(self.binary, launch.cache)
        if launch.device.kind == "gpu":
            gpu = pick_gpu(launch.device, await self.list_gpus(), str(self.binary))
            launch = msgspec.structs.replace(launch, gpu=gpu)
        if capabilities.has_child_mode:
            return await self._start(launch, capabilities, child_started, port=0)
        for attempt in range(1, PORT_TRIES + 1):
            try:
                return await self._start(launch, capabilities, child_started, port=find_free_port())
            except (StartFailedError, ProtocolError) as error:
                # Another process took the port first, and perhaps it was its server that answered, with another key.
                taken = isinstance(error.__cause__, AuthError) or "couldn't bind" in getattr(error, "log_tail", "")
                if attempt == PORT_TRIES or not taken:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def list_gpus(self) -> list[Gpu]:
        """Return the GPUs that this build sees. Raises StartFailedError if it cannot be asked."""
        return parse_listed_gpus(await ask_devices(self.binary))

    async def _start(
        self, launch: Launch, capabilities: Capabilities, child_started: Callable[[Child], None], *, port: int
    ) -> Endpoint:
        api_key = new_api_key()
        child_mode = capabilities.has_child_mode
        extra = {"LLAMA_API_KEY": api_key, **({"LLAMA_SERVER_ROUTER_PORT": "1"} if child_mode else {})}
        command = Command(
            name=self.name,
            argv=build_argv(self.binary, launch, capabilities, port=port, backend=self.name),
            env=child_environment(launch.cache, extra),
            watches_stdin=child_mode,
            farewell=EXIT if child_mode else None,
        )

        def make_probe(log: LogFile) -> ChildModeProbe | HealthProbe:
            if child_mode:
                return ChildModeProbe(log, launch.on_progress)
            return HealthProbe(log, f"http://127.0.0.1:{port}")

        endpoint = await start_engine(
            self.name, command, launch, make_probe, api_key=api_key, child_started=child_started
        )
        # Old builds do not report their version in /props.
        return msgspec.structs.replace(endpoint, version=endpoint.version or capabilities.version)
