"""Models from Hugging Face: the real client, in its own process, against a hub of ours that speaks the protocol."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from llmsession import (
    ClosedError,
    DigestError,
    DiskFullError,
    FetchError,
    GatedModelError,
    ModelNotFoundError,
    OfflineError,
    PackedRepoRef,
    Progress,
    Session,
    UnknownModelError,
    ensure_model,
)
from llmsession.models.hub.cache import find_cached
from llmsession.models.hub.download import CHUNK
from llmsession.models.hub.ensure import ensure_weights
from llmsession.models.references import PackedFileRef
from tests.engines import Engine
from tests.hub_server import FILES, REPO, TINY, Hub

pytestmark = pytest.mark.anyio

REF = f"hf:{REPO}/HEAD/tiny-Q8_0.gguf"


def partials(tmp_path: Path) -> list[Path]:
    """What has arrived in part."""
    return list((tmp_path / "hf").rglob("*.incomplete"))


async def test_a_file_is_fetched_once_and_then_needs_no_hub(hub: Hub) -> None:
    """CAPABILITIES A8: HEAD goes to the hub as `main`; the cache first, without a word to anyone."""
    path = await ensure_model(REF)
    assert TINY == path.read_bytes()
    assert hub.asked("HEAD", "/resolve/main/")
    assert [] == hub.asked("HEAD", "/resolve/HEAD/")
    asked = len(hub.requests)
    assert path == await ensure_model(REF)
    assert asked == len(hub.requests)
    assert len(TINY) == hub.sent()


async def test_the_cache_is_shared_with_other_tools(hub: Hub, tmp_path: Path) -> None:
    """CAPABILITIES A8: what huggingface_hub has fetched is not fetched again, and the other way round."""
    call = "h.hf_hub_download(sys.argv[1], sys.argv[2], local_files_only=len(sys.argv) > 3)"
    fetch = f"import sys, huggingface_hub as h; print({call})"

    async def theirs(name: str, *more: str) -> str:
        done = await anyio.run_process([sys.executable, "-c", fetch, REPO, name, *more])
        return done.stdout.decode().strip()

    path = await theirs("tiny-Q4_K_M.gguf")
    sent = hub.sent()
    assert Path(path) == await ensure_model(f"hf:{REPO}/HEAD/tiny-Q4_K_M.gguf")
    assert sent == hub.sent()
    ours = await ensure_model(REF)
    assert ours == Path(await theirs("tiny-Q8_0.gguf", "offline"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("tiny-Q8_0", "tiny-Q8_0.gguf"),
        ("TINY-q8_0.gguf", "tiny-Q8_0.gguf"),
        ("q4_k_m", "tiny-Q4_K_M.gguf"),
        ("Q4_K_S.gguf", "tiny-Q4_K_S.gguf"),
        ("tiny-F16-00001-of-00002.gguf", "big/tiny-F16-00001-of-00002.gguf"),
        ("big/tiny-F16-00002-of-00002.gguf", "big/tiny-F16-00001-of-00002.gguf"),
        ("f16", "big/tiny-F16-00001-of-00002.gguf"),
        ("mmproj-tiny-f16.gguf", "mmproj-tiny-f16.gguf"),
    ],
)
async def test_a_name_may_be_short_where_it_is_clear(hub: Hub, asked: str, found: str) -> None:
    """CAPABILITIES A9, A10: any case, with or without the suffix, by its end; all shards, and the first one's path."""
    path = await ensure_model(f"hf:{REPO}/HEAD/{asked}")
    assert path.as_posix().endswith(f"/{found}")
    assert FILES[found] == path.read_bytes()
    if "F16-00001" in found:
        assert FILES[found.replace("00001", "00002", 1)] == path.with_name("tiny-F16-00002-of-00002.gguf").read_bytes()
    assert path == find_cached(PackedFileRef(f"hf:{REPO}/HEAD/{asked}"))


async def test_a_name_that_does_not_exist_is_answered_with_those_that_do(hub: Hub) -> None:
    """CAPABILITIES A10: the smallest first, with sizes, and the closest name; no projectors."""
    with pytest.raises(ModelNotFoundError) as caught:
        await ensure_model(f"hf:{REPO}/HEAD/tiny-Q4_K_X.gguf")
    assert ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tiny-Q4_K_S.gguf", "big/tiny-F16-00001-of-00002.gguf") == (
        caught.value.candidates
    )
    assert "Did you mean tiny-Q4_K_" in str(caught.value)
    assert "3.9 MB  big/tiny-F16" in str(caught.value)
    hub.add("foo/Two", {"a-Q8_0.gguf": TINY, "b-Q8_0.gguf": TINY})
    with pytest.raises(ModelNotFoundError, match="may mean several") as caught:
        await ensure_model("hf:foo/Two/HEAD/q8_0")
    assert ("a-Q8_0.gguf", "b-Q8_0.gguf") == caught.value.candidates
    hub.add("foo/None", {"README.md": b"x"})
    with pytest.raises(ModelNotFoundError, match="has no GGUF file"):
        await ensure_model("hf:foo/None/HEAD/q8_0")
    with pytest.raises(UnknownModelError, match="no model is called 'tiny'"):
        await ensure_model("tiny")


async def test_a_revision_is_the_one_that_was_asked_for(hub: Hub) -> None:
    """CAPABILITIES A8: a branch, a commit; a branch that moves on counts when it is asked about."""
    first = hub.repos[REPO].branches["main"]
    dev = hub.add(REPO, {"tiny-Q8_0.gguf": TINY + b"dev"}, branch="dev")
    assert TINY + b"dev" == (await ensure_model(f"hf:{REPO}/dev/tiny-Q8_0.gguf")).read_bytes()
    assert TINY == (await ensure_model(f"hf:{REPO}/{first}/tiny-Q8_0.gguf")).read_bytes()
    assert TINY + b"dev" == (await ensure_model(f"hf:{REPO}/{dev}/tiny-Q8_0.gguf")).read_bytes()
    assert TINY == (await ensure_model(REF)).read_bytes()
    hub.add(REPO, {"tiny-Q8_0.gguf": TINY + b"new"})
    assert TINY == (await ensure_model(REF)).read_bytes()
    assert TINY + b"new" == (await ensure_model(REF, refresh=True)).read_bytes()
    assert TINY + b"new" == (await ensure_model(REF)).read_bytes()
    with pytest.raises(ModelNotFoundError, match="no revision 'nope'"):
        await ensure_model(f"hf:{REPO}/nope/tiny-Q8_0.gguf")


async def test_a_cut_connection_is_gone_on_with(hub: Hub) -> None:
    """CAPABILITIES A8: from where it was cut."""
    hub.cuts = [700_000]
    assert TINY == (await ensure_model(REF)).read_bytes()
    assert len(TINY) <= hub.sent() < len(TINY) + CHUNK
    assert 2 == len(hub.asked("GET", "signature"))
    assert hub.asked("GET", "signature")[1].range


async def test_a_server_without_ranges_is_read_from_the_start(hub: Hub) -> None:
    """CAPABILITIES A8: what arrives twice is not kept twice."""
    hub.cuts, hub.ignores_ranges = [700_000], True
    assert TINY == (await ensure_model(REF)).read_bytes()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_download_that_is_killed_again_and_again_is_whole_in_the_end(hub: Hub, tmp_path: Path) -> None:
    """CAPABILITIES A8: `kill -9` at twenty random points; each time it goes on from where it was."""
    hub.chunk = 1 << 14
    rng = random.Random(5)
    kills = 20
    for point in sorted(rng.randint(1, len(TINY) - (1 << 15)) for _ in range(kills)):
        hub.halt_at = point
        hub.halted.clear()
        hub.may_go_on.clear()

        def kill_there(end: Callable[[], None], point: int = point) -> None:
            def kill() -> None:
                hub.halted.wait(20)
                # The store halts; what it has sent is still on its way.
                while sum(path.stat().st_size for path in partials(tmp_path)) < point - 2 * CHUNK:
                    time.sleep(0.001)
                end()

            threading.Thread(target=kill, daemon=True).start()

        with pytest.raises(FetchError, match="goes on next time"):
            await ensure_model(REF, on_start=kill_there)
        hub.may_go_on.set()
    hub.halt_at = None
    assert TINY == (await ensure_model(REF)).read_bytes()
    assert hub.sent() < len(TINY) + (kills + 1) * 4 * CHUNK
    assert [] == partials(tmp_path)


async def test_two_at_once_fetch_once(hub: Hub) -> None:
    """CAPABILITIES A8: two processes; the second waits for the first."""
    hub.pause = 0.005
    found: list[Path] = []

    async def fetch() -> None:
        found.append(await ensure_model(REF))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(fetch)
            group.start_soon(fetch)
    assert found[0] == found[1]
    assert len(TINY) == hub.sent()


async def test_cancelling_ends_it_and_keeps_what_had_arrived(hub: Hub, tmp_path: Path) -> None:
    """CAPABILITIES A8: a thread could not be cancelled; a process is gone at once."""
    hub.chunk, hub.pause = 1 << 14, 0.02
    with anyio.CancelScope() as scope:
        await ensure_model(REF, on_progress=lambda progress: scope.cancel() if progress.done > 400_000 else None)
    assert scope.cancelled_caught
    kept = partials(tmp_path)[0].stat().st_size
    assert kept >= 400_000
    hub.pause = 0
    assert TINY == (await ensure_model(REF)).read_bytes()
    assert f"bytes={kept}-" == hub.asked("GET", "signature")[-1].range


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_download_outlives_its_program(hub: Hub) -> None:
    """The program is killed: the process that fetches for it ends."""
    hub.chunk, hub.pause = 1 << 12, 0.05
    code = f"import anyio, llmsession\nanyio.run(llmsession.ensure_model, {REF!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        await anyio.to_thread.run_sync(hub.begun.wait, 20)
        children = psutil.Process(program.pid).children()
        program.send_signal(signal.SIGKILL)
    assert 1 == len(children)
    _, alive = await anyio.to_thread.run_sync(lambda: psutil.wait_procs(children, timeout=5))
    assert [] == alive


async def test_progress_is_told_in_bytes(hub: Hub) -> None:
    """CAPABILITIES A8: how much, of how much, how fast."""
    hub.pause = 0.02
    seen: list[Progress] = []
    await ensure_model(f"hf:{REPO}/HEAD/f16", on_progress=seen.append)
    assert {"download"} == {progress.stage for progress in seen}
    assert sorted(progress.done for progress in seen) == [progress.done for progress in seen]
    total = 2 * len(TINY) + 2
    assert (total, total, 1.0) == (seen[-1].done, seen[-1].total, seen[-1].share)
    assert any(progress.speed for progress in seen)


async def test_offline_means_the_cache_or_a_clear_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES A8: by the option or by Hugging Face's own variable; nobody is asked."""
    with pytest.raises(OfflineError, match="not in the cache"):
        await ensure_model(REF, offline=True)
    path = await ensure_model(REF)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path == await ensure_model(REF)
    assert path == await ensure_model(REF, refresh=True)
    with pytest.raises(OfflineError):
        await ensure_model(f"hf:{REPO}/HEAD/q4_k_m")
    assert asked == len(hub.requests)


@pytest.mark.parametrize("trouble", ["429", "500", "unreachable", "login page"])
async def test_a_hub_in_trouble_does_not_matter_where_the_file_is_there(
    hub: Hub, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CAPABILITIES A8: even where the hub was to be asked; without the file, one clear error."""
    path = await ensure_model(REF)
    match trouble:
        case "unreachable":
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        case "login page":
            hub.web_page = True
        case _:
            hub.statuses = [int(trouble)] * 100
    assert path == await ensure_model(REF, refresh=True)
    words = {"429": "too many requests", "500": "HTTP 500", "unreachable": "cannot be reached", "login page": "login"}
    with pytest.raises(FetchError, match=words[trouble]):
        await ensure_model(f"hf:{REPO}/HEAD/tiny-Q4_K_M.gguf")


async def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub) -> None:
    """CAPABILITIES A8: 429 and 5xx pass."""
    hub.statuses = [429, 503]
    assert TINY == (await ensure_model(REF)).read_bytes()


async def test_gates_and_tokens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES A8: 401 and 403 say where to ask; the token opens, and goes to the hub alone."""
    hub.add("foo/Gated", {"a-Q8_0.gguf": TINY}, gated=True)
    hub.add("foo/Private", {"a-Q8_0.gguf": TINY}, token="secret")
    ref = "hf:foo/Gated/HEAD/a-Q8_0.gguf"
    for token in (None, "wrong"):
        with pytest.raises(GatedModelError, match=r"accept its terms at https://huggingface\.co/foo/Gated") as caught:
            await ensure_model(ref, hf_token=token)
        assert "https://huggingface.co/foo/Gated" == caught.value.url
    assert TINY == (await ensure_model(ref, hf_token="granted")).read_bytes()
    with pytest.raises(ModelNotFoundError, match="no repository foo/Private, or it is private"):
        await ensure_model("hf:foo/Private/HEAD/a-Q8_0.gguf")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert TINY == (await ensure_model("hf:foo/Private/HEAD/a-Q8_0.gguf")).read_bytes()
    stored = hub.asked("GET", "signature")
    assert stored
    assert not any(request.authorized for request in stored)


@pytest.mark.parametrize("fault", ["damaged", "cut", "web page"])
async def test_what_arrives_damaged_is_not_handed_on(hub: Hub, fault: str, tmp_path: Path) -> None:
    """CAPABILITIES A11: by size, first bytes and digest; it is put aside, and the next try is a fresh one."""
    if fault == "web page":
        hub.add(REPO, {"tiny-Q8_0.gguf": b"<html>" + TINY})
    hub.damaged = fault == "damaged"
    if fault == "cut":
        hub.claimed_size = len(TINY) + 10
    with pytest.raises(FetchError, match={"damaged": "digest", "cut": "size", "web page": "web page"}[fault]) as caught:
        await ensure_model(REF)
    assert isinstance(caught.value, DigestError) or fault == "cut"
    assert find_cached(PackedFileRef(REF)) is None
    hub.damaged, hub.claimed_size = False, None
    hub.add(REPO, FILES)
    assert TINY == (await ensure_model(REF)).read_bytes()


async def test_a_bad_beginning_is_not_gone_on_with_for_ever(hub: Hub, tmp_path: Path) -> None:
    """CAPABILITIES A11: what a loss of power left is found out by the digest, and fetched again in the same call."""
    hub.cuts = [700_000] * 8
    hub.chunk, hub.pause = 1 << 14, 0.02
    with anyio.CancelScope() as scope:
        await ensure_model(REF, on_progress=lambda progress: scope.cancel() if progress.done > 300_000 else None)
    (partial,) = partials(tmp_path)
    partial.write_bytes(bytes(partial.stat().st_size))
    hub.cuts, hub.pause = [], 0
    assert TINY == (await ensure_model(REF)).read_bytes()


async def test_a_file_that_was_cut_in_the_cache_is_fetched_again(hub: Hub) -> None:
    """CAPABILITIES A11: nothing that is broken goes to the engine."""
    path = await ensure_model(REF)
    with path.resolve().open("r+b") as blob:
        blob.truncate(1000)
    with pytest.raises(OfflineError, match="damaged"):
        await ensure_model(REF, offline=True)
    assert TINY == (await ensure_model(REF)).read_bytes()


async def test_a_cache_without_symbolic_links_holds_each_file_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS E11: Windows, exFAT, HF_HUB_DISABLE_SYMLINKS; huggingface_hub finds it there, and so do we."""
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    shards = "big/tiny-F16-00001-of-00002.gguf"
    for name in ("tiny-Q8_0.gguf", shards):
        path = await ensure_model(f"hf:{REPO}/HEAD/{name}")
        assert not path.is_symlink()
        assert FILES[name] == path.read_bytes()
        assert path == await ensure_model(f"hf:{REPO}/HEAD/{name}", refresh=True)
        assert path == find_cached(PackedFileRef(f"hf:{REPO}/HEAD/{name}"))
    kept = [
        file.stat().st_size for file in (tmp_path / "hf").rglob("*") if file.is_file() and file.stat().st_size > 500
    ]
    wanted = ["tiny-Q8_0.gguf", shards, shards.replace("00001", "00002", 1)]
    assert sorted(len(FILES[name]) for name in wanted) == sorted(kept)
    assert sum(kept) == hub.sent()
    (path,) = (tmp_path / "hf").rglob("tiny-Q8_0.gguf")
    path.write_bytes(TINY[: len(TINY) // 2])
    assert path == await ensure_model(REF)
    assert TINY == path.read_bytes()


async def test_free_disk_is_looked_at_first(hub: Hub, tmp_path: Path) -> None:
    """CAPABILITIES A11: with both numbers, and before a byte is fetched."""
    hub.claimed_size = 1 << 60
    with pytest.raises(DiskFullError, match="make room") as caught:
        await ensure_model(REF)
    assert 1 << 60 == caught.value.needed_bytes
    assert 0 < caught.value.free_bytes < 1 << 60
    assert 0 == hub.sent()


async def test_the_original_weights_of_a_repository(hub: Hub) -> None:
    """CAPABILITIES A14: what a backend for safetensors needs, and not the rest."""
    hub.add("foo/Tiny", {"model.safetensors": b"w" * 100, "config.json": b"{}", "tokenizer.json": b"{}", "x.bin": b"x"})
    folder = await ensure_weights(PackedRepoRef("hf:foo/Tiny"))
    assert ["config.json", "model.safetensors", "tokenizer.json"] == sorted(path.name for path in folder.iterdir())
    assert folder == await ensure_weights(PackedRepoRef("hf:foo/Tiny"), offline=True)


# A session.

REGISTRY = f"""\
knownllms:
- source: hf:{REPO}/HEAD/tiny-
  prompt_encoding: tiny-chat
  aliases: [my-tiny]
  default_quantization: q8_0
  sampling: {{temperature: 0.0}}
"""


@pytest.mark.parametrize("model", [REF, "my-tiny", "my-tiny:q4_k_m"])
async def test_a_session_from_a_reference_to_a_reply(hub: Hub, engine: Engine, model: str, tmp_path: Path) -> None:
    """CAPABILITIES A3, A8: fetched, loaded, prompted as the registry says."""
    registry = tmp_path / "mine.yaml"
    registry.write_text(REGISTRY)
    seen: list[Progress] = []
    options: dict[str, Any] = engine.options(registry=registry, on_progress=seen.append)
    async with Session(model, **options) as session:
        assert "ok chief" == (await session.prompt('reply with "ok chief"')).text
        assert ("tiny-Q4_K_M" if model.endswith("m") else "tiny-Q8_0") == session.model
        assert session.model_path is not None
        assert session.model_path.is_file()
        assert session.encoding is not None
        assert "llama" == session.info.architecture
    assert {"download", "load"} >= {progress.stage for progress in seen} >= {"download"}


async def test_a_session_that_is_closed_while_it_fetches(hub: Hub, engine: Engine) -> None:
    """From another task: the download ends, and the open raises ClosedError."""
    hub.chunk, hub.pause = 1 << 12, 0.05
    session = Session(REF, **engine.options())

    async def close() -> None:
        await anyio.to_thread.run_sync(hub.begun.wait, 20)
        await session.aclose()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(close)
            with pytest.raises(ClosedError):
                await session.__aenter__()
