"""Replies: makes every reply of a session, for its public calls and for Chat."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.session.requests.attempt import Attempt
from llmsession.session.requests.scheduler import Scheduler
from llmsession.session.requests.settings import CallSettings, GenerateKeywords, make_settings
from llmsession.types.errors import ClosedError, UsageError
from llmsession.types.message_input import MessagesLike, check_order
from llmsession.types.messages import Message, Role
from llmsession.wire.readable import ActiveReplies

if TYPE_CHECKING:
    from llmsession.session.config.options import Options
    from llmsession.session.kv.cache import CachedTurn, KvCache
    from llmsession.session.requests.builder import RequestBuilder
    from llmsession.session.requests.completion import Request
    from llmsession.session.server_info import ServerInfo
    from llmsession.wire.reply import ReplyStream

_numbers = itertools.count(1)
# Fields of `extra` that change how a reply reports its slot.
_REPORTING = frozenset({"verbose", "return_progress"})


class Replies:
    """The replies of one session: those in progress, the slots that they wait for, and the KV kept of conversations."""

    def __init__(self, options: Options, info: ServerInfo, builder: RequestBuilder) -> None:
        self._options = options
        self._info = info
        self._server = info.server
        self._builder = builder
        self._scheduler = Scheduler(info.server.parallel)
        self._lock = threading.Lock()
        self._kv: KvCache | None = None
        self.active = ActiveReplies()

    def make_settings(self, keywords: GenerateKeywords) -> CallSettings:
        """Check the keywords of a call, and return its settings. Raises UsageError, UnsupportedFeatureError."""
        settings = make_settings(keywords, self._options, self._server.model.sampling)
        request = settings.request
        if request.stop_ids:
            self._info.require("token_ids")
        if self._kv is not None and _REPORTING.isdisjoint(request.extra):
            return _with_request(settings, msgspec.structs.replace(request, reports_slot=True))
        return settings

    def prompt(self, turns: list[Message], settings: CallSettings, conversation: str | None = None) -> ReplyStream:
        """Return a stream of the reply to messages that the builder has read.

        `conversation`: the name under which the conversation's KV is kept on disk: saved after the reply, and restored
        into an engine that lacks it. None if it is not kept.
        """
        encoding = self._builder.find_encoding(turns)
        if encoding is not None:
            settings = _with_request(settings, settings.request.with_own_stops(encoding.stop))
        turn, settings = self._track(conversation, turns, settings)
        return self._stream(self._builder.prompt(turns, encoding, settings.request), settings, turn)

    def generate(self, text_or_token_ids: str | Sequence[int], settings: CallSettings) -> ReplyStream:
        """Return a stream that continues raw text or token ids. Raises UsageError, UnsupportedFeatureError."""
        self._info.require("completion")
        return self._stream(self._builder.raw(text_or_token_ids, settings.request), settings)

    async def ingest(
        self, messages_or_text: MessagesLike, conversation: str | None = None, *, typing: bool = False
    ) -> int:
        """Evaluate what a later prompt will begin with; returns the number of tokens evaluated. See Session.ingest."""
        self._info.check_open()
        self._info.require("completion")
        settings, turn = self.make_settings({"max_tokens": 1, "temperature": 0.0}), None
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
            active=self.active,
        )

    # For Chat, whose messages were checked when they were added to the conversation.

    def check(self, keywords: GenerateKeywords) -> CallSettings:
        """Check the keywords of a call for a text-only prompt, and return its settings.

        Raises UsageError, UnsupportedFeatureError, ClosedError.
        """
        self._info.check_open()
        settings = self.make_settings(keywords)
        self._builder.check(settings.request)
        return settings

    def reply_to(self, conversation: str | None, messages: list[Message], settings: CallSettings) -> ReplyStream:
        """Return a stream of the reply to messages. `conversation`: see `prompt`. Raises ClosedError."""
        self._info.check_open()
        check_order(messages)
        return self.prompt(messages, settings, conversation)

    @property
    def kv_folder(self) -> Path | None:
        """The folder in which the KV of conversations is kept; None if it is not kept."""
        endpoint = self._server.endpoint
        launch = endpoint.launch if endpoint is not None else None
        return launch.kv_folder if launch is not None else None

    async def aclose(self) -> None:
        """End every reply with ClosedError, and save the KV of the last ones if that is quick."""
        self.active.end_all(lambda: ClosedError("the session was closed"))
        if self._kv is not None:
            await self._kv.aclose()


def _with_request(settings: CallSettings, request: Any) -> CallSettings:
    return msgspec.structs.replace(settings, request=request)
