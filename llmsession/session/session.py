"""Session: the front door. It owns one server, and everything that is asked of it.

It holds no task and no cancel scope between calls: it may be opened in one task or event loop and closed in another.
"""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypedDict, Unpack

import msgspec

from llmsession.session.config.options import Options, make_options
from llmsession.session.requests.attempt import Attempt
from llmsession.session.requests.scheduler import Scheduler
from llmsession.session.server.owned import Server
from llmsession.session.tokenizer import TokenFacts, check_text, is_token_id
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import ClosedError, LLMSessionError, UsageError
from llmsession.types.lora import Lora, choose_scales
from llmsession.types.message_input import MessagesLike
from llmsession.types.messages import Message, Role
from llmsession.types.sampling import Sampling

if TYPE_CHECKING:
    from llmsession.session.kv.cache import CachedTurn, KvCache
    from llmsession.session.requests.completion import Request
    from llmsession.session.server.remote import RemoteServer
    from llmsession.wire.reply import ReplyStream
    from llmsession.wire.request import GenerationRequest

_numbers = itertools.count(1)
# Fields by which a request tells its slot.
_KEEPING = frozenset({"verbose", "return_progress"})


class GenerateKeywords(TypedDict, total=False):
    """What a reply may be asked with; None means "not given".

    `max_tokens`: None for as many as the context holds. `seed`: None or 0 to have one drawn. `stop`: a phrase, or a
    collection of phrases and token ids. `top_logprobs`: None for no log-probabilities, 0 for each token's own, k for
    k alternatives as well. `reply_start`: what the reply begins with: a part of its text, which comes first in a
    stream, and for `max_tokens` and `usage` a part of the prompt; stop phrases, seeds and a grammar in `extra` are for
    what follows it. `lora`: which of the session's adapters count, and how much; None for all of them as the
    session has them, an empty list for none. `timeout`: seconds for the whole call, waiting included. `extra` goes
    into the request as it is.
    """

    max_tokens: int | None
    seed: int | None
    temperature: float | None
    sampling: Sampling | None
    stop: str | Collection[str | int]
    echo_stop: bool
    reply_start: str
    top_logprobs: int | None
    lora: Sequence[Lora | str | Path] | None
    timeout: float | None
    extra: Mapping[str, Any] | None


class Endable(Protocol):
    """What waits for a reply."""

    def end(self, verdict: StopReason | LLMSessionError) -> None:
        """End it with that; the first verdict counts. Thread-safe, never blocks."""


class Session(TokenFacts):
    """A server for one model, from `async with` (or `open`) to its end (or `aclose`).

    Whatever happens to this program, the server does not outlive it.
    """

    def __init__(self, options_or_model: Options | str | Path | None = None, **fields: Any) -> None:
        self._opened = False
        self._options = make_options(options_or_model, fields)
        self._server = _make_server(self._options)
        self._scheduler = Scheduler(self._server.parallel)
        self._lock = threading.Lock()
        self._replies: set[Endable] = set()
        self._kv: KvCache | None = None

    # Opening and closing.

    @classmethod
    async def open(cls, options_or_model: Options | str | Path | None = None, **fields: Any) -> Self:
        """Make one and have its server ready; the caller calls `aclose`."""
        session = cls(options_or_model, **fields)
        return await session.__aenter__()

    async def __aenter__(self) -> Self:
        if self._opened:
            raise UsageError("a session is opened once: make another")
        self._opened = True
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
        """End every reply with ClosedError, and the server: at most about 1.5 s, also when cancelled.

        In any state, from any task, thread or event loop, any number of times.
        """
        self._server.refuse_starts()
        self._end_replies(lambda: ClosedError("the session was closed"))
        if self._kv is not None:
            await self._kv.aclose()
        await self._server.aclose()

    def __del__(self) -> None:
        if self._opened and not self._server.is_closed:
            warnings.warn(f"{self!r} was never closed: use `async with`", ResourceWarning, stacklevel=1, source=self)
            self._server.close_soon()

    def interrupt(self) -> None:
        """End every reply, and every call that waits for one, with INTERRUPTED and the text so far. Any thread."""
        self._end_replies(lambda: StopReason.INTERRUPTED)

    def _end_replies(self, make_verdict: Callable[[], StopReason | LLMSessionError]) -> None:
        with self._lock:
            replies = list(self._replies)
        for reply in replies:
            reply.end(make_verdict())

    # Replies.

    async def prompt(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> Completion:
        """Reply to a conversation; a `str` is a user turn. Any LLMSessionError that ends it carries its `partial`."""
        async with self.prompt_streaming(messages, **keywords) as stream:
            return await stream.result()

    def prompt_streaming(self, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]) -> ReplyStream:
        """The same as a stream: `async with` it. Raises UsageError at once where the call is wrong."""
        return self._prompt(messages, keywords)

    def stream_for(
        self, conversation: str | None, messages: MessagesLike, **keywords: Unpack[GenerateKeywords]
    ) -> ReplyStream:
        """The same for a conversation that may be kept on disk, by its name, if it has one: for Chat.

        What the engine has read of it is saved beside replies, and given back to an engine that has not read it.
        """
        return self._prompt(messages, keywords, conversation)

    @property
    def kv_folder(self) -> Path | None:
        """Where what the engine has read of conversations is kept; None where nothing is."""
        endpoint = self._server.endpoint
        launch = endpoint.launch if endpoint is not None else None
        return launch.kv_folder if launch is not None else None

    def _prompt(
        self, messages: MessagesLike, keywords: GenerateKeywords, conversation: str | None = None
    ) -> ReplyStream:
        self._check_open()
        turns = self._read_messages(messages)
        encoding = self._server.model.encoding
        if any(turn.images for turn in turns):
            self._check_sight()
        elif encoding is not None:
            self._require("completion")
            request = self._make_request(keywords, encoding.stop)
            from llmsession.session.requests.completion import EncodedRequest

            turn, request = self._begin_turn(conversation, turns, request)
            return self._stream(EncodedRequest(self._server, encoding.encode(turns), request), request, keywords, turn)
        from llmsession.session.requests.chat import ChatRequest

        request = self._make_request(keywords)
        self._check_chat(request)
        turn, request = self._begin_turn(conversation, turns, request)
        return self._stream(ChatRequest(self._server, turns, request, self._features), request, keywords, turn)

    def _begin_turn(
        self, conversation: str | None, turns: list[Message], request: GenerationRequest, *, only_reads: bool = False
    ) -> tuple[CachedTurn | None, GenerationRequest]:
        """Where it may be kept: what the cache is told of it."""
        kept = self._options.remote is None and self._options.kv_cache_bytes > 0 and "slots" in self._features
        kept = kept and _KEEPING.isdisjoint(request.extra)
        if conversation is None or not kept or any(turn.images for turn in turns):
            return None, request
        from llmsession.session.kv.cache import CachedTurn, KvCache

        with self._lock:
            if self._kv is None:
                self._kv = KvCache(self._options.kv_cache_bytes, is_idle=lambda: self._scheduler.is_idle)
        turn = CachedTurn(conversation, turns, only_reads=only_reads)
        return turn, msgspec.structs.replace(request, reports_slot=True)

    def _check_chat(self, request: GenerationRequest) -> None:
        from llmsession.wire.openai_api import find_beyond_openai
        from llmsession.wire.transformers_api import find_unsupported

        find = find_unsupported if "generation_config" in self._features else find_beyond_openai
        if "sampling" not in self._features and (beyond := find(request)) is not None:
            self._refuse(beyond)
        if request.top_logprobs is not None and "sampling" in self._features:
            self._require("chat_logprobs")
        if request.reply_start:
            from llmsession.session.requests.chat import check_start

            check_start(request, self._endpoint)

    async def ingest(self, messages_or_text: MessagesLike, *, typing: bool = False) -> int:
        """Evaluate it into the cache, for a prompt that will begin so; the tokens that this took, the cached ones not.

        A `str` is raw text, as in `generate`; a list is what `prompt` would send. One that ends with the assistant is
        read up to where the next turn will stand; with `typing`, up to the end of a user's text that may go on. It
        waits for a slot as a reply does. Ended by `interrupt()`, it is 0.
        """
        return await self._ingest(messages_or_text, None, typing=typing)

    async def ingest_for(self, conversation: str | None, messages: MessagesLike, *, typing: bool = False) -> int:
        """The same for a conversation that may be kept on disk: see `stream_for`."""
        return await self._ingest(messages, conversation, typing=typing)

    async def _ingest(self, messages_or_text: MessagesLike, conversation: str | None, *, typing: bool) -> int:
        self._check_open()
        self._require("completion")
        keywords: GenerateKeywords = {"max_tokens": 1, "temperature": 0.0}
        request, turn = self._make_request(keywords), None
        if conversation is not None:
            turns = self._read_messages(messages_or_text, reply=False)
            turn, request = self._begin_turn(conversation, turns, request, only_reads=True)
        call = self._build_prefix(messages_or_text, request, typing)
        async with self._stream(call, request, keywords, turn) as stream:
            return (await stream.result()).timings.prompt.count

    def _build_prefix(self, messages_or_text: MessagesLike, request: GenerationRequest, typing: bool) -> Request:  # noqa: FBT001
        from llmsession.prompts.next_turn import encode_next
        from llmsession.session.requests.chat import ChatRequest, PrefixRequest
        from llmsession.session.requests.completion import EncodedRequest, RawRequest

        if isinstance(messages_or_text, str):
            if typing:
                raise UsageError("typing=True is for a list that ends with a user's text, not for raw text")
            return RawRequest(self._server, _check_prompt(messages_or_text), request)
        turns = self._read_messages(messages_or_text, reply=False)
        if typing and turns[-1].role is not Role.USER:
            raise UsageError("typing=True is for a list that ends with a user's text")
        encoding = self._server.model.encoding
        has_images = any(turn.images for turn in turns)
        if turns[-1].role in (Role.USER, Role.TOOL) and not typing:
            if has_images:
                self._check_sight()
            elif encoding is not None:
                return EncodedRequest(self._server, encoding.encode(turns), request)
            return ChatRequest(self._server, turns, request, self._features)
        if has_images:
            self._refuse("way to read a part of a conversation with images")
        if encoding is not None:
            parts = encode_next(encoding, turns, typing=typing)
            return EncodedRequest(self._server, [piece for _, pieces in parts for piece in pieces], request)
        self._require("template")
        self._require("pieces")
        return PrefixRequest(self._server, turns, request, typing=typing)

    async def generate(
        self, text_or_token_ids: str | Sequence[int], **keywords: Unpack[GenerateKeywords]
    ) -> Completion:
        """Go on from raw text or token ids: no template, and the spellings of special tokens in the text mean those."""
        async with self.generate_streaming(text_or_token_ids, **keywords) as stream:
            return await stream.result()

    def generate_streaming(
        self, text_or_token_ids: str | Sequence[int], **keywords: Unpack[GenerateKeywords]
    ) -> ReplyStream:
        """The same as a stream."""
        from llmsession.session.requests.completion import RawRequest

        self._check_open()
        self._require("completion")
        request = self._make_request(keywords)
        return self._stream(RawRequest(self._server, _check_prompt(text_or_token_ids), request), request, keywords)

    def _make_request(self, keywords: GenerateKeywords, own_stops: tuple[str, ...] = ()) -> GenerationRequest:
        from llmsession.wire.request import GenerationRequest

        unknown = sorted(set(keywords) - set(GenerateKeywords.__annotations__))
        if unknown:
            raise UsageError(
                f"{', '.join(unknown)}: no such keyword; there are {', '.join(GenerateKeywords.__annotations__)}"
            )
        sampling = self._server.model.sampling.merge(self._options.sampling or Sampling())
        if (given := keywords.get("sampling")) is not None:
            sampling = sampling.merge(given)
        if (temperature := keywords.get("temperature")) is not None:
            sampling = sampling.merge(Sampling(temperature=temperature))
        request = GenerationRequest.make(
            max_tokens=keywords.get("max_tokens"),
            seed=keywords.get("seed"),
            sampling=sampling,
            stop=keywords.get("stop", ()),
            own_stops=own_stops,
            echo_stop=keywords.get("echo_stop", False),
            reply_start=keywords.get("reply_start", ""),
            top_logprobs=keywords.get("top_logprobs"),
            lora_scales=choose_scales(self._options.lora, keywords.get("lora")),
            extra=keywords.get("extra"),
        )
        if request.stop_ids:
            self._require("token_ids")
        kept = self._kv is not None and _KEEPING.isdisjoint(request.extra)
        return msgspec.structs.replace(request, reports_slot=True) if kept else request

    def _stream(
        self,
        call: Request,
        request: GenerationRequest,
        keywords: GenerateKeywords,
        turn: CachedTurn | None = None,
    ) -> ReplyStream:
        from llmsession.wire.completion_api import EventDecoder
        from llmsession.wire.reply import ReplyStream
        from llmsession.wire.timeouts import TimeoutSettings

        timeout = keywords.get("timeout")
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout is a number of seconds above 0, not {timeout!r}")
        source = Attempt(self._server, self._scheduler, call, decoder=EventDecoder(request), kv=self._kv, turn=turn)
        reply = ReplyStream(
            source,
            request,
            id=f"reply-{os.getpid()}-{next(_numbers)}",
            limits=TimeoutSettings(
                first_token=self._options.first_token_timeout, idle=self._options.idle_timeout, total=timeout
            ),
        )
        source.on_open = lambda: self.remember(reply)
        source.on_over = lambda: self.forget(reply)
        return reply

    def remember(self, reply: Endable) -> None:
        """Have it ended by `interrupt` and `aclose`, until it is forgotten."""
        with self._lock:
            self._replies.add(reply)

    def forget(self, reply: Endable) -> None:
        """It is over."""
        with self._lock:
            self._replies.discard(reply)


def _make_server(options: Options) -> Server | RemoteServer:
    if options.remote is None:
        return Server(options)
    from llmsession.session.server.remote import RemoteServer

    return RemoteServer(options)


def _check_prompt(prompt: str | Sequence[int]) -> str | list[int]:
    if isinstance(prompt, str):
        if not prompt:
            raise UsageError("there is nothing to go on from: give some text, or token ids")
        return check_text(prompt)
    ids = list(prompt)
    if not ids or not all(is_token_id(id_) for id_ in ids):
        raise UsageError("a prompt is text, or a list of token ids that is not empty")
    return ids
