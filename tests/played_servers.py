"""Old servers, played from what is known of them: bodies under fixtures/servers, each naming its source.

Nothing here was recorded from a running build: what they show is that we speak as those notes say, and no more. They
answer "word1 word2 …"; each byte is a token, and the spellings of ChatML's two are one each. Standard library only, so
that it runs as a program (fake_llama_server --play) and in a thread (`serve_played`).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent / "fixtures" / "servers"
# What the option --play takes, and the file of each.
NAMES = {
    "b4100": "llama-server-b4100",
    "llamafile-0.8": "llamafile-0.8",
    "llamafile-0.9": "llamafile-0.9",
    "llamafile-0.10": "llamafile-0.10",
}
SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
_PARTS = re.compile("|".join(map(re.escape, SPECIAL)))


@dataclass
class Played:
    """One of them, and how it was started. `requests` are those that it got."""

    name: str
    tokens: int = 3
    has_slots: bool = True
    has_metrics: bool = True
    shifts_context: bool = True
    is_busy: bool = False
    key: str | None = None
    tell: Path | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    base_url: str = ""

    def __post_init__(self) -> None:
        self.bodies: dict[str, Any] = json.loads((FIXTURES / f"{NAMES[self.name]}.json").read_text(encoding="utf-8"))

    @property
    def context(self) -> int:
        """Of a slot."""
        return int(self.bodies["props"]["default_generation_settings"]["n_ctx"])

    def remember(self, path: str, body: dict[str, Any]) -> None:
        """Also for a test that is another process."""
        self.requests.append((path, body))
        if self.tell is not None:
            with self.tell.open("a", encoding="utf-8") as file:
                file.write(json.dumps([path, body]) + "\n")


def tokenize(text: str, *, special: bool = True) -> list[int]:
    """Bytes; with the special ones by their spelling."""
    ids: list[int] = []
    at = 0
    for found in _PARTS.finditer(text) if special else ():
        ids += [*text[at : found.start()].encode(), SPECIAL[found[0]]]
        at = found.end()
    return [*ids, *text[at:].encode()]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the played one would."""

    protocol_version = "HTTP/1.1"
    played: Played

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Health, facts and counts."""
        bodies, path = self.played.bodies, self.path
        if path not in bodies["public"] and not self.has_key():
            return self.answer(*bodies["wrong_key"])
        if path == "/health":
            return self.answer(*bodies["busy" if self.played.is_busy and "busy" in bodies else "ready"])
        if path == "/props":
            return self.answer(200, bodies["props"])
        if path == "/v1/models":
            return self.answer(200, {"object": "list", "data": [{"id": "played", "owned_by": "llamacpp"}]})
        if path == "/slots":
            return self.answer(200, bodies["slots"]) if self.played.has_slots else self.answer(*bodies["without_slots"])
        if path == "/metrics":
            found = self.played.has_metrics
            return self.answer(200, bodies["metrics"]) if found else self.answer(*bodies["without_metrics"])
        return self.answer(*bodies["unknown"])

    def do_POST(self) -> None:
        """Replies and tokens."""
        bodies, path = self.played.bodies, self.path
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if path not in bodies["pages"] and not bodies["key_before_page"]:
            return self.answer(*bodies["unknown"])
        if path not in bodies["public"] and not self.has_key():
            return self.answer(*bodies["wrong_key"])
        if path not in bodies["pages"]:
            return self.answer(*bodies["unknown"])
        self.played.remember(path, asked)
        if path == "/tokenize":
            return self.answer(200, {"tokens": self.tokens_of(asked)})
        if path == "/detokenize":
            return self.answer(200, {"content": bytes(asked["tokens"]).decode(errors="replace")})
        if path == "/apply-template":
            return self.answer(200, {"prompt": render(asked["messages"])})
        return self.reply(asked, chat=path != "/completion")

    def has_key(self) -> bool:
        """Whether the right one was sent."""
        return self.played.key is None or self.headers.get("Authorization") == f"Bearer {self.played.key}"

    def tokens_of(self, asked: dict[str, Any]) -> list[Any]:
        """What it does not know of the request, it passes over."""
        knows = self.played.bodies["tokenize"]
        special = asked.get("parse_special", True) if "parse_special" in knows else True
        ids = tokenize(asked["content"], special=special)
        if not (asked.get("with_pieces") and "with_pieces" in knows):
            return list(ids)
        spellings = {id_: spelling for spelling, id_ in SPECIAL.items()}
        return [
            {"id": id_, "piece": spellings[id_] if id_ in spellings else [id_] if id_ > 127 else chr(id_)}
            for id_ in ids
        ]

    def reply(self, asked: dict[str, Any], *, chat: bool) -> None:
        """A stream of words, to the limit or to a stop phrase."""
        bodies = self.played.bodies
        prompt = render(asked["messages"]) if chat else asked["prompt"]
        count = len(tokenize(prompt)) if isinstance(prompt, str) else len(prompt)
        is_too_long = count >= self.played.context
        modern = "stop_type" in bodies["final"]
        if is_too_long and modern:
            return self.answer(400, {"error": bodies["too_long"]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if is_too_long and not self.played.shifts_context:
            self.chunk(b"error: " + json.dumps(bodies["too_long"]).encode() + b"\n\n")
            return self.chunk(b"")
        limit = asked.get("max_tokens" if chat else "n_predict") or -1
        words = [f"word{number} " for number in range(1, self.played.tokens + 1)]
        words, reason, phrase = cut(words, limit, asked.get("stop", []))
        for number, word in enumerate(words, 1):
            self.send({**bodies["partial"], **self.count(number, count, modern), **self.probs(asked, word)}, word, chat)
        final = {**bodies["final"], "tokens_predicted": len(words), "tokens_evaluated": count, "stopping_word": phrase}
        final |= {"stop_type": reason} if modern else {f"stopped_{name}": name == reason for name in STOPS}
        final["truncated"] = is_too_long
        if not chat:
            self.chunk(b"data: " + json.dumps(final).encode() + b"\n\n")
            return self.chunk(b"")
        self.event({"choices": [{"delta": {}, "finish_reason": "length" if reason == "limit" else "stop"}]})
        if bodies["says_done"]:
            self.chunk(b"data: [DONE]\n\n")
        return self.chunk(b"")

    def count(self, number: int, prompt: int, modern: bool) -> dict[str, Any]:
        """Old ones count at the end only."""
        return {"tokens_predicted": number, "tokens_evaluated": prompt} if modern else {}

    def probs(self, asked: dict[str, Any], word: str) -> dict[str, Any]:
        """In the old shape."""
        if not asked.get("n_probs"):
            return {}
        likely = [{"tok_str": word, "prob": 0.5}, {"tok_str": "other", "prob": 0.25}][: asked["n_probs"]]
        return {"completion_probabilities": [{"content": word, "probs": likely}]}

    def send(self, frame: dict[str, Any], word: str, chat: bool) -> None:
        """A word."""
        self.event(
            {"choices": [{"delta": {"content": word}, "finish_reason": None}]} if chat else {**frame, "content": word}
        )

    def event(self, frame: dict[str, Any]) -> None:
        """As data."""
        self.chunk(b"data: " + json.dumps(frame).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        """Of a body without a length; an empty one ends it."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def answer(self, status: int, body: Any) -> None:
        """JSON, or text as it is."""
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


STOPS = ("eos", "word", "limit")


def cut(words: list[str], limit: int, phrases: list[str]) -> tuple[list[str], str, str]:
    """The words that are sent, why it ends there, and the phrase that ended it."""
    text = "".join(words)
    places = [(text.find(phrase), phrase) for phrase in phrases if phrase in text]
    if places:
        at, phrase = min(places)
        kept = text[:at]
        return (
            [f"{word} " if number < kept.count(" ") else word for number, word in enumerate(kept.split(" ")) if word],
            "word",
            phrase,
        )
    if 0 < limit < len(words):
        return words[:limit], "limit", ""
    return words, "eos", ""


def render(messages: list[dict[str, Any]]) -> str:
    """ChatML."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"


@contextlib.contextmanager
def serve_played(played: Played) -> Iterator[Played]:
    """On a free port of this machine, in a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"played": played}))
    server.daemon_threads = True
    played.base_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield played
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main(name: str, tell: str | None) -> None:
    """As a program with the command line of the played build: a flag that this has not ends it, as it would there."""
    played = Played(name, key=os.environ.get("LLAMA_API_KEY"), tell=Path(tell) if tell else None)
    played.has_slots, played.has_metrics, played.shifts_context = False, False, True
    words = sys.argv[1:]
    help_text = (FIXTURES / f"{NAMES[name]}.help.txt").read_text(encoding="utf-8")
    if "--help" in words:
        print(help_text.partition("\n")[2], end="")
        return
    if "--version" in words:
        print(played.bodies["version"], file=sys.stderr)
        return
    port = 0
    lines = {
        flag: line for line in help_text.splitlines() for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line[:40])
    }
    while words:
        flag = words.pop(0)
        if flag not in lines:
            sys.exit(f"error: invalid argument: {flag}")
        value = words.pop(0) if re.search(r"-[a-z-]+ [A-Z{]", lines[flag][:45]) else ""
        port = int(value) if flag == "--port" else port
        played.has_slots |= flag == "--slots"
        played.has_metrics |= flag == "--metrics"
        played.shifts_context &= flag != "--no-context-shift"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"played": played}))
    server.daemon_threads = True
    server.serve_forever(poll_interval=0.02)
