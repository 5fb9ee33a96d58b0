"""The Backend protocol, the Endpoint that it gives, and what all backends share: environment and start."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

import msgspec

from llmsession.errors import ProtocolError, UndecodableError
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

if TYPE_CHECKING:
    from llmsession.wire.http import HttpClient

# What an engine may see of our environment: enough to run and to find its GPU, no LLAMA_ARG_* and no keys of the
# user's (LLAMA_SERVER trap 7).
_ALLOWED = {
    "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "USERPROFILE", "LOCALAPPDATA",
}  # fmt: skip
_ALLOWED_PREFIXES = ("CUDA_", "HIP_", "ROCR_", "GGML_", "VK_")


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked to run. `context_length` is for one conversation; folders are ours to write in."""

    model_path: Path
    alias: str
    context_length: int
    parallel: int
    threads: int
    cache_ram_mib: int
    extra_args: tuple[str, ...] = ()
    start_timeout: float = 120.0
    cache: Path
    logs: Path
    records: Path
    on_progress: Callable[[float], None] | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of itself. `context_length` is that of one slot; None where it does not tell."""

    context_length: int | None
    parallel: int
    build: str


# What a server may offer beyond OpenAI's chat endpoint: raw completion, tokens, the count of a chat's tokens, slots,
# metrics, llama.cpp's further sampling settings, and the phrase that stopped a chat; transformers' settings instead.
Feature: TypeAlias = Literal[
    "completion", "tokens", "chat_count", "slots", "metrics", "sampling", "stop_phrase", "generation_config"
]
TRANSFORMERS_FEATURES: frozenset[Feature] = frozenset({"generation_config"})
LLAMA_SERVER_FEATURES: frozenset[Feature] = frozenset(get_args(Feature)) - TRANSFORMERS_FEATURES


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready. `child` is its process; None for one that is not ours."""

    backend: str
    client: HttpClient
    api_key: str
    facts: Facts
    version: str
    child: Child | None = None
    features: frozenset[Feature] = LLAMA_SERVER_FEATURES

    @property
    def has_exited(self) -> bool:
        """Whether its process is known to have ended."""
        return self.child is not None and self.child.exited.is_set()


class Backend(Protocol):
    """One way to have a server."""

    name: str

    def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Awaitable[Endpoint]:
        """Start one and wait until it is ready. `child_started` learns of each child before it is spawned."""
        ...


class EngineProbe(Protocol):
    """Looks whether an engine is ready; then knows where it listens."""

    base_url: str | None

    async def __call__(self) -> Reading:
        """One look."""
        ...


def new_api_key() -> str:
    """A key for one process: without one any web page could use the server (LLAMA_SERVER F9)."""
    return secrets.token_urlsafe(24)


def child_environment(cache: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The allow-list, and what keeps the engine's own configuration files out."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    nothing = cache / "no-config"
    nothing.mkdir(exist_ok=True)
    return {
        **kept,
        "XDG_CONFIG_HOME": str(nothing),
        # Threads that spin while they wait make a token take 300 ms on a busy machine (LLAMA_SERVER trap 4).
        "OMP_WAIT_POLICY": "passive",
        "GGML_NO_BACKTRACE": "1",
        **extra,
    }


async def start_engine(
    backend: str,
    command: Command,
    launch: Launch,
    make_probe: Callable[[LogFile], EngineProbe],
    *,
    api_key: str,
    child_started: Callable[[Child], None],
    version: str | None = None,
    features: frozenset[Feature] = LLAMA_SERVER_FEATURES,
    ask_facts: Callable[[HttpClient], Awaitable[Facts]] | None = None,
) -> Endpoint:
    """Spawn, wait, ask it who it is: /props, or what `ask_facts` does. When this raises, the process is gone."""
    log = LogFile(launch.logs, command.name)
    child = Child(command, log, records=launch.records)
    child_started(child)
    probe = make_probe(log)
    await child.start(probe, timeout=launch.start_timeout)
    try:
        from llmsession.wire.http import HttpClient

        if probe.base_url is None:
            raise ProtocolError(f"{backend} said that it is ready, but not where it listens")
        client = HttpClient(probe.base_url, api_key=api_key)
        facts = await (ask_facts or _ask_props)(client)
        child.annotate({"url": probe.base_url, "key": api_key, "model": launch.alias})
    except BaseException:
        await child.aclose()
        raise
    return Endpoint(
        backend=backend,
        client=client,
        api_key=api_key,
        child=child,
        facts=facts,
        version=version or facts.build,
        features=features,
    )


async def _ask_props(client: HttpClient) -> Facts:
    return parse_facts(await client.get("/props"))


class _GenerationSettings(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    default_generation_settings: _GenerationSettings
    total_slots: int
    build_info: str = ""


def parse_facts(props: bytes) -> Facts:
    """From the answer of /props. A router, which serves no model of its own, is refused as well."""
    try:
        said = msgspec.json.decode(props, type=_Props)
    except msgspec.DecodeError as error:
        raise UndecodableError(
            f"what listens there is no llama.cpp server with a model: {error}", payload=props[:1000]
        ) from error
    return Facts(
        context_length=said.default_generation_settings.n_ctx,
        parallel=said.total_slots,
        build=said.build_info,
    )
