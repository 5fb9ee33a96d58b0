"""ServerFacts: what a session tells of its server. The Session itself, in session.py, builds on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio.to_thread

from llmsession.errors import ClosedError, LLMSessionError, UnsupportedFeatureError, UsageError
from llmsession.models.encoding import PromptEncoding
from llmsession.models.gguf import ModelInfo, read_vocabulary
from llmsession.server import Server

if TYPE_CHECKING:
    from llmsession.backends.backend import Endpoint, Feature
    from llmsession.remote_server import RemoteServer
    from llmsession.wire.metrics import Metrics, Slot

# For "… at … has no …".
_FEATURE_NAMES: dict[Feature, str] = {
    "completion": "raw completion",
    "tokens": "way to turn text into tokens",
    "chat_count": "count of a chat's tokens",
    "slots": "list of slots",
    "metrics": "metrics",
}


class ServerFacts:
    """State and facts of one server, ours or a remote one. Those that it tells itself are there once it is ready."""

    _server: Server | RemoteServer
    _opened = False

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
        """Counts since the server started. Each call also reads the slots: not for tight loops."""
        from llmsession.wire.metrics import parse_metrics

        endpoint = await self._ready()
        self._require("metrics")
        slots = await self.get_slots() if "slots" in endpoint.features else []
        text = await endpoint.client.get("/metrics")
        return parse_metrics(text.decode(errors="replace"), slots)

    async def get_slots(self) -> list[Slot]:
        """What each slot of the server holds and does."""
        from llmsession.wire.metrics import parse_slots

        endpoint = await self._ready()
        self._require("slots")
        return parse_slots(await endpoint.client.get("/slots"))

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
