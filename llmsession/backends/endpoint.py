"""Endpoint: a server that is ready, what it says of itself (`Facts`), and what it can do (`Feature`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import msgspec

from llmsession.backends.launch import Launch
from llmsession.processes.child import Child
from llmsession.types.errors import (
    AuthError,
    OverloadedError,
    ProtocolError,
    ServerError,
    TransportError,
    UndecodableError,
)
from llmsession.wire import openai_api
from llmsession.wire.http import HttpClient

if TYPE_CHECKING:
    from llmsession.wire.http import HttpClient

# A server that is ready knows its facts at once.
PROPS_TIMEOUT = 10.0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of itself. `context_length` is that of one slot; None if it does not tell."""

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


async def ask_facts(client: HttpClient) -> tuple[Facts, bytes]:
    """Of a server that is ready, with its /props. Raises ProtocolError if it is none of llama.cpp's."""
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


class Props(msgspec.Struct, frozen=True):
    """What /props says beside the facts. `ui` came last of all that is used here; `build_info` early in 2025."""

    model_path: str = ""
    build_info: str = ""
    user_name: str | None = None
    endpoint_slots: bool | None = None
    endpoint_metrics: bool | None = None
    ui: bool | None = None

    @property
    def is_llamafile(self) -> bool:
        """Whether it is one of before 0.10, which is llama.cpp's own server."""
        return self.user_name is not None


async def find_features(client: HttpClient, props: bytes) -> frozenset[Feature]:
    """Whether there are slots and metrics shows when they are asked for, where /props does not tell."""
    said = msgspec.json.decode(props, type=Props)
    missing: set[Feature] = set()
    if said.endpoint_slots is False:
        missing.add("slots")
    if said.endpoint_metrics is False:
        missing.add("metrics")
    if said.ui is None:
        missing |= await _find_missing(client)
    if not said.build_info:
        missing |= {"stop_phrase", "chat_logprobs", "token_ids"}
    return LLAMA_SERVER_FEATURES - missing


async def _find_missing(client: HttpClient) -> set[Feature]:
    # Old ones may take a spelling for its token whatever they are told, and go on for ever when the context is full.
    missing: set[Feature] = {"plain_tokens", "context_end"}
    if not await _has_page(client, openai_api.TEMPLATE_PATH, b'{"messages":[{"role":"user","content":"a"}]}'):
        missing.add("template")
    if not await _has_page(client, openai_api.COUNT_PATH, b'{"messages":[{"role":"user","content":"a"}]}'):
        missing.add("chat_count")
    if not await _tells_pieces(client):
        missing.add("pieces")
    return missing


async def _has_page(client: HttpClient, path: str, body: bytes) -> bool:
    """Raises what a user has to mend: the key, a server that is still loading."""
    try:
        await client.post(path, body)
    except (AuthError, OverloadedError):
        raise
    except ServerError as error:
        return error.status != 404
    return True


class _Tokens(msgspec.Struct):
    tokens: list[dict[str, object]]


async def _tells_pieces(client: HttpClient) -> bool:
    try:
        answer = await client.post("/tokenize", b'{"content":"a","add_special":true,"with_pieces":true}')
        return bool(msgspec.json.decode(answer, type=_Tokens).tokens)
    except (AuthError, OverloadedError):
        raise
    except (ServerError, msgspec.DecodeError):
        return False
