"""RemoteServer: a session's server that somebody else runs. It is inspected once, and never started or ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmsession.backends.endpoint import LLAMA_SERVER_FEATURES, Endpoint, Feature
from llmsession.backends.remote import Address, attach, parse_remote
from llmsession.session.config.options import Options
from llmsession.session.server.model_choice import resolve_remote_model
from llmsession.types.errors import ClosedError, ConfigError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmsession.models.gguf import ModelInfo
    from llmsession.prompts.writer import PromptWriter
    from llmsession.types.errors import LLMSessionError

# Options that only apply to a server that the session starts itself.
_OURS_ONLY = (
    "context_length", "threads", "server_path", "python_path", "extra_args", "on_progress", "hf_token", "offline",
    "backend", "device", "gpu_layers", "flash_attention", "kv_offload", "cache_type_k", "cache_type_v",
    "rope_freq_base", "lora", "draft_model", "mmproj", "chat_template", "kv_cache_bytes",
)  # fmt: skip


class RemoteServer:
    """A Server that was running before the session, and keeps running after it."""

    def __init__(self, options: Options) -> None:
        if options.remote is None:
            raise ConfigError("remote= names the server")
        defaults = Options()
        wrong = [name for name in _OURS_ONLY if getattr(options, name) != getattr(defaults, name)]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}: not for a remote server, which was started by somebody else")
        self._address = Address(
            base_url=parse_remote(options.remote),
            api_key=options.api_key,
            headers=dict(options.headers),
            verify=options.verify,
        )
        self._options = options
        self._endpoint: Endpoint | None = None
        self._writer: PromptWriter | None = None
        self._closed = False
        self.info: ModelInfo | None = None
        self.model = resolve_remote_model(options)

    @property
    def endpoint(self) -> Endpoint | None:
        """The server's endpoint; None until it was inspected."""
        return self._endpoint

    @property
    def parallel(self) -> int:
        """How many replies are requested at once."""
        return self._options.parallel

    @property
    def features(self) -> frozenset[Feature]:
        """The features it has; until it was inspected, those of llama-server."""
        return self._endpoint.features if self._endpoint is not None else LLAMA_SERVER_FEATURES

    @property
    def is_closed(self) -> bool:
        """Whether the session was closed. The server keeps running."""
        return self._closed

    @property
    def is_starting(self) -> bool:
        """False: the session does not start it."""
        return False

    async def ensure_ready(self) -> Endpoint:
        """Return the server's endpoint, inspected on the first call.

        Raises ClosedError, UnsupportedFeatureError, and what `attach` can raise.
        """
        if self._closed:
            raise ClosedError("the session is closed: open another")
        if self._endpoint is not None:
            return self._endpoint
        name, endpoint = await attach(
            self._address,
            model=self.model.name or None,
            parallel=self._options.parallel,
            timeout=self._options.start_timeout,
        )
        encoding = self.model.encoding
        if encoding is not None and "completion" not in endpoint.features:
            if self._options.prompt_encoding is not None:
                raise UnsupportedFeatureError(
                    f"{endpoint.backend} at {endpoint.client.base_url} has no /completion for a prompt of our own "
                    'encoding: use prompt_encoding="chat"',
                    feature="prompt_encoding",
                    backend=endpoint.backend,
                )
            encoding = None
        self.model = msgspec.structs.replace(self.model, name=name, encoding=encoding)
        self._endpoint = endpoint
        return endpoint

    async def prompt_writer(self, endpoint: Endpoint) -> PromptWriter:
        """Return the writer of prompts for this server, whose tokenizer is asked for special tokens."""
        from llmsession.prompts.vocabulary import RemoteVocabulary
        from llmsession.prompts.writer import PromptWriter

        if self._writer is None:
            exact = "pieces" in endpoint.features
            self._writer = PromptWriter(endpoint.client, RemoteVocabulary(endpoint.client, exact=exact), exact=exact)
        return self._writer

    async def known_vocabulary(self) -> None:
        """Return None: the model's files are not known here."""

    def refuse_starts(self) -> None:
        """Refuse further requests."""
        self._closed = True

    def close_soon(self) -> None:
        """Refuse further requests: there is no process to end."""
        self._closed = True

    async def aclose(self, *, within: float) -> None:
        """Refuse further requests: there is no process to end or wait for."""
        del within
        self._closed = True

    def rotate_log(self) -> None:
        """Do nothing: the log belongs to the server's owner."""

    async def has_exited_soon(self, endpoint: Endpoint) -> bool:
        """Return False: it cannot be known from here."""
        del endpoint
        return False

    def may_start_again(self, times: int) -> bool:
        """Return False: a remote server is never restarted."""
        del times
        return False

    def check_progress(self, endpoint: Endpoint, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Return False: a hang is for the server's owner to detect."""
        del endpoint, has_begun, give_up
        return False

    async def diagnose(self, error: LLMSessionError, endpoint: Endpoint | None) -> LLMSessionError:
        """Return `error` itself, or ClosedError if the session was closed."""
        del endpoint
        return ClosedError("the session was closed") if self._closed else error
