"""A server in this process that speaks OpenAI's chat API and nothing more: a field that it does not know is a 400."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STANDARD = {
    "model", "messages", "stream", "stream_options", "seed", "max_tokens", "stop", "temperature", "top_p",
    "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "user",
}  # fmt: skip


@dataclass
class Answer:
    """What it sends instead of a reply, byte by byte as it stands here."""

    body: bytes
    status: int = 200
    kind: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    later: tuple[bytes, ...] = ()  # what follows, each after a pause
    pause: float = 0.1


@dataclass
class FakeOpenAI:
    """How it behaves. `bodies` are the requests that it got; `answers` are sent to the first ones."""

    owned_by: str = "somebody"
    prefix: str = ""
    key: str | None = None
    pages: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # path: status, type, body
    delta_name: str = "content"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    loading: int = 0  # so many questions are answered with 503
    says_done: bool = True  # and how much was used
    lists_models: bool = True
    chats: bool = True

    answers: list[Answer] = field(default_factory=list)

    base_url: str = ""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAI
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: str, kind: str = "application/json") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}))

    def may_come_in(self) -> bool:
        self.fake.headers.append(dict(self.headers))
        if self.fake.loading:
            self.fake.loading -= 1
            self.refuse(503, "Loading model")
        elif self.fake.key is not None and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self.refuse(401, "Incorrect API key provided")
        elif not self.path.startswith(self.fake.prefix):
            self.refuse(404, "Not Found")
        else:
            return True
        return False

    def do_GET(self) -> None:
        if not self.may_come_in():
            return
        path = self.path.removeprefix(self.fake.prefix)
        if path in self.fake.pages:
            status, kind, body = self.fake.pages[path]
            self.answer(status, body, kind)
        elif path == "/v1/models" and self.fake.lists_models:
            entry = {"id": "gpt-tiny", "object": "model", "created": 1, "owned_by": self.fake.owned_by}
            self.answer(200, json.dumps({"object": "list", "data": [entry, entry | {"id": "gpt-other"}]}))
        else:
            self.refuse(404, "Not Found")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length))
        if not self.may_come_in():
            return
        if self.path.removeprefix(self.fake.prefix) != "/v1/chat/completions" or not self.fake.chats:
            self.refuse(404, "Not Found")
            return
        if "messages" not in body:
            self.refuse(400, "messages: field required")
            return
        self.fake.bodies.append(body)
        if self.fake.answers:
            self.say(self.fake.answers.pop(0))
            return
        if unknown := set(body) - STANDARD:
            self.refuse(400, f"Unrecognized request argument supplied: {min(unknown)}")
            return
        words = f"{body['model']} heard: {body['messages'][-1]['content']}".split(" ")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        for number, word in enumerate(words[: body.get("max_tokens", 1000)]):
            self.event({"delta": {self.fake.delta_name: word + " " * (number + 1 < len(words))}, "finish_reason": None})
        cut = len(words) > body.get("max_tokens", 1000)
        self.event({"delta": {}, "finish_reason": "length" if cut else "stop"})
        self.close_connection = True
        if not self.fake.says_done:
            return
        counts = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
        self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\ndata: [DONE]\n\n")

    def say(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, "Connection": "close", **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)
        for piece in answer.later:
            self.wfile.flush()
            time.sleep(answer.pause)
            self.wfile.write(piece)
        self.close_connection = True

    def event(self, choice: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def serve_openai(fake: FakeOpenAI, tls: ssl.SSLContext | None = None) -> Iterator[FakeOpenAI]:
    """Runs it on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls is not None else "http"
    fake.base_url = f"{scheme}://127.0.0.1:{server.server_address[1]}{fake.prefix}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
