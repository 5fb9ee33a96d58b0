"""Attaches to a server that somebody else runs: finds out what kind it is and what it can do. Starts nothing.

The kind is read from its answers: llama-server and llamafile have /props; `transformers serve` describes its pages;
every other server with OpenAI's API lists its models under /v1/models, where vLLM names itself; Ollama reports its
version on a page of its own.
https://platform.openai.com/docs/api-reference/models/list
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import time
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import anyio
import msgspec

from llmsession.backends.endpoint import (
    TRANSFORMERS_FEATURES,
    Endpoint,
    Facts,
    Feature,
    Props,
    find_features,
    parse_facts,
)
from llmsession.types.errors import (
    AuthError,
    ConfigError,
    OverloadedError,
    ProtocolError,
    ReplyTimeoutError,
    ServerError,
    StartTimeoutError,
    UndecodableError,
)
from llmsession.wire.http import HttpClient
from llmsession.wire.lenient import LenientReader

# Seconds that one question may take, which the server answers while it generates.
PROBE_TIMEOUT = 10.0
LOADING_PAUSE = 0.25

# The answer of `transformers serve MODEL` to any other name.
_PINNED = re.compile(r"Server is pinned to '(.*)'; requested")

_HOST_PORT = re.compile(r"(?:[^/?#@:\s]+|\[[0-9a-fA-F:.%]+\])(?::[^/?#\s]*)?(?:/[^?#\s]*)?")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a server. `verify`: False accepts any certificate; a path is a file of trusted ones."""

    base_url: str
    api_key: str | None = None
    headers: dict[str, str] = {}
    verify: bool | str | Path = True

    def make_client(self) -> HttpClient:
        """Return an HTTP client for this address. Raises ConfigError if the certificates cannot be read."""
        tls = make_tls(self.verify) if self.base_url.startswith("https:") else None
        return HttpClient(self.base_url, api_key=self.api_key, headers=self.headers, tls=tls)


def parse_remote(text: str) -> str:
    """Return the base URL of `host`, `host:port` or a URL. Raises ConfigError if it is not an address.

    `/v1` at its end is removed, since each request adds it.
    """
    given = text.strip()
    if "://" not in given and _HOST_PORT.fullmatch(given):
        given = f"http://{given}"
    wanted = "give host:port, or a URL such as https://host/path"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"remote={text!r} is not an address of a server ({error}): {wanted}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ConfigError(f"remote={text!r} is not an address of a server: {wanted}")
    if parts.netloc.endswith(":"):
        raise ConfigError(f"remote={text!r} has no port after its colon: {wanted}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("remote= holds a user or a password, which would end up in logs: use api_key= or headers=")
    host = parts.hostname
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError:
            raise ConfigError(f"remote={text!r} is not an address of a server: {wanted}") from None
        host = f"[{host}]"
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{path}"


def make_tls(verify: bool | str | Path) -> ssl.SSLContext:  # noqa: FBT001 - the option's own form
    """Return the TLS settings for `verify`. Raises ConfigError if its file of certificates cannot be read."""
    if isinstance(verify, bool):
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=str(verify))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"verify={str(verify)!r} is not a file of certificates: {error}") from error


async def attach(address: Address, *, model: str | None, parallel: int, timeout: float) -> tuple[str, Endpoint]:
    """Return the model's name and the server's endpoint. If the model is still loading, wait for it.

    Raises ConnectionLostError if no server answers, AuthError if it requires another key, ProtocolError if it is not a
    server for language models, StartTimeoutError if it is not ready within `timeout` seconds, and ConfigError.
    """
    client = address.make_client()
    deadline = time.monotonic() + timeout
    while True:
        try:
            return await _identify(address, client, model, parallel)
        except OverloadedError as error:
            if time.monotonic() > deadline:
                raise StartTimeoutError(f"{client.base_url} is not ready after {timeout:g} s: {error}") from error
        await anyio.sleep(LOADING_PAUSE)


async def _identify(address: Address, client: HttpClient, model: str | None, parallel: int) -> tuple[str, Endpoint]:
    key = address.api_key or ""
    props = await _ask(client, "/props")
    if props is not None and (found := _read_props(props)) is not None:
        facts, said = found
        name = model or await _first_model(client) or Path(said.model_path).stem or "unknown"
        return name, await _describe_llama_cpp(client, key, props, facts, said)
    if await _is_transformers(client):
        facts = Facts(context_length=None, parallel=parallel, build="")
        return await _name_of_transformers(client, model), Endpoint(
            backend="transformers",
            client=client,
            api_key=key,
            facts=facts,
            version="unknown",
            features=TRANSFORMERS_FEATURES,
        )
    models = await _read_models(client)
    if models is None:
        models = [] if await _answers_chats(client) else _refuse(client, "it has neither /props nor /v1/models")
    kind, version = await _recognise(client, models)
    chosen = next((entry for entry in models if entry.id == model), models[0] if models else None)
    context = chosen.max_model_len if chosen is not None else None
    endpoint = Endpoint(
        backend=kind,
        client=client,
        api_key=key,
        facts=Facts(context_length=context, parallel=parallel, build=version),
        version=version,
        features=frozenset[Feature](),
    )
    return model or (chosen.id if chosen is not None else "default"), endpoint


async def _describe_llama_cpp(client: HttpClient, key: str, props: bytes, facts: Facts, said: Props) -> Endpoint:
    return Endpoint(
        backend="llamafile" if said.is_llamafile else "llama-server",
        client=client,
        api_key=key,
        facts=facts,
        version=said.build_info or "unknown",
        features=await find_features(client, props),
    )


async def _is_transformers(client: HttpClient) -> bool:
    """Whether the pages that it describes are those of transformers: no other server has all of them."""
    try:
        pages = msgspec.json.decode(await _ask(client, "/openapi.json") or b"", type=_Pages).paths
    except (AuthError, msgspec.DecodeError):
        return False
    return {"/v1/chat/completions", "/load_model", "/v1/audio/transcriptions"} <= pages.keys()


async def _name_of_transformers(client: HttpClient, model: str | None) -> str:
    """Return the name of the model that the server was started with, else `model`.

    The server does not list the former, but refuses any other name. Raises ConfigError if `model` is another one, or
    if the server serves any model and none is given.
    """
    pinned: str | None = None
    try:
        await client.post("/v1/chat/completions", b'{"model":"","messages":[]}', timeout=PROBE_TIMEOUT)
    except ServerError as error:
        found = _PINNED.search(str(error))
        pinned = found[1] if found is not None else None
    if pinned is not None and model not in (None, pinned):
        raise ConfigError(f"{client.base_url} serves {pinned!r} and no other: leave model={model!r} away, or name that")
    if (name := pinned or model) is None:
        raise ConfigError(
            f"{client.base_url} serves any model of its owner's cache: say which with model=, author/repo"
        )
    return name


class _Pages(msgspec.Struct):
    paths: dict[str, msgspec.Raw]


class _ListedModel(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_ListedModel] | None = None
    models: list[_ListedModel] | None = None

    @property
    def listed(self) -> list[_ListedModel]:
        return [model for model in self.data or self.models or [] if model.id]


class _Version(msgspec.Struct):
    version: str


_MODELS = LenientReader(_Models, "a list of models")
_VERSION = LenientReader(_Version, "a version")


def _read_props(props: bytes) -> tuple[Facts, Props] | None:
    """Return the content of /props; None if it is not that of a llama.cpp server."""
    try:
        return parse_facts(props), msgspec.json.decode(props, type=Props)
    except (UndecodableError, msgspec.DecodeError):
        return None


async def _first_model(client: HttpClient) -> str | None:
    listed = await _ask(client, "/v1/models")
    try:
        models = _MODELS.read(listed or b"null")
    except UndecodableError:
        return None
    return models.listed[0].id if models is not None and models.listed else None


async def _read_models(client: HttpClient) -> list[_ListedModel] | None:
    """Return the listed models, as far as they can be read; None if there is no such page. Raises ProtocolError."""
    listed = await _ask(client, "/v1/models")
    if listed is None:
        return None
    try:
        models = _MODELS.read(listed)
    except UndecodableError:
        start = listed[:200].decode(errors="replace").lstrip().lower()
        if start.startswith(("<!doctype", "<html")):
            _refuse(client, "it answered /v1/models with a web page")
        if await _answers_chats(client):
            return []
        _refuse(client, "its list of models under /v1/models cannot be read")
    return models.listed if models is not None else []


async def _answers_chats(client: HttpClient) -> bool:
    """Whether it has at least a chat endpoint, which rejects an empty request with status 400 or 422."""
    try:
        await client.post("/v1/chat/completions", b"{}", timeout=PROBE_TIMEOUT)
    except (AuthError, OverloadedError):
        raise
    except ServerError as error:
        return error.status in (400, 422)
    return False


def _refuse(client: HttpClient, why: str) -> NoReturn:
    raise ProtocolError(f"{client.base_url} is not a server for language models: {why} (is the address right?)")


async def _recognise(client: HttpClient, models: list[_ListedModel]) -> tuple[str, str]:
    """Return the kind of server, and its version."""
    if any(entry.owned_by == "vllm" for entry in models):
        return "vllm", await _ask_version(client, "/version") or "unknown"
    if version := await _ask_version(client, "/api/version"):
        return "ollama", version
    return "openai", "unknown"


async def _ask_version(client: HttpClient, path: str) -> str | None:
    answer = await _ask(client, path)
    try:
        found = _VERSION.read(answer or b"null")
    except UndecodableError:
        return None
    return found.version if found is not None else None


async def _ask(client: HttpClient, path: str) -> bytes | None:
    """Return the page; None if there is no such page.

    Raises ConnectionLostError, AuthError, OverloadedError, and StartTimeoutError if there is no answer.
    """
    try:
        return await client.get(path, timeout=PROBE_TIMEOUT)
    except (AuthError, OverloadedError):
        raise
    except ServerError:
        return None
    except ReplyTimeoutError as error:
        raise StartTimeoutError(
            f"{client.base_url} accepts connections and does not answer: is a language model's server there?"
        ) from error
