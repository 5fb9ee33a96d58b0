"""Session: one server for one model, and the calls that are sent to it.

    Session ── ServerInfo, Tokenizer          facts, health, metrics; tokens, counts, prompts in pieces
       ├── Server                             OwnedServer starts, watches and restarts an engine; RemoteServer attaches
       ├── make_settings                      keywords → CallSettings, checked once
       ├── RequestBuilder                     messages → Request: by an encoding, the chat endpoint, or raw text
       └── ReplyStream ── Attempt             waits for a slot (Scheduler) and the server, sends, resumes
                             └── KvCache      restores a conversation's KV before the request, saves it after
    ConversationCalls                         the same for Chat: a conversation that may be kept on disk

A session holds no task and no cancel scope between calls, so it may be opened in one task or event loop and closed in
another.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

import msgspec

from llmsession.processes.child import CLOSE_BOUND
from llmsession.session.config.options import Options, make_options
from llmsession.session.requests.attempt import Attempt
from llmsession.session.requests.builder import RequestBuilder
from llmsession.session.requests.scheduler import Scheduler
from llmsession.session.requests.settings import CallSettings, GenerateKeywords, make_settings
from llmsession.session.server.owned import OwnedServer
from llmsession.session.server_info import ServerInfo
from llmsession.session.tokenizer import Tokenizer
from llmsession.system.service_thread import later
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import ClosedError, UsageError
from llmsession.types.message_input import MessagesLike, check_order
from llmsession.types.messages import Message, Role
from llmsession.wire.readable import ActiveReplies

if TYPE_CHECKING:
    from llmsession.models.encoding import PromptEncoding
    from llmsession.models.gguf import ModelInfo
    from llmsession.session.kv.cache import CachedTurn, KvCache
    from llmsession.session.requests.completion import Request
    from llmsession.session.server.server import Server
    from llmsession.types.inspection import PromptPiece
    from llmsession.wire.metrics import Metrics, Slot
    from llmsession.wire.reply import ReplyStream

_numbers = itertools.count(1)
# Fields of `extra` that change how a reply reports its slot.
_REPORTING = frozenset({"verbose", "return_progress"})


class Session:
    """A server for one model, which runs from `async with Session(…)` (or `await Session.open(…)`) to the block's end
    (or `aclose`).

    `options_or_model`: Options, or a model: an alias, a path or a reference. `fields`: fields of Options, by name.
    Whatever happens to this program, the server does not outlive it.

    Raises: ConfigError, UnknownModelError, InvalidRefError.
    """

    def __init__(self, options_or_model: Options | str | Path | None = None, **fields: Any) -> None:
        self._is_opened = False
        self._pid = os.getpid()
        self._options = options = make_options(options_or_model, fields)
        self._server = server = _make_server(options)
        self._info = ServerInfo(server)
        self._builder = RequestBuilder(self._info, can_see=options.remote is not None or options.mmproj is not None)
        self._tokenizer = Tokenizer(self._info, self._builder)
        self._scheduler = Scheduler(server.parallel)
        self._active = ActiveReplies()
        self._lock = threading.Lock()
        self._kv: KvCache | None = None

    # Opening and closing.

    @classmethod
    async def open(cls, options_or_model: Options | str | Path | None = None, **fields: Any) -> Self:
        """Make a session and wait until its server is ready. The caller calls `aclose`.

        Raises: ConfigError, FetchError, BackendError, and for a remote server TransportError, ServerError.
        """
        session = cls(options_or_model, **fields)
        return await session.__aenter__()

    async def __aenter__(self) -> Self:
        if self._is_opened:
            raise UsageError("a session is opened once: make another")
        self._is_opened = self._info.is_opened = True
        try:
            await self._server.ensure_ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError("this session is asynchronous: use `async with Session(…) as session`")

    def __exit__(self, *exc: object) -> None:
        """Exists so that a plain `with` raises the error of `__enter__`."""

    async def aclose(self) -> None:
        """End every reply with ClosedError, and stop the server, within about 2 s, even when cancelled.

        It may be called in any state, from any task, thread or event loop, any number of times.
        """
        self._server.refuse_starts()
        self._active.end_all(lambda: ClosedError("the session was closed"))
        begun = time.monotonic()
        if self._kv is not None:
            await self._kv.aclose()  # at most CLOSE_WAIT: the engine then has the rest
        await self._server.aclose(within=CLOSE_BOUND - (time.monotonic() - begun))

    def __del__(self) -> None:
        if getattr(self, "_is_opened", False) and self._pid == os.getpid() and not self._server.is_closed:
            # Elsewhere: a finalizer may run while this thread holds any of the locks that this takes. And first: the
            # warning may be an error.
            later(self._server.close_soon)
            warnings.warn(f"{self!r} was never closed: use `async with`", ResourceWarning, stacklevel=1, source=self)

    def interrupt(self) -> None:
        """End every reply, and every call that waits for one, with INTERRUPTED and the text so far.

        It may be called from any task, thread or signal handler. It has no effect when nothing is in progress.
        """
        self._active.end_all(lambda: StopReason.INTERRUPTED)

    # Replies.

    async def prompt(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> Completion:
        """Return the model's reply to a conversation. A `str` is a single user message.

        Raises: UsageError, and any LLMSessionError that ends the reply, with the text so far as its `partial`.
        """
        async with self.prompt_streaming(messages, **keywords) as stream:
            return await stream.result()

    def prompt_streaming(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> ReplyStream:
        """Return the model's reply to a conversation as a stream: use it in an `async with` block.

        Raises: UsageError, UnsupportedFeatureError, ClosedError, before anything is sent.
        """
        self._info.check_open()
        return self._prompt(self._builder.read(messages), self._settings(keywords))

    async def generate(
        self, text_or_token_ids: str | Sequence[int], **keywords: Unpack[GenerateKeywords]
    ) -> Completion:
        """Continue raw text or token ids: no template is applied, and spellings of special tokens mean those tokens.

        Raises: what `prompt` raises.
        """
        async with self.generate_streaming(text_or_token_ids, **keywords) as stream:
            return await stream.result()

    def generate_streaming(
        self, text_or_token_ids: str | Sequence[int], **keywords: Unpack[GenerateKeywords]
    ) -> ReplyStream:
        """Continue raw text or token ids as a stream: use it in an `async with` block.

        Raises: UsageError, UnsupportedFeatureError, ClosedError, before anything is sent.
        """
        self._info.check_open()
        self._info.require("completion")
        settings = self._settings(keywords)
        return self._stream(self._builder.raw(text_or_token_ids, settings.request), settings)

    async def ingest(self, messages_or_text: MessagesLike, *, typing: bool = False) -> int:
        """Evaluate messages or text into the engine's cache, for a prompt that will begin with them.

        Returns the number of tokens evaluated. A `str` is raw text, as in `generate`; a list is what `prompt` would
        send. A list that ends with the assistant is evaluated up to where the next turn begins; with `typing`, up to
        the end of a user's unfinished text. The call waits for a slot as a reply does. If `interrupt()` ends it, it
        returns 0.

        Raises: what `prompt` raises.
        """
        return await self._ingest(messages_or_text, None, typing=typing)

    def _prompt(self, turns: list[Message], settings: CallSettings, conversation: str | None = None) -> ReplyStream:
        encoding = self._builder.find_encoding(turns)
        if encoding is not None:
            settings = _with_request(settings, settings.request.with_own_stops(encoding.stop))
        turn, settings = self._track(conversation, turns, settings)
        return self._stream(self._builder.prompt(turns, encoding, settings.request), settings, turn)

    async def _ingest(self, messages_or_text: MessagesLike, conversation: str | None, *, typing: bool) -> int:
        self._info.check_open()
        self._info.require("completion")
        settings, turn = self._settings({"max_tokens": 1, "temperature": 0.0}), None
        if isinstance(messages_or_text, str):
            if typing:
                raise UsageError("typing=True is for a list that ends with a user's text, not for raw text")
            call = self._builder.raw(messages_or_text, settings.request)
        else:
            turns = self._builder.read(messages_or_text, reply=False)
            if typing and turns[-1].role is not Role.USER:
                raise UsageError("typing=True is for a list that ends with a user's text")
            turn, settings = self._track(conversation, turns, settings, only_reads=True)
            call = self._builder.prefix(turns, settings.request, typing=typing)
        async with self._stream(call, settings, turn) as stream:
            return (await stream.result()).timings.prompt.count

    def _track(
        self, conversation: str | None, turns: list[Message], settings: CallSettings, *, only_reads: bool = False
    ) -> tuple[CachedTurn | None, CallSettings]:
        """Return a turn for the KV cache, and settings that make the server report its slot.

        None and the unchanged settings if the conversation's KV is not kept on disk.
        """
        kept = conversation is not None and self._options.remote is None and self._options.kv_cache_bytes > 0
        if not kept or "slots" not in self._info.features or any(turn.images for turn in turns):
            return None, settings
        if not _REPORTING.isdisjoint(settings.request.extra):
            return None, settings
        from llmsession.session.kv.cache import CachedTurn, KvCache

        with self._lock:
            if self._kv is None:
                self._kv = KvCache(self._options.kv_cache_bytes, is_idle=lambda: self._scheduler.is_idle)
        turn = CachedTurn(conversation or "", turns, only_reads=only_reads)
        return turn, _with_request(settings, msgspec.structs.replace(settings.request, reports_slot=True))

    def _settings(self, keywords: GenerateKeywords) -> CallSettings:
        settings = make_settings(keywords, self._options, self._server.model.sampling)
        request = settings.request
        if request.stop_ids:
            self._info.require("token_ids")
        if self._kv is not None and _REPORTING.isdisjoint(request.extra):
            return _with_request(settings, msgspec.structs.replace(request, reports_slot=True))
        return settings

    def _stream(self, call: Request, settings: CallSettings, turn: CachedTurn | None = None) -> ReplyStream:
        from llmsession.wire.reply import ReplyStream
        from llmsession.wire.timeouts import TimeoutSettings

        options = self._options
        return ReplyStream(
            Attempt(self._server, self._scheduler, call, kv=self._kv, turn=turn),
            settings.request,
            id=f"reply-{os.getpid()}-{next(_numbers)}",
            timeouts=TimeoutSettings(
                first_token=options.first_token_timeout, idle=options.idle_timeout, total=settings.timeout
            ),
            active=self._active,
        )

    # Tokens.

    async def tokenize(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Return the token ids of a text.

        `special`: spellings of special tokens in it mean those tokens. `bos`, `eos`: add these tokens around it.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.tokenize(text, bos=bos, eos=eos, special=special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens are spelled out; incomplete characters become U+FFFD.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.detokenize(ids)

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """Return the exact number of tokens of context. A `str` is raw text, a list is what `prompt` would send.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.count_tokens(messages_or_text)

    async def render_template(self, messages: MessagesLike) -> str:
        """Render messages with the model's own template. Special tokens spelled in their texts are not escaped.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.render_template(messages)

    async def inspect_prompt(self, messages: MessagesLike) -> list[PromptPiece]:
        """Return exactly what `prompt` would send, in pieces: role, control or text, and token ids of each.

        For a list that ends with the assistant, return what the next prompt will begin with.

        Raises: UsageError, UnsupportedFeatureError (also for images), TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.inspect_prompt(messages)

    async def vocab(self) -> list[str]:
        """Return the spelling of every token, by id, from the model's file.

        Raises: UnsupportedFeatureError, InvalidModelError, ClosedError.
        """
        return await self._info.read_vocab()

    # The server.

    async def get_health(self) -> str:
        """Return `ok`, `loading` or `down`. This asks the server, and never starts one."""
        return await self._info.get_health()

    async def get_metrics(self) -> Metrics:
        """Return the server's counts since it started.

        Raises: UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.get_metrics()

    async def get_slots(self) -> list[Slot]:
        """Return the state of each slot of the server.

        Raises: UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.get_slots()

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._server.model.name

    @property
    def model_path(self) -> Path | None:
        """The model's file; None until it is downloaded, and for a remote server."""
        return self._server.model.path

    @property
    def info(self) -> ModelInfo:
        """The header of the model's GGUF file.

        Raises: UnsupportedFeatureError for a remote server and for safetensors.
        """
        return self._info.model_info

    @property
    def encoding(self) -> PromptEncoding | None:
        """The encoding that writes prompts; None if the server applies the model's own template."""
        return self._server.model.encoding

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """The ids of `bos eos eot nl prefix middle suffix cls sep`; None for those that the model lacks."""
        return self._info.model_info.special_tokens

    @property
    def context_length(self) -> int:
        """The tokens that one conversation may use: as requested, or a little more (the engine rounds up).

        Raises: UnsupportedFeatureError if a remote server does not report it.
        """
        return self._info.context_length

    @property
    def parallel(self) -> int:
        """How many replies are generated at once."""
        return self._info.endpoint.facts.parallel

    @property
    def max_top_logprobs(self) -> int:
        """The largest useful `top_logprobs`: the size of the vocabulary."""
        return self._info.model_info.vocab_size or 0

    @property
    def version(self) -> str:
        """The version that the engine reports."""
        return self._info.endpoint.version

    @property
    def backend(self) -> str:
        """`llama-server`, `llamafile`, `embedded` or `transformers`; for a remote also `vllm`, `ollama`, `openai`."""
        return self._info.endpoint.backend

    @property
    def base_url(self) -> str:
        """The URL of the server."""
        return self._info.endpoint.client.base_url

    @property
    def api_key(self) -> str:
        """The server's bearer token: generated for each start, or that of a remote server, which may be empty."""
        return self._info.endpoint.api_key

    @property
    def pid(self) -> int | None:
        """The process id of the server; None for a remote server."""
        child = self._info.endpoint.child
        return child.pid if child is not None else None

    @property
    def log_path(self) -> Path | None:
        """The path of the server's log file; None for a remote server."""
        child = self._info.endpoint.child
        return child.log.path if child is not None else None


class ConversationCalls:
    """The calls that Chat needs from a session beyond its public ones: see `calls_of`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.active = session._active  # noqa: SLF001 - this class is a part of the session

    def check(self, keywords: GenerateKeywords) -> CallSettings:
        """Check the keywords of a call, and return its settings.

        Raises UsageError, UnsupportedFeatureError, ClosedError.
        """
        self._session._info.check_open()  # noqa: SLF001
        settings = self._session._settings(keywords)  # noqa: SLF001
        self._session._builder.check(settings.request)  # noqa: SLF001
        return settings

    def stream(self, name: str | None, messages: list[Message], settings: CallSettings) -> ReplyStream:
        """Return a stream of the reply to messages. `name`: the name under which the conversation's KV is kept, if any.

        The KV is saved to disk after replies, and restored into an engine that lacks it.
        """
        self._session._info.check_open()  # noqa: SLF001
        check_order(messages)  # everything else was checked when they were added to the conversation
        return self._session._prompt(messages, settings, name)  # noqa: SLF001

    async def ingest(self, name: str | None, messages: list[Message], *, typing: bool = False) -> int:
        """Evaluate what the next prompt will begin with. Returns the number of tokens evaluated."""
        return await self._session._ingest(messages, name, typing=typing)  # noqa: SLF001

    @property
    def kv_folder(self) -> Path | None:
        """The folder in which the KV of conversations is kept; None if it is not kept."""
        endpoint = self._session._server.endpoint  # noqa: SLF001
        launch = endpoint.launch if endpoint is not None else None
        return launch.kv_folder if launch is not None else None


def calls_of(session: Session) -> ConversationCalls:
    """Return the calls of a session that are meant for Chat, and not for users of the session."""
    return ConversationCalls(session)


def _make_server(options: Options) -> Server:
    if options.remote is None:
        return OwnedServer(options)
    from llmsession.session.server.remote import RemoteServer

    return RemoteServer(options)


def _with_request(settings: CallSettings, request: Any) -> CallSettings:
    return msgspec.structs.replace(settings, request=request)
