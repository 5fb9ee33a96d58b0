"""Server-sent events from bytes. No I/O.

Lines end at CR, LF or CRLF and nowhere else: a JSON string may hold U+2028 as it is.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from llmsession.types.errors import UndecodableError

# One frame holds one token, or the settings of a whole reply with its prompt; beyond this it is not an event stream.
LARGEST_LINE = 64_000_000


class Decoder:
    """Bytes in, in pieces of any size; the data of whole events out."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that these bytes complete. Comments and empty events give nothing."""
        if not self._buffer and not self._data:
            # As llama-server sends it, a chunk is just one event with one line.
            if (
                chunk.startswith(b"data: ")
                and chunk.endswith(b"\n\n")
                and chunk.count(b"\n") == 2
                and b"\r" not in chunk
            ):
                return [chunk[6:-2]]
        elif len(self._buffer) > LARGEST_LINE:
            raise UndecodableError("the server sent a line without end", payload=self._buffer[:1000])
        buffer = self._buffer + chunk
        # A CR at the very end may be half of a CRLF.
        held = b"\r" if buffer.endswith(b"\r") else b""
        lines = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = lines.pop() + held
        events = []
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"error":  # of old servers, which send it like this; today's are data with that key
            self._data.append(b'{"error":' + value.removeprefix(b" ") + b"}")
