"""Server-sent events from bytes. No I/O.

Lines end at CR, LF or CRLF and nowhere else: a JSON string may hold U+2028 as it is.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import msgspec

from llmsession.types.errors import UndecodableError

# One frame holds one token, or the settings of a whole reply with its prompt; beyond this it is not an event stream.
LARGEST_LINE = 64_000_000


_BOM = b"\xef\xbb\xbf"
# Events of these names carry what an event without a name does.
_PLAIN_NAMES = frozenset({b"", b"message", b"completion", b"chunk", b"delta", b"data"})


class Decoder:
    """Splits bytes, in chunks of any size, into the data of whole events."""

    def __init__(self) -> None:
        self._buffer = b""
        self._parts: list[bytes] = []  # of a line that goes on, joined once at its end
        self._size = 0
        self._data: list[bytes] = []
        self._name = b""
        self._is_at_start = True
        self._is_whole = False
        self.foreign_line = b""
        """The first line that no event stream has: what a server says instead of one."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that this chunk completes. Comments and empty events give none."""
        if not self._buffer and not self._parts and not self._data and not self._name:
            # As llama-server sends it, a chunk is just one event with one line.
            if (
                chunk.startswith(b"data: ")
                and chunk.endswith(b"\n\n")
                and chunk.count(b"\n") == 2
                and b"\r" not in chunk
                and len(chunk) > 8
            ):
                self._is_at_start = False
                return [chunk[6:-2]]
        elif self._size > LARGEST_LINE:
            raise UndecodableError("the server sent a line without end", payload=self._buffer[:1000])
        elif self._is_whole or not (self._is_at_start or self._ends_a_line(chunk)):
            self._parts.append(chunk)
            self._size += len(chunk)
            return []
        buffer = b"".join((self._buffer, *self._parts, chunk))
        self._parts, self._size = [], 0
        if self._is_at_start:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._buffer = buffer
                return []
            self._is_at_start, buffer = False, buffer.removeprefix(_BOM)
            self._is_whole = buffer.lstrip().startswith(b"{")
        if self._is_whole:  # an answer in JSON, which is one event
            self._buffer = buffer
            return []
        return self._take_lines(buffer)

    def _ends_a_line(self, chunk: bytes) -> bool:
        return b"\n" in chunk or b"\r" in chunk or self._buffer.endswith(b"\r")

    def finish(self) -> list[bytes]:
        """Return the data of the last event if the stream ends without the empty line after it."""
        rest, self._buffer, self._parts = b"".join((self._buffer, *self._parts)), b"", []
        if self._is_whole:
            return [rest] if rest else []
        return self._take_lines(rest + b"\n\n") if rest or self._data else []

    def _take_lines(self, buffer: bytes) -> list[bytes]:
        # A CR at the very end may be half of a CRLF.
        held = b"\r" if buffer.endswith(b"\r") else b""
        lines = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = lines.pop() + held
        events = []
        for line in lines:
            if line:
                self._take(line)
                continue
            if self._data and (event := _read_event(self._name, b"\n".join(self._data))):
                events.append(event)
            self._data, self._name = [], b""
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._name = value.strip().lower()
        elif name == b"error":  # of old servers, which send it like this; today's are data with that key
            self._data.append(b'{"error":' + value.removeprefix(b" ") + b"}")
        elif name not in (b"", b"id", b"retry") and not self.foreign_line:
            self.foreign_line = line[:300]


def _read_event(name: bytes, data: bytes) -> bytes:
    """Return the data as an unnamed event has it; empty if the event is not about the reply, such as a `ping`."""
    data = data.strip()
    if name == b"error" and b'"error"' not in data:
        return (
            b'{"error":'
            + (data if data.startswith((b"{", b'"')) else msgspec.json.encode(data.decode(errors="replace")))
            + b"}"
        )
    if name not in _PLAIN_NAMES and not data.startswith((b"{", b"[DONE]")):
        return b""
    return data
