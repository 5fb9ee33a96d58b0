"""The Backend protocol, the Endpoint that it gives, and what all backends share: environment and start."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, get_args

import msgspec

from llmsession.backends.room import check_disk
from llmsession.device import DeviceChoice, Gpu
from llmsession.errors import (
    ConfigError,
    InvalidModelError,
    ProtocolError,
    ServerError,
    StartFailedError,
    StartTimeoutError,
    TransportError,
    UndecodableError,
)
from llmsession.lora import Lora
from llmsession.paths import empty_folder
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

if TYPE_CHECKING:
    from llmsession.models.gguf import ModelInfo
    from llmsession.wire.http import HttpClient

# What an engine may see of our environment: enough to run and to find its GPU, no LLAMA_ARG_* and no keys of the
# user's (LLAMA_SERVER trap 7).
_ALLOWED = {
    "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "USERPROFILE", "LOCALAPPDATA",
}  # fmt: skip
# A server that is ready knows its facts at once.
PROPS_TIMEOUT = 10.0
_ALLOWED_PREFIXES = ("CUDA_", "HIP_", "ROCR_", "GGML_", "VK_")

# What each engine says of a chat template that it cannot read; only one of them says why.
_TEMPLATE_FAULT = re.compile(
    r"supplied chat template is not supported|chat_templates_init: error: (?:parser: )?(?P<why>[^\n]+)"
)


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked to run. `context_length` is for one conversation; folders are ours to write in. `info` is
    what the model's header says, where it was read.

    None: as the engine thinks best; `gpu` is the one of `device`, once the build was asked. `lora` are files, numbered
    as they stand; with them `cache_ram_mib` is 0, since the engine would find prompts there again that another adapter
    has read (seen in build 11434). `metadata` is what the model's own header is to be read as saying, such as
    `llama.context_length=int:4096`. Into `kv_folder` the engine may write what it has read.
    """

    model_path: Path
    info: ModelInfo | None = None
    check_memory: bool = True
    alias: str
    context_length: int
    parallel: int
    threads: int
    cache_ram_mib: int
    device: DeviceChoice = DeviceChoice()
    gpu: Gpu | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_offload: bool = True
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    rope_freq_base: float | None = None
    metadata: tuple[str, ...] = ()
    lora: tuple[Lora, ...] = ()
    draft_model: Path | None = None
    mmproj: Path | None = None
    chat_template: Path | None = None
    kv_folder: Path | None = None
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


# What a server may offer beyond OpenAI's chat endpoint: raw completion, tokens, those of a spelling as mere text, the
# bytes of each, the count of a chat's tokens, the prompt that its template makes of one, slots, metrics, further
# sampling settings, the phrase that stopped a chat, a chat's log-probabilities, the ids of a reply's tokens, and that a
# reply ends when the context is full; or transformers' settings instead.
Feature: TypeAlias = Literal[
    "completion",
    "tokens",
    "plain_tokens",
    "pieces",
    "chat_count",
    "template",
    "slots",
    "metrics",
    "sampling",
    "stop_phrase",
    "chat_logprobs",
    "token_ids",
    "context_end",
    "generation_config",
]
TRANSFORMERS_FEATURES: frozenset[Feature] = frozenset({"generation_config", "context_end"})
LLAMA_SERVER_FEATURES: frozenset[Feature] = frozenset(get_args(Feature)) - {"generation_config"}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready. `child` is its process, `launch` what it was asked; None for one that is not ours."""

    backend: str
    client: HttpClient
    api_key: str
    facts: Facts
    version: str
    child: Child | None = None
    launch: Launch | None = None
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


def allowed_environment() -> dict[str, str]:
    """What an engine may see of ours: also where it is only asked which devices it has."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }


def child_environment(cache: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The allow-list, and what keeps the engine's own configuration files out."""
    return {
        **allowed_environment(),
        "XDG_CONFIG_HOME": str(empty_folder(cache)),
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
    facts: Facts | None = None,
) -> Endpoint:
    """Spawn, wait, ask it who it is, unless its `facts` are known. When this raises, the process is gone."""
    check_disk(launch.logs)
    log = LogFile(launch.logs, command.name)
    child = Child(command, log, records=launch.records)
    child_started(child)
    probe = make_probe(log)
    try:
        await child.start(probe, timeout=launch.start_timeout)
    except (StartFailedError, StartTimeoutError) as error:
        from llmsession.backends.ended import explain_failure

        if launch.chat_template is not None and (found := _TEMPLATE_FAULT.search(log.tail(60))) is not None:
            raise ConfigError(
                f"chat_template: {launch.chat_template} is no template that the engine can read: "
                f"{found['why'] or 'look for an unclosed brace or block'}"
            ) from error
        if (better := explain_failure(error, backend, child, launch)) is None:
            raise
        raise better from error
    try:
        from llmsession.backends.features import find_features
        from llmsession.wire.http import HttpClient

        if probe.base_url is None:
            raise ProtocolError(f"{backend} said that it is ready, but not where it listens")
        client = HttpClient(probe.base_url, api_key=api_key)
        if facts is None:
            facts, props = await ask_facts(client)
            features = await find_features(client, props)
        if launch.draft_model is not None and not is_speculative(await client.get("/slots")):
            raise InvalidModelError(
                f"{launch.draft_model} cannot draft for {launch.alias}: the two have not the same vocabulary; "
                "take a smaller model of the same family",
                path=launch.draft_model,
                reason="another vocabulary",
            )
        child.annotate({"url": probe.base_url, "key": api_key, "model": launch.alias})
    except BaseException:
        await child.aclose()
        raise
    return Endpoint(
        backend=backend,
        client=client,
        api_key=api_key,
        child=child,
        launch=launch,
        facts=facts,
        version=version or facts.build,
        features=features,
    )


async def ask_facts(client: HttpClient) -> tuple[Facts, bytes]:
    """Of a server that is ready, with its /props. Raises ProtocolError where it is none of llama.cpp's."""
    try:
        props = await client.get("/props", timeout=PROPS_TIMEOUT)
        return parse_facts(props), props
    except (ServerError, TransportError) as error:
        raise ProtocolError(
            f"it says that it is ready, but does not answer /props as llama.cpp's server does ({error}): "
            "it is none, or an old one; name another with server_path="
        ) from error


class _GenerationSettings(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    default_generation_settings: _GenerationSettings
    total_slots: int
    build_info: str = ""


class _Speculation(msgspec.Struct):
    speculative: bool = True  # where a build does not tell, it is believed


def is_speculative(slots: bytes) -> bool:
    """From the answer of /slots: whether a draft model is asked. One that cannot be is passed over in silence."""
    try:
        return all(slot.speculative for slot in msgspec.json.decode(slots, type=list[_Speculation]))
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the server's slots cannot be read: {error}", payload=slots[:1000]) from error


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
