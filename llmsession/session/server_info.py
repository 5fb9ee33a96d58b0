"""ServerFacts: what a session tells of its server. The Session itself, in session.py, builds on it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import anyio.to_thread

from llmsession.models.encoding import PromptEncoding
from llmsession.models.gguf import ModelInfo, read_vocabulary
from llmsession.session.server.owned import Server
from llmsession.types.errors import ClosedError, LLMSessionError, ServerError, UnsupportedFeatureError, UsageError

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint, Feature
    from llmsession.session.server.remote import RemoteServer
    from llmsession.wire.metrics import Metrics, Slot

# Seconds between two looks at the slots for the metrics.
SLOTS_PAUSE = 1.0

# For "… at … has no …".
_FEATURE_NAMES: dict[Feature, str] = {
    "completion": "raw completion",
    "tokens": "way to turn text into tokens",
    "pieces": "way to tell the bytes of tokens",
    "chat_count": "count of a chat's tokens",
    "slots": "list of slots",
    "metrics": "metrics",
    "template": "way to show what its template makes of a chat",
    "chat_logprobs": "log-probabilities of a chat (generate has them)",
    "token_ids": "stop by a token's id",
}


class ServerFacts:
    """State and facts of one server, ours or a remote one. Those that it tells itself are there once it is ready."""

    _server: Server | RemoteServer
    _opened = False
    # The slots for get_metrics, and when they were read.
    _slots_read: tuple[list[Slot] | None, float] = (None, 0.0)

    def _check_open(self) -> None:
        if self._server.is_closed:
            raise ClosedError("the session is closed: open another")
        if not self._opened:
            raise _not_open()

    def _require(self, feature: Feature) -> None:
        if feature not in self._features:
            self._refuse(_FEATURE_NAMES[feature])

    def _refuse(self, feature: str) -> NoReturn:
        endpoint = self._endpoint
        raise UnsupportedFeatureError(
            f"{endpoint.backend} at {endpoint.client.base_url} has no {feature}",
            feature=feature,
            backend=endpoint.backend,
        )

    async def _ready(self) -> Endpoint:
        self._check_open()
        return await self._server.ensure_ready()

    # The server's state.

    async def get_health(self) -> str:
        """`ok`, `loading` or `down`; asks the server, and never starts one."""
        endpoint = self._server.endpoint
        if self._server.is_starting:
            return "loading"
        if endpoint is None or endpoint.has_exited:
            return "down"
        try:
            status = await endpoint.client.get_status("/health")
        except LLMSessionError:
            return "down"
        if status == 404 and endpoint.child is None:  # some have no such page; but there they are
            return "ok"
        return "ok" if status == 200 else "loading" if status == 503 else "down"

    async def get_metrics(self) -> Metrics:
        """Counts since the server started. Raises UnsupportedFeatureError where it does not count.

        The KV cache's part comes from the slots, which are read at most once a second: more would keep the engine from
        noticing that a client has gone (LLAMA_SERVER, trap 3).
        """
        from llmsession.wire.metrics import parse_metrics, tells_cache

        text = (await self._ask_page("metrics", await self._ready())).decode(errors="replace")
        return parse_metrics(text, [] if tells_cache(text) else await self._look_at_slots())

    async def _look_at_slots(self) -> list[Slot]:
        """As they were within the last second; none where the server does not tell."""
        slots, read_at = self._slots_read
        now = time.monotonic()
        if slots is None or now - read_at >= SLOTS_PAUSE:
            slots = []
            with contextlib.suppress(UnsupportedFeatureError):
                slots = await self.get_slots()
            self._slots_read = (slots, now)
        return slots

    async def get_slots(self) -> list[Slot]:
        """What each slot of the server holds and does. Raises UnsupportedFeatureError where it does not tell."""
        from llmsession.wire.metrics import parse_slots

        return parse_slots(await self._ask_page("slots", await self._ready()))

    async def _ask_page(self, feature: Literal["metrics", "slots"], endpoint: Endpoint) -> bytes:
        """Old servers do not say beforehand whether they have it."""
        self._require(feature)
        try:
            return await endpoint.client.get(f"/{feature}")
        except ServerError as error:
            if error.status in (404, 501):
                self._refuse(_FEATURE_NAMES[feature])
            raise

    # Facts.

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._server.model.name

    @property
    def model_path(self) -> Path | None:
        """The file that is run: of a model of Hugging Face once it is there. None for a remote server."""
        return self._server.model.path

    @property
    def info(self) -> ModelInfo:
        """What the file says of itself. Raises UnsupportedFeatureError where a remote has it, and for safetensors."""
        info = self._server.info
        if not isinstance(info, ModelInfo):
            self._check_open()
            self._refuse("GGUF file that could be read here")
        return info

    @property
    def encoding(self) -> PromptEncoding | None:
        """How prompts are written; None: the server applies the model's own template."""
        return self._server.model.encoding

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """Ids of `bos eos eot nl prefix middle suffix cls sep`; None for those that the model does not have."""
        return self.info.special_tokens

    @property
    def context_length(self) -> int:
        """Tokens that one conversation may use: what was asked for, or a little more (the engine rounds up).

        Raises UnsupportedFeatureError where a remote server does not tell.
        """
        length = self._endpoint.facts.context_length
        if length is None:
            self._refuse("word on its context's length")
        return length

    @property
    def parallel(self) -> int:
        """Replies that are generated at once."""
        return self._endpoint.facts.parallel

    @property
    def max_top_logprobs(self) -> int:
        """The most alternatives that `top_logprobs` can ask for: the whole vocabulary."""
        return self.info.vocab_size or 0

    @property
    def version(self) -> str:
        """The engine's own version."""
        return self._endpoint.version

    @property
    def backend(self) -> str:
        """`llama-server`, `llamafile`, `embedded` or `transformers`; of a remote also `vllm`, `ollama`, `openai`."""
        return self._endpoint.backend

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        return self._endpoint.client.base_url

    @property
    def api_key(self) -> str:
        """What the server asks for as a bearer token: drawn anew for each start, or a remote's, which may be empty."""
        return self._endpoint.api_key

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none, and for a remote one."""
        child = self._endpoint.child
        return child.pid if child is not None else None

    @property
    def log_path(self) -> Path | None:
        """Where the server's words are kept; None for a remote one."""
        child = self._endpoint.child
        return child.log.path if child is not None else None

    async def vocab(self) -> list[str]:
        """The spelling of every token by id, as the model's file has them."""
        self._check_open()
        path = self.model_path
        if path is None or self._server.model.is_weights:
            self._refuse("GGUF file that could be read here")
        return await anyio.to_thread.run_sync(read_vocabulary, path)

    @property
    def _features(self) -> frozenset[Feature]:
        return self._server.features

    @property
    def _endpoint(self) -> Endpoint:
        endpoint = self._server.endpoint
        if endpoint is None:
            raise _not_open()
        return endpoint


def _not_open() -> UsageError:
    return UsageError("the session is not open yet: async with Session(…) as session: …")
