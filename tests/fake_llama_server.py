"""A stand-in for llama-server that misbehaves on request. Standard library only.

It speaks a part of the real one: --help, child mode on stdin and stdout, /health, /props, /slots, /metrics, /v1/models,
/tokenize, and /completion and /v1/chat/completions as streams of "word1 word2 …". How it misbehaves stands in the
variable FAKE, since a session writes its command line; `wrapper` makes a program of it that a session can be given.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STATE = "cmd_child_to_router:state:"
HELP = (
    "--model --alias --host --port --parallel --ctx-size --threads --threads-batch --metrics --batch-size --ubatch-size"
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Our own flags."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--progress-every", type=float, default=0.0)
    parser.add_argument("--die-while-loading", type=int, metavar="CODE")
    parser.add_argument("--hang-before-listening", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--ignore-stdin", action="store_true")
    parser.add_argument("--no-child-mode", action="store_true")
    parser.add_argument("--grandchild", action="store_true")
    parser.add_argument("--hang-stream", action="store_true")
    parser.add_argument("--hang-help", action="store_true")
    parser.add_argument("--die-after-tokens", type=int, metavar="N")
    parser.add_argument("--exit-code", type=int, default=7)
    parser.add_argument("--token-delay", type=float, default=0.0)
    parser.add_argument("--port-taken-times", metavar="FILE")
    parser.add_argument("--tokens", type=int, default=3)
    return parser.parse_args(arguments)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the engine does."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    ready = threading.Event()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Health, facts and counts."""
        if not self.ready.is_set():
            return self.answer({"error": {"code": 503, "message": "Loading model"}}, 503)
        if self.path == "/health":
            return self.answer({"status": "ok"})
        if self.path == "/props":
            return self.answer({"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4, "build_info": "fake"})
        if self.path == "/slots":
            return self.answer([{"id": number, "n_ctx": 2048, "is_processing": False} for number in range(4)])
        if self.path == "/metrics":
            return self.answer(b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 0\n")
        if self.path == "/v1/models":
            return self.answer({"object": "list", "data": [{"id": "fake", "object": "model"}]})
        return self.answer({"error": {"code": 404, "message": "File Not Found"}}, 404)

    def do_POST(self) -> None:
        """A stream of words, and tokens: each byte is one."""
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path == "/tokenize":
            return self.answer({"tokens": list(asked["content"].encode())})
        if self.path not in ("/completion", "/v1/chat/completions"):
            return self.answer({"error": {"code": 404, "message": "File Not Found"}}, 404)
        if self.options.hang_stream:
            time.sleep(3600)
        if self.path == "/completion" and not asked.get("stream"):
            words = "".join(f"word{number} " for number in range(1, self.options.tokens + 1))
            return self.answer({"content": words, "stop": True, "stop_type": "eos"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path == "/v1/chat/completions"
        for number in range(1, self.options.tokens + 1):
            time.sleep(self.options.token_delay)
            word = f"word{number} "
            if chat:
                self.send({"choices": [{"delta": {"content": word}, "finish_reason": None}]})
            else:
                self.send({"content": word, "tokens_predicted": number, "tokens_evaluated": 5})
            if number == self.options.die_after_tokens:
                os._exit(self.options.exit_code)
        tokens = self.options.tokens
        if chat:
            self.send({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self.send({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
            self.chunk(b"data: [DONE]\n\n")
        else:
            self.send({"stop": True, "stop_type": "eos", "tokens_predicted": tokens, "tokens_evaluated": 5})
        self.chunk(b"")
        return None

    def send(self, frame: dict[str, Any]) -> None:
        """One event."""
        self.chunk(b"data: " + json.dumps(frame).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        """As the engine sends a stream, so that a death in the middle can be told from an end: an empty one."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def answer(self, body: dict[str, Any] | list[Any] | bytes, status: int = 200) -> None:
        """One value, or a text."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def say(state: str, **payload: Any) -> None:
    """A line for the parent."""
    print(STATE + json.dumps({"state": state, "payload": payload}), flush=True)


def watch_stdin() -> None:
    """End with it, or on the order to."""
    for line in sys.stdin.buffer:
        if line.startswith(b"cmd_router_to_child:exit"):
            os._exit(0)
    os._exit(1)


def misbehave(options: argparse.Namespace) -> None:
    """Before it listens."""
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.grandchild:  # it keeps our stdout and stderr open
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        print("grandchild", grandchild.pid, file=sys.stderr, flush=True)
    child_mode = "LLAMA_SERVER_ROUTER_PORT" in os.environ and not options.no_child_mode
    if child_mode and not options.ignore_stdin:
        threading.Thread(target=watch_stdin, daemon=True).start()
    print("loading", file=sys.stderr, flush=True)
    if options.port_taken_times and Path(options.port_taken_times).exists():
        Path(options.port_taken_times).unlink()
        print("couldn't bind HTTP server socket", file=sys.stderr, flush=True)
        sys.exit(1)
    if options.die_while_loading is not None:
        print("the model is made of cheese", file=sys.stderr, flush=True)
        os._exit(options.die_while_loading)
    if options.hang_before_listening:
        time.sleep(3600)


def main() -> None:
    """Load, listen, serve."""
    options = parse(shlex.split(os.environ.get("FAKE", "")))
    if "--help" in sys.argv:
        if options.hang_help:
            time.sleep(3600)
        print(HELP, "" if options.no_child_mode else "--models-max")
        return
    misbehave(options)
    port = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 0
    Handler.options = options
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        sys.exit("couldn't bind HTTP server socket")
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    begun = time.monotonic()
    step = options.progress_every or options.ready_after or 0.01
    while options.never_ready or time.monotonic() - begun < options.ready_after:
        time.sleep(step)
        if options.progress_every:
            say("loading", value=(time.monotonic() - begun) / options.ready_after)
    Handler.ready.set()
    print(f"listening on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    say("ready")
    while True:
        time.sleep(3600)


def wrapper(folder: Path, flags: str = "") -> Path:
    """A program that is this one with these flags, to be named as server_path."""
    path = folder / "llama-server"
    script = shlex.join([sys.executable, "-I", "-S", str(Path(__file__))])
    path.write_text(f'#!/bin/sh\nFAKE={shlex.quote(flags)} exec {script} "$@"\n')
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    main()
