"""EventDecoder: the interface for decoding the stream of either API."""

from __future__ import annotations

from typing import Protocol

from llmsession.types.completion import Usage
from llmsession.types.events import Delta, Ended


class EventDecoder(Protocol):
    """Decodes the stream of either API."""

    @property
    def usage(self) -> Usage:
        """The usage that is known so far."""
        ...

    @property
    def error(self) -> bytes | None:
        """An error frame, if one has arrived."""
        ...

    @property
    def slot(self) -> int | None:
        """The slot of the server that generates the reply, once it is reported."""
        ...

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event of the stream."""
        ...

    def end(self) -> Ended | None:
        """Return the end of the reply if the stream ended after a finished reply; None if the reply was cut."""
        ...


class Unopened:
    """The decoder of a reply whose stream has not started: nothing is known yet."""

    usage = Usage()
    error: bytes | None = None
    slot: int | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Never called: there is no stream to decode."""
        raise NotImplementedError(payload)

    def end(self) -> Ended | None:
        """Return None: the reply is not finished."""
        return None
