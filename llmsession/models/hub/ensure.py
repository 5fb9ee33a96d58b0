"""Finds or downloads a model's file.

A cached file is used without asking the hub, so a program starts without a network; only `refresh` asks whether a
branch has moved. https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from llmsession.models.hub.cache import find_cached, find_snapshot, hub_cache, is_offline, is_readable
from llmsession.models.hub.protocol import DownloadRequest, Report
from llmsession.models.references import HEAD, SCHEME, PackedFileRef, PackedRepoRef, understand
from llmsession.models.registry import Registry
from llmsession.models.registry_file import load_known_llms
from llmsession.models.safetensors import is_whole
from llmsession.system.service_thread import run_in_thread
from llmsession.types import errors
from llmsession.types.errors import FetchError, OfflineError, UnknownModelError
from llmsession.types.progress import Progress, ProgressCallback, Speedometer

if TYPE_CHECKING:
    from anyio.abc import Process

# What the transformers backend needs of a repository, and a fine-tuning.
WEIGHTS = ("*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "merges.txt", "vocab.txt")

# The process tells the names of at most some thousand files.
LONGEST_LINE = 1 << 22
# A process that was killed is gone in milliseconds, unless it hangs in a disk of the network.
KILLED_WITHIN = 5.0

StopCallback = Callable[[Callable[[], None]], None]


async def ensure_model(
    ref: str,
    *,
    hf_token: str | None = None,
    offline: bool | None = None,
    on_progress: ProgressCallback | None = None,
    registry: str | Path | None = None,
    refresh: bool = False,
    on_start: StopCallback | None = None,
) -> Path:
    """Return the file of a reference or an alias, downloaded if missing; for a split model, the first shard.

    `offline` None: use HF_HUB_OFFLINE. `refresh` asks the hub even if the file is cached. `on_start` receives a
    function that ends the download from any thread. Cancelling ends it at once; what has arrived is kept. Raises
    UnknownModelError, InvalidRefError and FetchError.
    """
    file = resolve_ref(ref, load_known_llms(registry))
    cached = await run_in_thread(find_cached, file)
    damaged = cached is not None and not await run_in_thread(is_readable, cached)
    if cached is not None and not damaged and not refresh:
        return cached
    if is_offline(offline):
        if cached is not None and not damaged:
            return cached
        state = "is damaged in the cache" if damaged else "is not in the cache"
        raise OfflineError(f"{file} {state}, and this is offline (offline= or HF_HUB_OFFLINE): fetch it once online")
    request = DownloadRequest(
        repo_id=file.repo_id, revision=file.revision, file=file.basename, token=hf_token, recheck=damaged
    )
    try:
        return (await _fetch(request, on_progress, on_start))[0]
    except FetchError as error:
        if cached is not None and not damaged and type(error) is FetchError:  # the hub is away, or in trouble
            return cached
        raise


async def ensure_weights(
    ref: PackedRepoRef,
    *,
    revision: str = HEAD,
    hf_token: str | None = None,
    offline: bool | None = None,
    on_progress: ProgressCallback | None = None,
    on_start: StopCallback | None = None,
) -> Path:
    """A folder with the safetensors, the tokenizer and the configuration of a repository. Raises FetchError.

    `on_start` is given a function that ends the download from any thread.
    """
    folder = await run_in_thread(find_snapshot, ref.repo_id, revision)
    if folder is not None and await run_in_thread(is_whole, folder):
        return folder
    if is_offline(offline):
        raise OfflineError(f"{ref} is not in the cache, and this is offline: fetch it once online")
    request = DownloadRequest(repo_id=ref.repo_id, revision=revision, patterns=WEIGHTS, token=hf_token)
    paths = await _fetch(request, on_progress, on_start)
    return Path(os.path.commonpath([path.parent for path in paths]))


def resolve_ref(ref: str, registry: Registry) -> PackedFileRef:
    """Return a reference as it is; for an alias, with or without `:quantization`, its file.

    Raises UnknownModelError.
    """
    known = registry.find(ref) if not ref.startswith(SCHEME) else None
    if known is None:
        ref = understand(ref)
    if ref.startswith(SCHEME):
        return PackedFileRef(ref)
    if known is None:
        near = registry.suggest(ref)
        hint = f"did you mean {', '.join(near)}?" if near else "`llmsession models list` shows those that there are;"
        raise UnknownModelError(
            f"no model is called {ref!r}: {hint} a .gguf file of your own is given by its path, "
            "one on Hugging Face by hf:author/repo/HEAD/file",
            candidates=near,
        )
    return known.file_ref(ref.partition(":")[2] or None)


# The process.


async def _fetch(
    request: DownloadRequest, on_progress: ProgressCallback | None, on_start: StopCallback | None
) -> list[Path]:
    """Run the download process and return the paths. Raises FetchError; the process has ended in any case."""
    speedometer = Speedometer()
    with tempfile.TemporaryFile() as said:
        process = await _spawn(said)
        try:
            if on_start is not None:
                on_start(functools.partial(_kill, process))
            assert process.stdin is not None  # noqa: S101 - both were asked for
            assert process.stdout is not None  # noqa: S101
            await process.stdin.send(msgspec.json.encode(request) + b"\n")
            lines = BufferedByteReceiveStream(process.stdout)
            while True:
                report = msgspec.json.decode(await lines.receive_until(b"\n", LONGEST_LINE), type=Report)
                if report.error:
                    raise _error_of(report)
                if report.paths:
                    return [Path(path) for path in report.paths]
                if on_progress is not None:
                    speed = speedometer.measure(report.done)
                    on_progress(Progress(stage="download", done=report.done, total=report.total, speed=speed))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it has ended: its last words say why
        finally:
            _kill(process)
            with anyio.move_on_after(KILLED_WITHIN, shield=True):
                await process.aclose()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise FetchError(
            f"the download of {request.repo_id} ended ({words or process.returncode}); it goes on next time"
        )


async def _spawn(said: BinaryIO) -> Process:
    package = str(Path(__file__).parents[3])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "HF_HUB_CACHE": str(hub_cache()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    argv = [sys.executable, "-P", "-X", "faulthandler", str(Path(__file__).with_name("worker.py"))]
    return await anyio.open_process(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us: we end it
    )


def _kill(process: Process) -> None:
    """Kill the process, from any thread, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _error_of(report: Report) -> FetchError:
    kind: Any = getattr(errors, report.kind, FetchError)
    return kind(report.error, **report.details) if issubclass(kind, FetchError) else FetchError(report.error)
