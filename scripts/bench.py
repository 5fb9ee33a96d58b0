"""Speed, side by side in one run, as ratios: machines differ, and are shared. See scripts/bench --help."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benching.busy import measure_busy
from benching.cache import measure_cache
from benching.memory import measure_memory
from benching.scale import measure_scale

PROMPT = "count to 100"
TOKENS = 1000


def show(name: str, samples: dict[str, list[float]], unit: str, scale: float, against: str) -> None:
    """Each contender's median, and the median of its ratios to `against`, round by round."""
    for contender, values in samples.items():
        ratios = [value / other for value, other in zip(values, samples[against], strict=True)]
        print(
            f"{name}  {contender:<24} {statistics.median(values) * scale:9.2f} {unit}"
            f"   {statistics.median(ratios):5.2f} × {against}"
        )


def measure_client(backend: str, rounds: int) -> None:
    """P1: the client's own processor time for each streamed token, on one server, through the chat endpoint."""
    asyncio.run(_measure_client(backend, rounds))


async def _measure_client(backend: str, rounds: int) -> None:
    import openai

    from llmsession import Session

    samples: dict[str, list[float]] = {"llmsession": [], "openai": [], "raw socket": []}
    async with Session(backend=backend, threads=1, prompt_encoding="chat", context_length=2048) as session:
        peer = openai.AsyncOpenAI(base_url=f"{session.base_url}/v1", api_key=session.api_key)

        async def ours() -> int:
            count = 0
            async with session.prompt_streaming(PROMPT, max_tokens=TOKENS, extra={"ignore_eos": True}) as stream:
                async for _ in stream:
                    count += 1
            return count

        async def theirs() -> int:
            count = 0
            stream = await peer.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=TOKENS,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for chunk in stream:
                count += bool(chunk.choices and chunk.choices[0].delta.content)
            return count

        async def floor() -> int:
            return _read_raw(session.base_url, session.api_key)

        for contender in (ours, theirs, floor):  # imports and caches
            await contender()
        for _ in range(rounds):
            for name, contender in (("llmsession", ours), ("openai", theirs), ("raw socket", floor)):
                begun = time.process_time()
                count = await contender()
                samples[name].append((time.process_time() - begun) / count)
        await peer.close()
    show("P1", samples, "us a token", 1e6, "openai")


def _post(base_url: str, api_key: str, path: str, body: dict[str, Any]) -> socket.socket:
    address = urlsplit(base_url)
    content = json.dumps(body).encode()
    connection = socket.create_connection((address.hostname or "", address.port or 80))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key}\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + content)
    return connection


def _read_raw(base_url: str, api_key: str) -> int:
    """The floor: receive, and count the events."""
    messages = [{"role": "user", "content": PROMPT}]
    body = {"messages": messages, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    count = 0
    with _post(base_url, api_key, "/v1/chat/completions", body) as connection:
        while data := connection.recv(65536):
            count += data.count(b"data: ")
    return count


def measure_start(backend: str, rounds: int) -> None:
    """P2: from nothing to the first token, beside a bare Popen of the same command line with a look each 1 ms."""
    samples: dict[str, list[float]] = {"Session": [], "bare Popen": []}
    asyncio.run(_first_token(backend))  # what is only needed once: capabilities, caches, imports
    for _ in range(rounds):
        begun = time.perf_counter()
        command = asyncio.run(_first_token(backend))
        samples["Session"].append(command.pop("seconds"))
        samples["bare Popen"].append(_bare_first_token(command))
        del begun
    show(f"P2 {backend}", samples, "ms", 1e3, "bare Popen")
    cold = []
    code = (
        "import asyncio, sys\nfrom llmsession import Session\n"
        "async def main():\n"
        f" async with Session(backend={backend!r}, threads=1) as s, s.prompt_streaming('hello') as r:\n"
        "  print(await anext(aiter(r)), flush=True); import os; os._exit(0)\n"
        "asyncio.run(main())"
    )
    for _ in range(rounds):
        begun = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as cold_run:
            assert cold_run.stdout is not None
            cold_run.stdout.readline()
            cold.append(time.perf_counter() - begun)
    print(f"P2 {backend}  cold python -c to first token {statistics.median(cold):.3f} s")


async def _first_token(backend: str) -> dict[str, Any]:
    from llmsession import Session

    begun = time.perf_counter()
    async with Session(backend=backend, threads=1) as session:
        async with session.prompt_streaming("hello") as stream:
            await anext(aiter(stream))
            seconds = time.perf_counter() - begun
        child = session._info.endpoint.child  # noqa: SLF001 - the same command line is the point
        assert child is not None
    command = child.command
    return {"seconds": seconds, "argv": command.argv, "env": command.env, "greeting": command.greeting}


def _bare_first_token(command: dict[str, Any]) -> float:
    from llmsession.backends.probes import find_address

    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "out"), Path(folder, "log")
        begun = time.perf_counter()
        with out.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(
                command["argv"], env=command["env"], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, bufsize=0
            )
        try:
            assert process.stdin is not None
            greeting = command["greeting"]
            if greeting:  # the embedded engine checks who its parent is: the one that wrote this
                process.stdin.write(greeting)
            while (address := find_address(log.read_bytes())) is None:
                time.sleep(0.001)
            key = command["env"].get("LLAMA_API_KEY") or json.loads(greeting)["api_key"]
            while True:
                with _post(address, key, "/completion", {
                    "prompt": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", "stream": True,
                }) as connection:  # fmt: skip
                    if b"data: " in connection.recv(65536) + connection.recv(65536):
                        return time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


def measure_import(backend: str, rounds: int) -> None:
    """P3: processor time of `import llmsession` beside `import openai`, less that of an empty Python."""
    del backend
    samples: dict[str, list[float]] = {"import llmsession": [], "import openai": []}

    def run(code: str) -> float:
        begun = os.times().children_user + os.times().children_system
        subprocess.run([sys.executable, "-c", code], check=True)
        return os.times().children_user + os.times().children_system - begun

    for _ in range(rounds):
        empty = min(run("pass") for _ in range(3))
        for name, values in samples.items():
            values.append(max(1e-3, run(name) - empty))
    show("P3", samples, "ms", 1e3, "import openai")


def measure_stop(backend: str, rounds: int) -> None:
    """P8: seconds of aclose() with ten replies in flight on four slots."""
    seconds = [asyncio.run(_close_with_ten(backend)) for _ in range(rounds)]
    worst = max(seconds)
    print(f"P8 {backend}  aclose() with 10 replies in flight {statistics.median(seconds):.3f} s, at most {worst:.3f} s")


async def _close_with_ten(backend: str) -> float:
    from llmsession import ClosedError, Session

    async with Session(backend=backend, threads=1, context_length=2048) as session:
        begun = asyncio.Event()

        async def read() -> None:
            try:
                async with session.prompt_streaming(PROMPT, extra={"ignore_eos": True}) as stream:
                    async for _ in stream:
                        begun.set()
            except ClosedError:
                pass

        readers = [asyncio.create_task(read()) for _ in range(10)]
        await begun.wait()
        before = time.perf_counter()
        await session.aclose()
        seconds = time.perf_counter() - before
        await asyncio.gather(*readers)
    return seconds


MEASURES: dict[str, Callable[[str, int], None]] = {
    "client": measure_client,
    "start": measure_start,
    "import": measure_import,
    "stop": measure_stop,
    "busy": measure_busy,
    "memory": measure_memory,
    "cache": measure_cache,
    "scale": measure_scale,
}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="*",
        choices=[[], *MEASURES],
        help="client (P1), start (P2), import (P3), stop (P8), busy (P9), memory (P6), cache (P4, P5), scale; all",
    )
    parser.add_argument("--backend", default="embedded", help="embedded or llama-server (embedded)")
    parser.add_argument("--rounds", type=int, default=7, help="of each contender, in turn (7)")
    arguments = parser.parse_args()
    for what in arguments.what or MEASURES:
        MEASURES[what](arguments.backend, arguments.rounds)


if __name__ == "__main__":
    main()
