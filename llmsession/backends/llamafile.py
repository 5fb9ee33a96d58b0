"""llamafile: llama.cpp's server in one file for every system. Its flags changed with version 0.10.

Up to 0.9 it is a server of early 2024 with its own flags (LLAMA_SERVER §8); 0.10 takes those of llama-server. The file
is not a native program but one that a shell has to start: the kernel refuses it if no loader is set up.
https://github.com/mozilla-ai/llamafile
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from llmsession.backends.diagnosis.preflight import check_memory
from llmsession.backends.endpoint import Endpoint, Feature
from llmsession.backends.environment import child_environment, new_api_key
from llmsession.backends.flags.argv import build_argv
from llmsession.backends.flags.capabilities import probe_capabilities, run_for_words
from llmsession.backends.flags.extra_args import check_extra_args
from llmsession.backends.flags.launch_table import BATCH
from llmsession.backends.launch import Launch
from llmsession.backends.llama_server import PORT_TRIES
from llmsession.backends.machine import may_have_gpu
from llmsession.backends.probes import AnnouncedPort, find_free_port
from llmsession.backends.start import start_engine
from llmsession.processes.child import Child, Command
from llmsession.types.errors import ConfigError, StartFailedError, UnsupportedFeatureError

# An absolute path, since PATH may be empty.
_SHELL = "/bin/sh"
# The path and the arguments are arguments of the shell, which does not interpret their content.
_EXEC = 'exec "$0" "$@"'
# Up to 0.9 a key is given in the arguments, which every user can read, or in a file: here, the shell's input. It is
# given twice, since the log shows the end of a single key.
_EXEC_WITH_KEY = 'read -r key\nexec "$0" "$@" --api-key-file /dev/stdin <<END\n$key\n$key\nEND'

_VERSION = re.compile(r"llamafile v(\d+)\.(\d+)(\S*)")
# The first builds of 0.10 print the version of the llama.cpp in them.
_UPSTREAM_VERSION = re.compile(r"version: *(.+)")
# The first version that takes llama-server's flags.
_REBUILT = (0, 10)
# With these it would do something other than serve, or would be reachable by others.
_OURS = frozenset({"--server", "--chat", "--cli", "--v2", "--nobrowser", "--open-browser", "--api-key-file", "--help"})
# Features that servers from before 2025 lack.
_MISSING: frozenset[Feature] = frozenset({"chat_count", "stop_phrase"})
# Options that versions before 0.10 do not support, or not with these flags.
_NOT_OF_OLD = (
    "flash_attention", "cache_type_k", "cache_type_v", "rope_freq_base", "lora", "draft_model", "mmproj",
    "chat_template", "metadata",
)  # fmt: skip


class Version(msgspec.Struct, frozen=True):
    """The version of a llamafile. `text`: the full version."""

    major: int
    minor: int
    text: str

    @property
    def is_rebuilt(self) -> bool:
        """Whether it takes llama-server's own flags."""
        return (self.major, self.minor) >= _REBUILT


class Llamafile:
    """The backend `llamafile`."""

    name = "llamafile"

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start the server and wait until it is ready. If this raises, no process is left."""
        check_extra_args(launch)
        if unwanted := next((flag for flag in launch.extra_args if flag.partition("=")[0] in _OURS), None):
            raise ConfigError(f"extra_args may not hold {unwanted}: the session sets what llamafile does")
        check_memory(launch, offloaded=1.0 if may_have_gpu() else 0.0)
        version = await ask_version(self.binary)
        if not version.is_rebuilt:
            _check_old(launch, version)
        for attempt in range(1, PORT_TRIES + 1):
            try:
                return await self._start(launch, version, child_started)
            except StartFailedError as error:
                if attempt == PORT_TRIES or "couldn't bind" not in error.log_tail:
                    raise
        raise AssertionError  # pragma: no cover - the loop returns or raises

    async def _start(self, launch: Launch, version: Version, child_started: Callable[[Child], None]) -> Endpoint:
        api_key = new_api_key()
        port = find_free_port()
        if version.is_rebuilt:
            start = shell_argv(self.binary)
            capabilities = await probe_capabilities(self.binary, launch.cache, start=[*start, "--server"])
            words = build_argv(self.binary, launch, capabilities, port=port, backend=self.name)[1:]
            argv = [*start, "--server", *words]
        else:
            argv = [*shell_argv(self.binary, key=api_key), *build_old_flags(launch, port=port)]
        command = Command(
            name=self.name,
            argv=argv,
            env=child_environment(launch.cache, {"LLAMA_API_KEY": api_key} if version.is_rebuilt else {}),
            greeting=b"" if version.is_rebuilt else api_key.encode() + b"\n",
        )
        endpoint = await start_engine(
            self.name,
            command,
            launch,
            AnnouncedPort,
            api_key=api_key,
            child_started=child_started,
            version=f"llamafile {version.text}",
        )
        missing = frozenset[Feature]() if version.is_rebuilt else _MISSING
        return msgspec.structs.replace(endpoint, features=endpoint.features - missing)


def _check_old(launch: Launch, version: Version) -> None:
    given = [name for name in _NOT_OF_OLD if getattr(launch, name) not in (None, ())]
    given += [] if launch.kv_offload else ["kv_offload"]
    if given:
        raise UnsupportedFeatureError(
            f"llamafile {version.text} cannot be given {', '.join(given)}: use 0.10 or newer, or another engine",
            feature=given[0],
            backend=Llamafile.name,
        )


def build_old_flags(launch: Launch, *, port: int) -> list[str]:
    """Return the flags for 0.8 and 0.9, which have neither --ubatch-size nor --slots, and batch only when asked."""
    flags = ["--server", "--nobrowser", "-m", str(launch.model_path), "--alias", launch.alias]
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    flags += ["-np", str(launch.parallel), "-cb", "-c", str(launch.context_length * launch.parallel)]
    flags += ["--threads", str(launch.threads), "--threads-batch", str(launch.threads), "--batch-size", str(BATCH)]
    if launch.device.kind == "cpu":
        flags += ["--gpu", "disable"]
    elif launch.gpu_layers is not None:
        flags += ["-ngl", str(launch.gpu_layers)]
    # Without --log-disable, it writes a log file into the current folder.
    return [*flags, "--metrics", "--log-disable", *launch.extra_args]


async def ask_version(binary: Path) -> Version:
    """Return the version of a llamafile, by running it. Raises StartFailedError if it is not a llamafile."""

    def refuse(why: str) -> StartFailedError:
        message = f"{binary} is not a llamafile: {why}; name another with server_path="
        return StartFailedError(message, returncode=None, log_tail="")

    try:
        said = await run_for_words([*shell_argv(binary), "--version"])
    except TimeoutError as error:
        raise refuse("it did not answer --version") from error
    except OSError as error:
        raise refuse(str(error.strerror or error)) from error
    if (found := _VERSION.search(said)) is not None:
        return Version(int(found[1]), int(found[2]), f"{found[1]}.{found[2]}{found[3]}")
    if (upstream := _UPSTREAM_VERSION.search(said)) is not None:
        return Version(*_REBUILT, f"of llama.cpp {upstream[1].strip()}")
    raise refuse(f"to --version it says {said.strip()[:80]!r}")


def shell_argv(binary: Path, *, key: str | None = None) -> list[str]:
    """Return the start of the command line, to which the flags are added.

    With a key, the shell reads it as a line from stdin and passes it on as the file of keys.
    """
    if os.name == "nt":  # there it is a native program, named .exe; and there is no /dev/stdin
        return [str(binary), *(["--api-key", key] if key is not None else [])]
    return [_SHELL, "-c", _EXEC if key is None else _EXEC_WITH_KEY, str(binary)]
