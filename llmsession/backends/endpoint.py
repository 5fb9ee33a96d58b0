"""Endpoint: a server that is ready, what it reports about itself (`Facts`), and what it can do (`Feature`)."""

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

# Seconds. A server that is ready answers this at once.
PROPS_TIMEOUT = 10.0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server reports about itself. `context_length`: tokens of one slot; None if it does not report it."""

    context_length: int | None
    parallel: int
    build: str


# What a server may offer beyond OpenAI's chat endpoint, in this order: raw completion, tokenization, tokenization of
# special tokens' spellings as plain text, the bytes of each token, the number of tokens of a chat, the prompt that its
# template renders, slots, metrics, sampling settings beyond OpenAI's, the phrase that stopped a chat, log-probabilities
# of a chat, the ids of a reply's tokens, and that a reply ends when the context is full. The last one is for
# transformers, which takes its own settings instead.
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
    """A server that is ready. `child`: its process; `launch`: how it was launched; both None for a remote server."""

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
        """Whether its process is known to have exited."""
        return self.child is not None and self.child.exited.is_set()


async def ask_facts(client: HttpClient) -> tuple[Facts, bytes]:
    """Return the facts about a server that is ready, and the body of its /props.

    Raises ProtocolError if it is not one of llama.cpp's servers.
    """
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
    speculative: bool = True  # assumed for builds that do not report it


def is_speculative(slots: bytes) -> bool:
    """Whether a draft model is used, from the answer of /slots. An unusable one is silently ignored by the server.

    Raises UndecodableError if the answer cannot be read.
    """
    try:
        return all(slot.speculative for slot in msgspec.json.decode(slots, type=list[_Speculation]))
    except msgspec.DecodeError as error:
        raise UndecodableError(f"the server's slots cannot be read: {error}", payload=slots[:1000]) from error


def parse_facts(props: bytes) -> Facts:
    """Read the facts from the answer of /props.

    Raises UndecodableError if it is not that of a llama.cpp server, or of a router, which serves no model itself.
    """
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
    """Further fields of /props. Their presence shows a build's age: `ui` is the newest, `build_info` of early 2025."""

    model_path: str = ""
    build_info: str = ""
    user_name: str | None = None
    endpoint_slots: bool | None = None
    endpoint_metrics: bool | None = None
    ui: bool | None = None

    @property
    def is_llamafile(self) -> bool:
        """Whether it is a llamafile before 0.10. Later ones are llama.cpp's own server."""
        return self.user_name is not None


async def find_features(client: HttpClient, props: bytes) -> frozenset[Feature]:
    """Return the features of a llama.cpp server, from its /props, and for older builds by trying them.

    If /props does not report whether there are slots and metrics, they are included: that shows when they are read.
    """
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
    # Old builds may read a spelling as its special token in any case, and generate forever when the context is full.
    missing: set[Feature] = {"plain_tokens", "context_end"}
    if not await _has_page(client, openai_api.TEMPLATE_PATH, b'{"messages":[{"role":"user","content":"a"}]}'):
        missing.add("template")
    if not await _has_page(client, openai_api.COUNT_PATH, b'{"messages":[{"role":"user","content":"a"}]}'):
        missing.add("chat_count")
    if not await _tells_pieces(client):
        missing.add("pieces")
    return missing


async def _has_page(client: HttpClient, path: str, body: bytes) -> bool:
    """Whether the server has this page. Raises AuthError for a wrong key, OverloadedError while it is loading."""
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
