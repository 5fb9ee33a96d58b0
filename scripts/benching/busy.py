"""P9: tokens a second of two streams while another process keeps one core busy, beside a plain `llama-server -m FILE`.

Its default is a thread for each core, and OpenMP threads that spin while they wait for one that has no core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

STREAMS = 2
SECONDS = 6.0
PROMPT = "<|im_start|>user\ncount to 100<|im_end|>\n<|im_start|>assistant\n"
BODY = {"prompt": PROMPT, "stream": True, "ignore_eos": True, "n_predict": 1500}


def measure_busy(backend: str, rounds: int) -> None:
    """Both in turn, round by round."""
    from llmsession.backends.find import find_llama_server
    from llmsession.models.bundled import bundled_path
    from llmsession.system.paths import cache_folder

    found = find_llama_server(None, cache_folder())
    if found is None:
        print("P9  not measured: there is no llama-server to be compared with", file=sys.stderr)
        return
    rates: dict[str, list[float]] = {backend: [], "plain llama-server": []}
    with _busy_core():
        for _ in range(rounds):
            rates[backend].append(asyncio.run(_rate_of_ours(backend)))
            rates["plain llama-server"].append(_rate_of_plain(found.path, bundled_path()))
    ratio = statistics.median(ours / plain for ours, plain in zip(*rates.values(), strict=True))
    for name, values in rates.items():
        print(f"P9  {name:<24} {statistics.median(values):9.1f} tokens/s")
    print(
        f"P9  {backend} {ratio:.0f} × plain llama-server, {STREAMS} streams on {os.cpu_count()} cores, one of them busy"
    )


@contextlib.contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _rate_of_ours(backend: str) -> float:
    from llmsession import Session

    async with Session(backend=backend, context_length=2048) as session:  # threads as it chooses them
        return await _rate(session.base_url, session.api_key)


def _rate_of_plain(binary: Path, model: Path) -> float:
    with plain_server(binary, model) as address:
        return asyncio.run(_rate(address, ""))


@contextlib.contextmanager
def plain_server(binary: Path, model: Path, *flags: str) -> Iterator[str]:
    """A bare engine, and where it listens."""
    from llmsession.backends.probes import find_address

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [str(binary), "-m", str(model), "--port", "0", *flags], stdout=subprocess.DEVNULL, stderr=stderr
            )
        try:
            deadline = time.monotonic() + 120
            while (address := find_address(log.read_bytes())) is None:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(log.read_text()[-2000:])
                time.sleep(0.05)
            yield address
        finally:
            process.kill()
            process.wait()


async def _rate(base_url: str, key: str) -> float:
    """Tokens a second of all streams together, each a raw socket: the client is not part of this."""
    counts = [0] * STREAMS
    end = time.monotonic() + SECONDS

    async def read(number: int) -> None:
        while time.monotonic() < end:
            async for data in _stream(base_url, key, end):
                counts[number] += data.count(b"data: ")

    await asyncio.gather(*[read(number) for number in range(STREAMS)])
    return sum(counts) / SECONDS


async def _stream(base_url: str, key: str, end: float) -> AsyncIterator[bytes]:
    host, port = base_url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(BODY).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + content)
    try:
        while (left := end - time.monotonic()) > 0:
            try:
                data = await asyncio.wait_for(reader.read(65536), left)
            except TimeoutError:
                return
            if not data:
                return
            yield data
    finally:
        writer.transport.abort()
