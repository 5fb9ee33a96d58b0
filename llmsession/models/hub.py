"""A model's file on this disk, from Hugging Face: from its cache at once, else fetched by a process of its own.

What is in the cache is used without a word to the hub, so that a program starts where there is no network; only
`refresh` asks whether a branch has moved on. https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
import anyio.to_thread
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from llmsession import errors
from llmsession.errors import FetchError, InvalidModelError, OfflineError, UnknownModelError
from llmsession.models import hub_child
from llmsession.models.gguf import read_model_info
from llmsession.models.quantization import SUFFIX, find_meant, list_models, list_shards
from llmsession.models.references import HEAD, SCHEME, PackedFileRef, PackedRepoRef
from llmsession.models.registry import KnownLLM, Registry, load_known_llms
from llmsession.models.safetensors import is_whole
from llmsession.progress import Progress, ProgressCallback, Speedometer

if TYPE_CHECKING:
    from anyio.abc import Process

# What the transformers backend needs of a repository, and a fine-tuning.
WEIGHTS = ("*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "merges.txt", "vocab.txt")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "on", "yes", "true")
# The process tells the names of at most some thousand files.
LONGEST_LINE = 1 << 22

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
    """The file of a reference or an alias, fetched where it is not there; of a split model the first shard.

    `offline` None: as HF_HUB_OFFLINE says. `refresh` asks the hub also for what is there. `on_start` is given a
    function that ends the download from any thread. Cancelling ends it at once; what had arrived is kept. Raises
    UnknownModelError, InvalidRefError and FetchError.
    """
    file = resolve_ref(ref, load_known_llms(registry))
    cached = await anyio.to_thread.run_sync(find_cached, file)
    damaged = cached is not None and not await anyio.to_thread.run_sync(_is_whole, cached)
    if cached is not None and not damaged and not refresh:
        return cached
    if is_offline(offline):
        if cached is not None and not damaged:
            return cached
        state = "is damaged in the cache" if damaged else "is not in the cache"
        raise OfflineError(f"{file} {state}, and this is offline (offline= or HF_HUB_OFFLINE): fetch it once online")
    request = hub_child.Request(
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
    folder = await anyio.to_thread.run_sync(_snapshot, ref.repo_id, revision)
    if folder is not None and await anyio.to_thread.run_sync(is_whole, folder):
        return folder
    if is_offline(offline):
        raise OfflineError(f"{ref} is not in the cache, and this is offline: fetch it once online")
    request = hub_child.Request(repo_id=ref.repo_id, revision=revision, patterns=WEIGHTS, token=hf_token)
    paths = await _fetch(request, on_progress, on_start)
    return Path(os.path.commonpath([path.parent for path in paths]))


def resolve_ref(ref: str, registry: Registry) -> PackedFileRef:
    """A reference as it is; of an alias, with or without `:quantization`, the file. Raises UnknownModelError."""
    if ref.startswith(SCHEME):
        return PackedFileRef(ref)
    known = registry.find(ref)
    if known is None:
        near = registry.suggest(ref)
        hint = f"did you mean {', '.join(near)}?" if near else "`llmsession models list` shows those that there are;"
        raise UnknownModelError(
            f"no model is called {ref!r}: {hint} a .gguf file of your own is given by its path, "
            "one on Hugging Face by hf:author/repo/HEAD/file",
            candidates=near,
        )
    return known.file_ref(ref.partition(":")[2] or None)


def is_offline(given: bool | None) -> bool:  # noqa: FBT001 - an option's value, which may be None
    """What was asked for, else what the environment says."""
    return given if given is not None else os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def find_cached(ref: PackedFileRef) -> Path | None:
    """The file in the cache of Hugging Face's tools, with all its shards; by the same rules as on the hub."""
    folder = _snapshot(ref.repo_id, ref.revision)
    if folder is None:
        return None
    for name in (ref.basename, ref.basename + SUFFIX):
        if (folder / name).is_file():
            return _whole(folder, name)
    names = {path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*.[gG][gG][uU][fF]") if path.is_file()}
    meant = find_meant(ref.basename, list_models(names))
    return _whole(folder, meant[0]) if len(meant) == 1 else None


def list_cached(known: KnownLLM) -> dict[str, int]:
    """The files of a known model that are in the cache at its default branch, with their bytes, smallest first."""
    folder = _snapshot(known.repo_id, HEAD)
    if folder is None:
        return {}
    paths = [path for path in folder.rglob("*.[gG][gG][uU][fF]") if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    start = known.start.lower()
    return list_models({name: size for name, size in sizes.items() if name.lower().startswith(start)})


def hub_cache() -> Path:
    """Where Hugging Face's tools keep their files, by the environment of now."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(name):
            return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _whole(folder: Path, name: str) -> Path | None:
    shards = list_shards(name)
    return folder / shards[0] if all((folder / shard).is_file() for shard in shards) else None


def _snapshot(repo_id: str, revision: str) -> Path | None:
    storage = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (storage / "refs" / ("main" if revision == HEAD else revision)).read_text().strip()
        except OSError:
            return None
    folder = storage / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _is_whole(path: Path) -> bool:
    try:
        for shard in list_shards(path.name):
            read_model_info(path.with_name(shard))
    except InvalidModelError:
        return False
    return True


# The process.


async def _fetch(
    request: hub_child.Request, on_progress: ProgressCallback | None, on_start: StopCallback | None
) -> list[Path]:
    """Where the files are. Raises FetchError; whatever happens, the process is gone."""
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
                told = msgspec.json.decode(await lines.receive_until(b"\n", LONGEST_LINE), type=hub_child.Told)
                if told.error:
                    raise _error_of(told)
                if told.paths:
                    return [Path(path) for path in told.paths]
                if on_progress is not None:
                    speed = speedometer.measure(told.done)
                    on_progress(Progress(stage="download", done=told.done, total=told.total, speed=speed))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it has ended: its last words say why
        finally:
            _kill(process)
            with anyio.CancelScope(shield=True):
                await process.aclose()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise FetchError(
            f"the download of {request.repo_id} ended ({words or process.returncode}); it goes on next time"
        )


async def _spawn(said: BinaryIO) -> Process:
    package = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "HF_HUB_CACHE": str(hub_cache()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    argv = [sys.executable, "-P", "-X", "faulthandler", str(Path(hub_child.__file__))]
    return await anyio.open_process(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us: we end it
    )


def _kill(process: Process) -> None:
    """From any thread; nothing where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _error_of(told: hub_child.Told) -> FetchError:
    kind: Any = getattr(errors, told.kind, FetchError)
    return kind(told.error, **told.details) if issubclass(kind, FetchError) else FetchError(told.error)
