"""Session: one server for one model, and the calls that are sent to it.

    Session ── ServerInfo, Tokenizer          facts, health, metrics; tokens, counts, prompts in pieces
       ├── Server                             OwnedServer starts, watches and restarts an engine; RemoteServer attaches
       └── Replies                            makes every reply, for the public calls here and for Chat
             ├── make_settings                keywords → CallSettings, checked once
             ├── RequestBuilder               messages → Request: by an encoding, the chat endpoint, or raw text
             └── ReplyStream ── Attempt       waits for a slot (Scheduler) and the server, sends, resumes
                                  └── KvCache restores a conversation's KV before the request, saves it after

A session holds no task and no cancel scope between calls, so it may be opened in one task or event loop and closed in
another.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from llmsession.processes.child import CLOSE_BOUND
from llmsession.session.config.options import Options, make_options
from llmsession.session.replies import Replies
from llmsession.session.requests.builder import RequestBuilder
from llmsession.session.requests.settings import GenerateKeywords
from llmsession.session.server.owned import OwnedServer
from llmsession.session.server_info import ServerInfo
from llmsession.session.tokenizer import Tokenizer
from llmsession.system.service_thread import later
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import UsageError
from llmsession.types.message_input import MessagesLike

if TYPE_CHECKING:
    from llmsession.models.encoding import PromptEncoding
    from llmsession.models.gguf import ModelInfo
    from llmsession.session.server.server import Server
    from llmsession.types.inspection import PromptPiece
    from llmsession.wire.metrics import Metrics, Slot
    from llmsession.wire.reply import ReplyStream

_numbers = itertools.count(1)
# Fields of `extra` that change how a reply reports its slot.
_REPORTING = frozenset({"verbose", "return_progress"})


class Session:
    """A server for one model, which runs inside `async with Session(…)`, or from `await Session.open(…)` to `aclose`.

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
        self._replies = Replies(options, self._info, self._builder)

    # Opening and closing.

    @classmethod
    async def open(cls, options_or_model: Options | str | Path | None = None, **fields: Any) -> Self:
        """Open a session and wait until its server is ready. The caller must call `aclose`.

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
        """End every reply with ClosedError, and stop the server, within about 1.5 s, even when cancelled.

        It may be called in any state, from any task, thread or event loop, any number of times.
        """
        if self._pid != os.getpid():
            return  # a forked copy owns no server, and lacks the threads that may have held the locks
        self._server.refuse_starts()
        begun = time.monotonic()
        await self._replies.aclose()  # what it takes to save KV, the exit of the engine has less
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
        self._replies.active.end_all(lambda: StopReason.INTERRUPTED)

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
        return self._replies.prompt(self._builder.read(messages), self._replies.make_settings(keywords))

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
        return self._replies.generate(text_or_token_ids, self._replies.make_settings(keywords))

    async def ingest(self, messages_or_text: MessagesLike, *, typing: bool = False) -> int:
        """Evaluate messages or text into the engine's cache, for a prompt that will begin with them.

        Returns the number of tokens evaluated. A `str` is raw text, as in `generate`; a list is what `prompt` would
        send. A list that ends with the assistant is evaluated up to where the next turn begins; with `typing`, up to
        the end of a user's unfinished text. The call waits for a slot as a reply does. If `interrupt()` ends it, it
        returns 0.

        Raises: what `prompt` raises.
        """
        return await self._replies.ingest(messages_or_text, typing=typing)

    # Tokens.

    async def tokenize(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Return the token ids of a text.

        `special`: spellings of special tokens in it mean those tokens. `bos`, `eos`: add these tokens around it.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(lambda: self._tokenizer.tokenize(text, bos=bos, eos=eos, special=special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens are spelled out; incomplete characters become U+FFFD.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(lambda: self._tokenizer.detokenize(ids))

    async def count_tokens(self, messages_or_text: MessagesLike) -> int:
        """Return the exact number of tokens of context. A `str` is raw text, a list is what `prompt` would send.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(lambda: self._tokenizer.count_tokens(messages_or_text))

    async def render_template(self, messages: MessagesLike) -> str:
        """Render messages with the model's own template. Special tokens spelled in their texts are not escaped.

        Raises: UsageError, UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(lambda: self._tokenizer.render_template(messages))

    async def inspect_prompt(self, messages: MessagesLike) -> list[PromptPiece]:
        """Return exactly what `prompt` would send, in pieces: role, control or text, and token ids of each.

        For a list that ends with the assistant, return what the next prompt will begin with.

        Raises: UsageError, UnsupportedFeatureError (also for images), TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(lambda: self._tokenizer.inspect_prompt(messages))

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
        return await self._info.outlive(self._info.get_metrics)

    async def get_slots(self) -> list[Slot]:
        """Return the state of each slot of the server.

        Raises: UnsupportedFeatureError, TransportError, ServerError, ClosedError.
        """
        return await self._info.outlive(self._info.get_slots)

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
        """The largest useful `top_logprobs`: the size of the vocabulary; 0 if that is not known."""
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


def replies_of(session: Session) -> Replies:
    """Return the part of a session that Chat shares with it."""
    return session._replies  # noqa: SLF001 - it is not for users of the session


def _make_server(options: Options) -> Server:
    if options.remote is None:
        return OwnedServer(options)
    from llmsession.session.server.remote import RemoteServer

    return RemoteServer(options)
