"""What a server of llama.cpp's family can do, ours or another's: by its /props, and of an old one by asking.

Today's builds say enough in /props to be taken at their word. What an older one has, no page of it tells: it is asked
for each thing once.
"""

from __future__ import annotations

import msgspec

from llmsession.backends.backend import LLAMA_SERVER_FEATURES, Feature
from llmsession.errors import AuthError, OverloadedError, ServerError
from llmsession.wire import openai_api
from llmsession.wire.http import HttpClient


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
