"""Session: one server for one model, and the calls that are sent to it.

    Session ── ServerInfo, Tokenizer          facts, health, metrics; tokens, counts, prompts in pieces
       ├── Server                             OwnedServer starts, watches and restarts an engine; RemoteServer attaches
       ├── make_settings                      keywords → CallSettings, checked once
       ├── RequestBuilder                     messages → Request: by an encoding, the chat endpoint, or raw text
       └── ReplyStream ── Attempt             waits for a slot (Scheduler), has the server ready, sends, resumes
                             └── KvCache      restores a conversation's KV before, saves it after
    ConversationCalls                         the same for Chat: a conversation that may be kept on disk

It holds no task and no cancel scope between calls: it may be opened in one task or event loop and closed in another.
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
# Fields of `extra` with which a reply reports its slot otherwise than we ask for.
_REPORTING = frozenset({"verbose", "return_progress"})


class Session:
    """A server for one model, from `async with Session(…)` (or `await Session.open(…)`) to its end (or `aclose`).

    `options_or_model`: Options, or a model: an alias, a path or a reference. `fields`: those of Options, by name.
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
        """Only there so that a plain `with` reaches the message above."""

    async def aclose(self) -> None:
        """End every reply with ClosedError, and the server: within about 1.5 s, also when cancelled.

        Call it in any state, from any task, thread or event loop, any number of times.
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

        Call it from any task, thread or signal handler; it has no effect when nothing is in progress.
        """
        self._active.end_all(lambda: StopReason.INTERRUPTED)

    # Replies.

    async def prompt(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> Completion:
        """Reply to a conversation; a `str` is a user's turn.

        Raises: UsageError, and any LLMSessionError that ends the reply, with the text so far as its `partial`.
        """
        async with self.prompt_streaming(messages, **keywords) as stream:
            return await stream.result()

    def prompt_streaming(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> ReplyStream:
        """Reply to a conversation as a stream: use it in an `async with` block.

        Raises: UsageError, UnsupportedFeatureError, ClosedError, before anything is sent.
        """
        self._info.check_open()
        return self._prompt(self._builder.read(messages), self._settings(keywords))

    async def generate(
        self, text_or_token_ids: str | Sequence[int], **keywords: Unpack[GenerateKeywords]
    ) -> Completion:
        """Continue raw text or token ids: no template, and spellings of special tokens mean those tokens.

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
        """Evaluate it into the cache, for a prompt that will begin with it; returns the tokens evaluated.

        A `str` is raw text, as in `generate`; a list is what `prompt` would send. A list that ends with the assistant
        is evaluated up to where the next turn begins; with `typing`, up to the end of a user's unfinished text. It
        waits for a slot as a reply does; ended by `interrupt()` it returns 0.

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
        """If the conversation's KV may be kept on disk: its turn, and settings that have the slot reported."""
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
        """The token ids of a text.

        `special`: spellings of special tokens in it mean those tokens. `bos`, `eos`: put those tokens around it.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.tokenize(text, bos=bos, eos=eos, special=special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids. Special tokens get their spelling, parts of characters U+FFFD.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.detokenize(ids)

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """How many tokens of context it takes, exactly. A `str` is raw text, a list is what `prompt` would send.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.count_tokens(messages_or_text)

    async def render_template(self, messages: MessagesLike) -> str:
        """What the model's own template makes of messages. Special tokens spelled in their texts are not escaped.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.render_template(messages)

    async def inspect_prompt(self, messages: MessagesLike) -> list[PromptPiece]:
        """Exactly what `prompt` would send, in pieces: whose each is, control or text, and its tokens.

        For a list that ends with the assistant: what the next prompt will begin with.

        Raises: UsageError, UnsupportedFeatureError (also for images), TransportError, ServerError, ClosedError.
        """
        return await self._tokenizer.inspect_prompt(messages)

    async def vocab(self) -> list[str]:
        """The spelling of every token by id, from the model's file.

        Raises: UnsupportedFeatureError, InvalidModelError, ClosedError.
        """
        return await self._info.read_vocab()

    # The server.

    async def get_health(self) -> str:
        """`ok`, `loading` or `down`. It asks the server, and never starts one."""
        return await self._info.get_health()

    async def get_metrics(self) -> Metrics:
        """Counts since the server started.

        Raises: UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.get_metrics()

    async def get_slots(self) -> list[Slot]:
        """What each slot of the server holds and does.

        Raises: UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.get_slots()

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._server.model.name

    @property
    def model_path(self) -> Path | None:
        """The model's file, once it was fetched. None for a remote server."""
        return self._server.model.path

    @property
    def info(self) -> ModelInfo:
        """The header of the model's GGUF file.

        Raises: UnsupportedFeatureError for a remote server and for safetensors.
        """
        return self._info.model_info

    @property
    def encoding(self) -> PromptEncoding | None:
        """The encoding that writes prompts; None: the server applies the model's own template."""
        return self._server.model.encoding

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """Ids of `bos eos eot nl prefix middle suffix cls sep`; None for those that the model lacks."""
        return self._info.model_info.special_tokens

    @property
    def context_length(self) -> int:
        """Tokens that one conversation may use: what was asked for, or a little more (the engine rounds up).

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
        """Where the server listens."""
        return self._info.endpoint.client.base_url

    @property
    def api_key(self) -> str:
        """The server's bearer token: drawn for each start, or a remote's, which may be empty."""
        return self._info.endpoint.api_key

    @property
    def pid(self) -> int | None:
        """The process id of the server; None if there is none, and for a remote server."""
        child = self._info.endpoint.child
        return child.pid if child is not None else None

    @property
    def log_path(self) -> Path | None:
        """The file with the server's log; None for a remote server."""
        child = self._info.endpoint.child
        return child.log.path if child is not None else None


class ConversationCalls:
    """What Chat needs of a session beyond its public calls: see `calls_of`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.active = session._active  # noqa: SLF001 - this class is the session's other face

    def check(self, keywords: GenerateKeywords) -> CallSettings:
        """The keywords of a call, checked. Raises UsageError, UnsupportedFeatureError, ClosedError."""
        self._session._info.check_open()  # noqa: SLF001
        settings = self._session._settings(keywords)  # noqa: SLF001
        self._session._builder.check(settings.request)  # noqa: SLF001
        return settings

    def stream(self, name: str | None, messages: list[Message], settings: CallSettings) -> ReplyStream:
        """A reply to messages, of a conversation that is kept on disk by that name if it has one.

        What the engine has evaluated is saved beside replies, and restored into an engine that lacks it.
        """
        self._session._info.check_open()  # noqa: SLF001
        check_order(messages)  # all else about them was checked when they were added to the conversation
        return self._session._prompt(messages, settings, name)  # noqa: SLF001

    async def ingest(self, name: str | None, messages: list[Message], *, typing: bool = False) -> int:
        """Evaluate what the next prompt will begin with; returns the tokens evaluated."""
        return await self._session._ingest(messages, name, typing=typing)  # noqa: SLF001

    @property
    def kv_folder(self) -> Path | None:
        """Where the KV of conversations is kept; None if it is not."""
        endpoint = self._session._server.endpoint  # noqa: SLF001
        launch = endpoint.launch if endpoint is not None else None
        return launch.kv_folder if launch is not None else None


def calls_of(session: Session) -> ConversationCalls:
    """The calls of a session that are for Chat, and not for its users."""
    return ConversationCalls(session)


def _make_server(options: Options) -> Server:
    if options.remote is None:
        return OwnedServer(options)
    from llmsession.session.server.remote import RemoteServer

    return RemoteServer(options)


def _with_request(settings: CallSettings, request: Any) -> CallSettings:
    return msgspec.structs.replace(settings, request=request)
