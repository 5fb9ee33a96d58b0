"""An installed llama-server binary. What it really does: the facts and traps are tested against it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from llmsession.backends.backend import (
    Endpoint,
    Launch,
    child_environment,
    new_api_key,
    start_engine,
)
from llmsession.backends.capabilities import Capabilities, probe_capabilities
from llmsession.backends.child_mode import EXIT, ChildModeProbe
from llmsession.errors import ConfigError, LLMSessionError, StartFailedError
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

# A cancelled request is let go after the batch at hand: that took 8 s with the default of 2048, 0.6 s with 256.
BATCH = "512"

# A port that was free a moment ago may be taken by the time the server binds it: then another.
PORT_TRIES = 4

# These belong to us: a second word on them would break what the session promises.
_OURS = frozenset(
    [
        "-m",
        "--model",
        "-a",
        "--alias",
        "--host",
        "--port",
        "-np",
        "--parallel",
        "-c",
        "--ctx-size",
        "-t",
        "--threads",
        "--api-key",
        "--api-key-file",
        "-kvu",
        "--kv-unified",
        "-no-kvu",
        "--no-kv-unified",
    ]
)


class LlamaServer:
    """Backend `llama-server`."""

    name = "llama-server"

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start it and wait until it is ready. When this raises, no process is left."""
        check_extra_args(launch.extra_args)
        capabilities = await probe_capabilities(self.binary, launch.cache)
        if capabilities.has_child_mode:
            return await self._start(launch, capabilities, child_started, port=0)
        for attempt in range(1, PORT_TRIES + 1):
            try:
                return await self._start(launch, capabilities, child_started, port=find_free_port())
            except StartFailedError as error:
                if attempt == PORT_TRIES or "couldn't bind" not in error.log_tail:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

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

        return await start_engine(self.name, command, launch, make_probe, api_key=api_key, child_started=child_started)


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
    argv = [str(binary), "--model", str(launch.model_path), "--alias", launch.alias]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    # Explicit slots, each with its own share: with the default, concurrent chats kill each other (LLAMA_SERVER F4).
    argv += ["--parallel", str(launch.parallel), "--ctx-size", str(launch.context_length * launch.parallel)]
    argv += ["--threads", str(launch.threads), "--threads-batch", str(launch.threads)]
    argv += ["--batch-size", BATCH, "--ubatch-size", BATCH, "--metrics"]
    optional = {
        "--no-kv-unified": [],
        "--cache-ram": [str(launch.cache_ram_mib)],
        "--no-ui": [],
        "--slots": [],
        "--offline": [],
        "--log-colors": ["off"],
        "--log-verbosity": ["3"],
    }
    for flag, values in optional.items():
        if flag in capabilities.flags:
            argv += [flag, *values]
    return [*argv, *launch.extra_args]


def check_extra_args(extra_args: tuple[str, ...]) -> None:
    """Raise ConfigError where a flag of the user's would fight one of ours."""
    for argument in extra_args:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _OURS:
            raise ConfigError(f"extra_args may not hold {flag}: the session sets it; use the option of that name")


def find_free_port() -> int:
    """One on loopback that is free now; by the time a server binds it, it may be taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
