"""An installed llama-server binary. What it really does: the facts and traps are tested against it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from llmsession.backends.backend import (
    Endpoint,
    Launch,
    child_environment,
    new_api_key,
    start_engine,
)
from llmsession.backends.capabilities import Capabilities, ask_devices, probe_capabilities
from llmsession.backends.child_mode import EXIT, ChildModeProbe
from llmsession.backends.devices import may_have_gpu, parse_listed_gpus, pick_gpu
from llmsession.backends.engine_flags import write_engine_flags
from llmsession.backends.extra_args import check_extra_args
from llmsession.backends.flags import translate, translate_extra
from llmsession.backends.room import check_room
from llmsession.device import Gpu
from llmsession.errors import AuthError, LLMSessionError, ProtocolError, StartFailedError
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

# A cancelled request is let go after the batch at hand: that took 8 s with the default of 2048, 0.6 s with 256.
BATCH = "512"

# A port that was free a moment ago may be taken by the time the server binds it: then another.
PORT_TRIES = 4

# What a build may lack: it then has nothing of the kind to switch on or off.
_OPTIONAL = frozenset(
    [
        "--no-kv-unified",
        "--cont-batching",
        "--no-context-shift",
        "--ubatch-size",
        "--cache-ram",
        "--slots",
        "--no-ui",
        "--jinja",
        "--offline",
        "--log-colors",
        "--verbosity",
    ]
)


class LlamaServer:
    """Backend `llama-server`."""

    name = "llama-server"
    reads_metadata_otherwise = True

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start it and wait until it is ready. When this raises, no process is left."""
        check_extra_args(launch)
        # A build that finds a GPU puts the model there; how much of it fits is not known here.
        on_gpu = launch.device.kind != "cpu" and launch.gpu_layers != 0 and may_have_gpu()
        check_room(launch, offloaded=1.0 if on_gpu else 0.0)
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
                # Somebody else was quicker, and perhaps it was theirs that answered: with another key.
                taken = isinstance(error.__cause__, AuthError) or "couldn't bind" in getattr(error, "log_tail", "")
                if attempt == PORT_TRIES or not taken:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def list_gpus(self) -> list[Gpu]:
        """Those that this build sees. Raises StartFailedError where it cannot be asked."""
        return parse_listed_gpus(await ask_devices(self.binary))

    async def _start(
        self, launch: Launch, capabilities: Capabilities, child_started: Callable[[Child], None], *, port: int
    ) -> Endpoint:
        api_key = new_api_key()
        child_mode = capabilities.has_child_mode
        extra = {"LLAMA_API_KEY": api_key, **({"LLAMA_SERVER_ROUTER_PORT": "1"} if child_mode else {})}
        command = Command(
            name=self.name,
            argv=build_argv(self.binary, launch, capabilities, port=port),
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
        # Old ones do not say it in /props.
        return msgspec.structs.replace(endpoint, version=endpoint.version or capabilities.version)


class HealthProbe:
    """For builds without child mode: ready when /health says so. Progress is any word in the log."""

    def __init__(self, log: LogFile, base_url: str) -> None:
        self.base_url: str | None = base_url
        self._address = base_url
        self._log = log

    async def __call__(self) -> Reading:
        """One question; refused, 503 and no answer within a second all mean: not yet."""
        from llmsession.wire.http import HttpClient

        status = 0
        with contextlib.suppress(LLMSessionError):
            status = await HttpClient(self._address).get_status("/health", timeout=1.0)
        return Reading(ready=status == 200, progress=self._log.size())


def build_argv(binary: Path, launch: Launch, capabilities: Capabilities, *, port: int) -> list[str]:
    """The command line. Everything that matters is said, since defaults change and configuration leaks in."""
    words = ["--model", str(launch.model_path), "--alias", launch.alias]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    # Explicit slots, each with its own share: with the default, concurrent chats kill each other (LLAMA_SERVER F4).
    words += ["--parallel", str(launch.parallel), "--ctx-size", str(launch.context_length * launch.parallel)]
    words += ["--no-kv-unified", "--cont-batching"]
    # Where a conversation is too long, that is said: once the engine forgot its beginning in silence.
    words += ["--no-context-shift"]
    words += ["--threads", str(launch.threads), "--threads-batch", str(launch.threads)]
    words += ["--batch-size", BATCH, "--ubatch-size", BATCH, "--cache-ram", str(launch.cache_ram_mib)]
    words += ["--metrics", "--slots", "--no-ui", "--jinja", "--offline", "--log-colors", "off", "--verbosity", "3"]
    words += write_engine_flags(launch, capabilities, backend=LlamaServer.name)
    return [
        str(binary),
        *translate(words, capabilities, optional=_OPTIONAL),
        *translate_extra(launch.extra_args, capabilities),
    ]


def find_free_port() -> int:
    """One on loopback that is free now; by the time a server binds it, it may be taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
