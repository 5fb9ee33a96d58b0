"""EventDecoder: what each API offers to read its stream."""

from __future__ import annotations

from typing import Protocol

from llmsession.types.completion import Usage
from llmsession.types.events import Delta, Ended


class EventDecoder(Protocol):
    """What both APIs offer to read their stream."""

    @property
    def usage(self) -> Usage:
        """What is known of it by now."""
        ...

    @property
    def error(self) -> bytes | None:
        """An error frame that came."""
        ...

    @property
    def slot(self) -> int | None:
        """The slot of the server that it came from, once that was said."""
        ...

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """What one event of the stream says."""
        ...

    def end(self) -> Ended | None:
        """What it means that the stream is over, if the reply had been finished by then."""
        ...


class Unopened:
    """The decoder of a reply whose stream has not begun: nothing is known of it."""

    usage = Usage()
    error: bytes | None = None
    slot: int | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Never called: there is no stream to decode."""
        raise NotImplementedError(payload)

    def end(self) -> Ended | None:
        """The reply is not finished."""
        return None
