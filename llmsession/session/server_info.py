"""ServerInfo: facts about a session's server, its health and metrics, and the error for features that it lacks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from llmsession.models.gguf import ModelInfo, read_vocabulary
from llmsession.system.service_thread import run_in_thread
from llmsession.types.errors import (
    ClosedError,
    LLMSessionError,
    ProtocolError,
    ServerError,
    TransportError,
    UnsupportedFeatureError,
    UsageError,
)

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint, Feature
    from llmsession.session.server.server import Server
    from llmsession.wire.metrics import Metrics, Slot

T = TypeVar("T")

# Seconds between two reads of the slots for the metrics.
SLOTS_PAUSE = 1.0

# The names of features in error messages: "… at … has no …".
_FEATURE_NAMES: dict[Feature, str] = {
    "completion": "raw completion",
    "tokens": "tokenizer endpoint",
    "pieces": "way to report the bytes of tokens",
    "chat_count": "count of a chat's tokens",
    "slots": "list of slots",
    "metrics": "metrics",
    "template": "endpoint that applies its chat template",
    "chat_logprobs": "log-probabilities of a chat (generate has them)",
    "token_ids": "stop by a token's id",
}


class ServerInfo:
    """Facts about one server. Those that the server reports itself are known once it is ready."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_opened = False
        # The slots for get_metrics, and when they were read.
        self._slots: list[Slot] = []
        self._slots_read_at: float | None = None

    # State.

    def check_open(self) -> None:
        """Raise ClosedError or UsageError unless the session is open."""
        if self.server.is_closed:
            raise ClosedError("the session is closed: open another")
        if not self.is_opened:
            raise _not_open()

    async def ready(self) -> Endpoint:
        """Return the ready server, restarted if necessary."""
        self.check_open()
        return await self.server.ensure_ready()

    async def outlive(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what `ask` returns, asked again if the server exited meanwhile and may be restarted.

        `ask` waits for the ready server itself. Otherwise the error is the cause of the lost connection.
        """
        restarts = 0
        while True:
            try:
                return await ask()
            except (TransportError, ProtocolError) as error:
                endpoint = self.server.endpoint
                if isinstance(error, TimeoutError) or endpoint is None:
                    raise
                if not await self.server.has_exited_soon(endpoint) or not self.server.may_start_again(restarts):
                    raise await self.server.diagnose(error, endpoint) from error
                restarts += 1

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that was ready last. Raises UsageError if none was ready yet."""
        endpoint = self.server.endpoint
        if endpoint is None:
            raise _not_open()
        return endpoint

    @property
    def features(self) -> frozenset[Feature]:
        """The features that the server has."""
        return self.server.features

    def require(self, feature: Feature) -> None:
        """Raise UnsupportedFeatureError if the server lacks the feature."""
        if feature not in self.features:
            self.refuse(_FEATURE_NAMES[feature])

    def refuse(self, feature: str) -> NoReturn:
        """Raise UnsupportedFeatureError: the server has no such feature."""
        endpoint = self.endpoint
        raise UnsupportedFeatureError(
            f"{endpoint.backend} at {endpoint.client.base_url} has no {feature}",
            feature=feature,
            backend=endpoint.backend,
        )

    # What the server reports.

    async def get_health(self) -> str:
        """Return `ok`, `loading` or `down`."""
        endpoint = self.server.endpoint
        if self.server.is_starting:
            return "loading"
        if endpoint is None or endpoint.has_exited:
            return "down"
        try:
            status = await endpoint.client.get_status("/health")
        except LLMSessionError:
            return "down"
        if status == 404 and endpoint.child is None:  # some servers have no such page, but they answer
            return "ok"
        return "ok" if status == 200 else "loading" if status == 503 else "down"

    async def get_metrics(self) -> Metrics:
        """Return the server's counts since its start. The use of the KV cache is read from the slots if they lack it.

        The slots are read at most once a second: reading them more often would keep the engine from noticing that a
        client has disconnected (LLAMA_SERVER, trap 3).
        """
        from llmsession.wire.metrics import parse_metrics, tells_cache

        text = (await self._get_page("metrics", await self.ready())).decode(errors="replace")
        return parse_metrics(text, [] if tells_cache(text) else await self._recent_slots())

    async def _recent_slots(self) -> list[Slot]:
        """Return the slots as they were within the last second; an empty list if the server does not list them."""
        now = time.monotonic()
        if self._slots_read_at is None or now - self._slots_read_at >= SLOTS_PAUSE:
            self._slots = []
            with contextlib.suppress(UnsupportedFeatureError):
                self._slots = await self.get_slots()
            self._slots_read_at = now
        return self._slots

    async def get_slots(self) -> list[Slot]:
        """Return the state of each slot."""
        from llmsession.wire.metrics import parse_slots

        return parse_slots(await self._get_page("slots", await self.ready()))

    async def _get_page(self, feature: Literal["metrics", "slots"], endpoint: Endpoint) -> bytes:
        """Return the body of `/metrics` or `/slots`. Raises UnsupportedFeatureError if the server has no such page.

        Old servers do not report beforehand whether they have it, so it is also tried.
        """
        self.require(feature)
        try:
            return await endpoint.client.get(f"/{feature}")
        except ServerError as error:
            if error.status in (404, 501):
                self.refuse(_FEATURE_NAMES[feature])
            raise

    # The model's file.

    @property
    def model_info(self) -> ModelInfo:
        """The header of the model's GGUF file. Raises UnsupportedFeatureError if there is no such file here."""
        info = self.server.info
        if not isinstance(info, ModelInfo):
            self.check_open()
            self.refuse("GGUF file that could be read here")
        return info

    @property
    def context_length(self) -> int:
        """The tokens that one conversation may use. Raises UnsupportedFeatureError if a remote does not report it."""
        length = self.endpoint.facts.context_length
        if length is None:
            self.refuse("reported context length")
        return length

    async def read_vocab(self) -> list[str]:
        """Return the spelling of every token, by id, read from the model's file in a thread.

        Raises UnsupportedFeatureError if there is no GGUF file here.
        """
        self.check_open()
        path: Path | None = self.server.model.path
        if path is None or self.server.model.is_weights:
            self.refuse("GGUF file that could be read here")
        return await run_in_thread(read_vocabulary, path)


def _not_open() -> UsageError:
    return UsageError("the session is not open yet: async with Session(…) as session: …")
