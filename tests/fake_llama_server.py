"""A stand-in for llama-server that misbehaves on request. Standard library only.

It speaks a part of the real one: --help, child mode on stdin and stdout, /health, /props, /slots, /metrics, /v1/models,
/tokenize, and /completion and /v1/chat/completions as streams of "word1 word2 …". How it misbehaves stands in the
variable FAKE, since a session writes its command line; `wrapper` makes a program of it that a session can be given.
"""

from __future__ import annotations

import argparse
import http.server
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STATE = "cmd_child_to_router:state:"
HELP = """\
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set model name aliases
--host HOST                             IP addresses to listen on
--port PORT                             port to listen
-np,   --parallel N                     number of server slots
-c,    --ctx-size N                     size of the prompt context
-t,    --threads N                      number of threads
-tb,   --threads-batch N                number of threads for batches
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
-lm,   --load-mode MODE                 model loading mode
--metrics                               enable prometheus compatible metrics endpoint
"""
GPU_HELP = """\
-dev,  --device DEVICES                 devices to use
-ngl,  --gpu-layers N                   layers to store in VRAM
"""


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
    parser.add_argument("--hang-after-tokens", type=int, metavar="N", help="health stays ok, the slots stand still")
    parser.add_argument("--moving-slots", action="store_true")
    parser.add_argument("--idle-slots", action="store_true")
    parser.add_argument("--other-words", action="store_true", help="say others than usual")
    parser.add_argument("--once", metavar="FILE", help="misbehave only while this is there, and remove it")
    parser.add_argument("--hang-help", action="store_true")
    parser.add_argument("--die-after-tokens", type=int, metavar="N")
    parser.add_argument("--exit-code", type=int, default=7)
    parser.add_argument("--token-delay", type=float, default=0.0)
    parser.add_argument("--port-taken-times", metavar="FILE")
    parser.add_argument("--only-health", choices=["404", "hang", "nonsense"])
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--devices", metavar="FILE", help="what it prints to --list-devices; it then knows GPU flags")
    parser.add_argument("--play", metavar="NAME")  # an old server: see played_servers
    parser.add_argument("--tell", metavar="FILE")  # where a played one writes what it was asked
    return parser.parse_args(arguments)


def words_so_far(asked: dict[str, Any]) -> int:
    """How many of the words are said already in what it is to go on from."""
    last = asked["messages"][-1] if "messages" in asked else {"role": "assistant", "content": asked["prompt"]}
    said = last["content"] if last["role"] == "assistant" else ""
    found = re.search(r"word(\d+) $", said if isinstance(said, str) else "")
    return int(found[1]) if found is not None else 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the engine does."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    ready = threading.Event()
    decoded = 0

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Health, facts and counts."""
        if not self.ready.is_set():
            return self.answer({"error": {"code": 503, "message": "Loading model"}}, 503)
        if self.path == "/health":
            return self.answer({"status": "ok"})
        if self.options.only_health == "hang":
            time.sleep(3600)
        if self.options.only_health == "404":
            return self.answer({"error": {"code": 404, "message": "File Not Found"}}, 404)
        if self.options.only_health == "nonsense":
            return self.answer(b"<html>It works!</html>")
        if self.path == "/props":
            return self.answer(
                {"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4, "build_info": "fake", "ui": False}
            )
        if self.path == "/slots":
            options = self.options
            working = self.decoded > 0 and not options.idle_slots
            busy: dict[str, Any] = {"id": 0, "n_ctx": 2048, "is_processing": working, "id_task": 1}
            Handler.decoded += options.moving_slots
            busy["next_token"] = [{"n_decoded": self.decoded}]
            return self.answer([busy] + [{"id": number, "n_ctx": 2048, "is_processing": False} for number in (1, 2, 3)])
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
        if self.path.endswith("/input_tokens"):
            return self.answer({"input_tokens": 5})
        if self.path == "/apply-template":
            return self.answer({"prompt": "".join(message["content"] or "" for message in asked["messages"])})
        if self.path not in ("/completion", "/v1/chat/completions"):
            return self.answer({"error": {"code": 404, "message": "File Not Found"}}, 404)
        if self.options.hang_stream:
            time.sleep(3600)
        if self.path == "/completion" and not asked.get("stream"):
            words = "".join(f"word{number} " for number in range(1, self.options.tokens + 1))
            return self.answer({"content": words, "stop": True, "stop_type": "eos"})
        self.say_words(asked)
        return None

    def say_words(self, asked: dict[str, Any]) -> None:
        """The stream of them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path == "/v1/chat/completions"
        begin = words_so_far(asked)
        if self.options.die_after_tokens == 0:
            os._exit(self.options.exit_code)
        for number in range(begin + 1, self.options.tokens + 1):
            time.sleep(self.options.token_delay)
            word = f"{'other' if self.options.other_words else 'word'}{number} "
            if chat:
                self.send({"choices": [{"delta": {"content": word}, "finish_reason": None}]})
            else:
                self.send({"content": word, "tokens_predicted": number - begin, "tokens_evaluated": 5 + begin})
            Handler.decoded += 1
            if number == self.options.hang_after_tokens:
                time.sleep(3600)
            if number == self.options.die_after_tokens:
                os._exit(self.options.exit_code)
        tokens = self.options.tokens - begin
        if chat:
            self.send({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self.send({"choices": [], "usage": {"prompt_tokens": 5 + begin, "completion_tokens": tokens}})
            self.chunk(b"data: [DONE]\n\n")
        else:
            self.send({"stop": True, "stop_type": "eos", "tokens_predicted": tokens, "tokens_evaluated": 5 + begin})
        self.chunk(b"")

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


def describe(options: argparse.Namespace) -> str | None:
    """What it says of itself and then ends; None where it was not asked."""
    if "--help" in sys.argv:
        if options.hang_help:
            time.sleep(3600)
        router = "" if options.no_child_mode else "--models-max N                          for router server\n"
        return HELP + router + (GPU_HELP if options.devices else "")
    if "--version" in sys.argv:
        return "version: 1 (fake)\n"
    if "--list-devices" in sys.argv:
        return Path(options.devices).read_text() if options.devices else "Available devices:\n  (none)\n"
    return None


def main() -> None:
    """Load, listen, serve."""
    options = parse(shlex.split(os.environ.get("FAKE", "")))
    if options.play is not None:
        sys.path.insert(0, str(Path(__file__).parent))
        importlib.import_module("played_servers").main(options.play, options.tell)
        return
    if (said := describe(options)) is not None:
        print(said, end="")
        return
    if options.once is not None:
        if Path(options.once).exists():
            Path(options.once).unlink()
        else:
            options = parse(["--tokens", str(options.tokens)])
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
