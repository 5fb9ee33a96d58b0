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

from llmsession.admission import Admission
from llmsession.completion import Completion, StopReason
from llmsession.engine_options import choose_scales
from llmsession.errors import (
    ClosedError,
    LLMSessionError,
    UnsupportedFeatureError,
    UsageError,
)
from llmsession.lora import Lora
from llmsession.messages import Message, MessagesLike, Role, as_messages, is_unicode, with_data_urls
from llmsession.options import Options, make_options
from llmsession.reply_source import ReplySource
from llmsession.sampling import Sampling
from llmsession.server import Server
from llmsession.server_facts import ServerFacts
from llmsession.system_prompt import render_system_prompt

if TYPE_CHECKING:
    from llmsession.asking import Ask
    from llmsession.backends.backend import Endpoint
    from llmsession.remote_server import RemoteServer
    from llmsession.wire.reply import ReplyStream
    from llmsession.wire.request import GenerationRequest

_numbers = itertools.count(1)


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


class Session(ServerFacts):
    """A server for one model, from `async with` (or `open`) to its end (or `aclose`).

    Whatever happens to this program, the server does not outlive it.
    """

    def __init__(self, options_or_model: Options | str | Path | None = None, **fields: Any) -> None:
        self._opened = False
        self._options = make_options(options_or_model, fields)
        self._server = _make_server(self._options)
        self._admission = Admission(self._server.parallel)
        self._lock = threading.Lock()
        self._replies: set[Endable] = set()

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
        self._check_open()
        turns = self._read_messages(messages)
        encoding = self._server.model.encoding
        if any(turn.images for turn in turns):
            self._check_sight()
        elif encoding is not None:
            self._require("completion")
            request = self._make_request(keywords, encoding.stop)
            from llmsession.asking import AskEncoded

            return self._stream(AskEncoded(self._server, encoding.encode(turns), request), request, keywords)
        from llmsession.asking_chat import AskChat

        request = self._make_request(keywords)
        self._check_chat(request)
        return self._stream(AskChat(self._server, turns, request, self._features), request, keywords)

    def _check_chat(self, request: GenerationRequest) -> None:
        from llmsession.wire.openai_api import find_beyond_openai
        from llmsession.wire.transformers_api import find_unsupported

        find = find_unsupported if "generation_config" in self._features else find_beyond_openai
        if "sampling" not in self._features and (beyond := find(request)) is not None:
            self._refuse(beyond)
        if request.top_logprobs is not None and "sampling" in self._features:
            self._require("chat_logprobs")
        if request.reply_start:
            from llmsession.asking_chat import check_start

            check_start(request, self._endpoint)

    def _check_sight(self) -> None:
        """Of an engine of ours it is known; a remote one says so itself."""
        if self._options.remote is None and self._options.mmproj is None:
            raise UnsupportedFeatureError(
                f"{self.model} was opened without a projector, so it cannot see: give its file with mmproj=",
                feature="images",
                backend=self.backend,
            )

    def _read_messages(self, messages: MessagesLike) -> list[Message]:
        """As they are sent: with images read, and the system prompt's `{now}` and `{model}` filled in."""
        turns = with_data_urls(as_messages(messages))
        if turns[0].role is Role.SYSTEM:
            turns[0] = msgspec.structs.replace(
                turns[0], content=render_system_prompt(turns[0].content, model=self.model)
            )
        return turns

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
        from llmsession.asking import AskRaw

        self._check_open()
        self._require("completion")
        request = self._make_request(keywords)
        return self._stream(AskRaw(self._server, _check_prompt(text_or_token_ids), request), request, keywords)

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
        return request

    def _stream(self, ask: Ask, request: GenerationRequest, keywords: GenerateKeywords) -> ReplyStream:
        from llmsession.wire.completion_api import EventDecoder
        from llmsession.wire.patience import Limits
        from llmsession.wire.reply import ReplyStream

        timeout = keywords.get("timeout")
        if timeout is not None and not timeout > 0:
            raise UsageError(f"timeout is a number of seconds above 0, not {timeout!r}")
        source = ReplySource(self._server, self._admission, ask, decoder=EventDecoder(request))
        reply = ReplyStream(
            source,
            request,
            id=f"reply-{os.getpid()}-{next(_numbers)}",
            limits=Limits(
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

    # Tokens.

    async def tokenize(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of a text. `special`: spellings of special tokens in it mean those; `bos`, `eos`: around it."""
        endpoint = await self._ready()
        self._require("tokens")
        ids = await _tokenize(endpoint, _check_text(text), add_special=False, special=special)
        if not special and "plain_tokens" not in endpoint.features:
            vocabulary = await (await self._server.prompt_writer(endpoint)).learn([text])
            if vocabulary.find(text) and not vocabulary.special.keys().isdisjoint(ids):
                self._refuse("way to tokenize the spelling of a special token as text (special=True gives that token)")
        return [
            *([self._special_token("bos")] if bos else []),
            *ids,
            *([self._special_token("eos")] if eos else []),
        ]

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens by their spelling. Parts of characters become U+FFFD."""
        from llmsession.wire import completion_api

        endpoint = await self._ready()
        self._require("tokens")
        size = self._server.info.vocab_size if self._server.info is not None else None
        for id_ in ids:
            if not _is_token_id(id_) or (size is not None and id_ >= size):
                raise UsageError(
                    f"{id_!r} is no token id: they go from 0" + (f" to {size - 1}" if size else " upwards")
                )
        answer = await endpoint.client.post("/detokenize", msgspec.json.encode({"tokens": list(ids)}))
        return completion_api.decode_text(answer)

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """How many tokens of context it takes, exactly. A `str` is raw text, a list what `prompt` would send."""
        from llmsession.wire import openai_api

        endpoint = await self._ready()
        if isinstance(messages_or_text, str):
            self._require("tokens")
            return len(await _tokenize(endpoint, _check_text(messages_or_text), add_special=True, special=True))
        turns = self._read_messages(messages_or_text)
        encoding = self._server.model.encoding
        if any(turn.images for turn in turns):
            self._check_sight()
        elif encoding is not None:
            self._require("tokens")
            written = await (await self._server.prompt_writer(endpoint)).write(encoding.encode(turns))
            if isinstance(written.prompt, list):
                return len(written.prompt)
            return len(await _tokenize(endpoint, written.prompt, add_special=True, special=True))
        self._require("chat_count")
        if not any(turn.images for turn in turns):
            from llmsession.backends.chat_prompt import ChatWriter

            writer = ChatWriter(await self._server.prompt_writer(endpoint), endpoint.client, model=self.model, extra={})
            if (found := await writer.write(turns)) is not None:
                return len(found.prompt)
        body = openai_api.encode_count(turns, model=self._server.model.name)
        return openai_api.decode_count(await endpoint.client.post(openai_api.COUNT_PATH, body))

    async def render_template(self, messages: MessagesLike) -> str:
        """What the model's own template makes of messages: to be looked at, since spellings in it are as they were."""
        from llmsession.wire import openai_api

        endpoint = await self._ready()
        self._require("template")
        body = openai_api.encode_template(self._read_messages(messages), model=self.model)
        return openai_api.decode_template(await endpoint.client.post(openai_api.TEMPLATE_PATH, body))

    def _special_token(self, name: str) -> int:
        token = self.special_tokens[name]
        if token is None:
            raise UsageError(f"this model has no {name} token")
        return token


def _make_server(options: Options) -> Server | RemoteServer:
    if options.remote is None:
        return Server(options)
    from llmsession.remote_server import RemoteServer

    return RemoteServer(options)


async def _tokenize(endpoint: Endpoint, text: str, *, add_special: bool, special: bool) -> list[int]:
    from llmsession.wire import completion_api

    body = completion_api.encode_tokenize(text, add_special=add_special, parse_special=special)
    return completion_api.decode_tokens(await endpoint.client.post("/tokenize", body))


def _check_text(text: object) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a text is a str, not {type(text).__name__}")
    if not is_unicode(text):
        raise UsageError('the text holds a lone surrogate, which UTF-8 cannot: decode the input with errors="replace"')
    return text


def _check_prompt(prompt: str | Sequence[int]) -> str | list[int]:
    if isinstance(prompt, str):
        if not prompt:
            raise UsageError("there is nothing to go on from: give some text, or token ids")
        return _check_text(prompt)
    ids = list(prompt)
    if not ids or not all(_is_token_id(id_) for id_ in ids):
        raise UsageError("a prompt is text, or a list of token ids that is not empty")
    return ids


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
