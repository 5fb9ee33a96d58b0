"""What all tests share: both event loops, a cache folder of their own, and nothing left running."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.engines import ENGINES, Engine
from tests.hub_server import FILES, REPO, Hub, serve

# Sessions that outlive a test; what belongs to them was there before it.
SHARED = ("session", "engine_session")
UNIT = Path(__file__).with_name("unit")

# Under nohup, in a background job, it is ignored, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With both engines, each two of engine, API and event loop meet in each test, and not each three of them.

    LLMSESSION_TEST_ALL=1 has them all.
    """
    if len(ENGINES) > 1 and not os.environ.get("LLMSESSION_TEST_ALL"):
        items[:] = [item for item in items if _is_needed(item)]


def _is_needed(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    engine, loop = params.get("engine"), params.get("anyio_backend")
    if engine not in ENGINES or loop is None:
        return True
    is_binary, is_trio = engine is not ENGINES[0], loop == "trio"
    if "api" in params:
        return (is_binary + is_trio + (params["api"] == "chat")) % 2 == 0
    return not (is_binary and is_trio)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs and records of a test go into its own folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLMSESSION_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no child of the run is alive, and none of the threads that attend one. Unit tests start none."""
    if UNIT in request.path.parents:
        yield
        return
    for name in SHARED:
        if name in request.fixturenames:
            request.getfixturevalue(name)
    children = set(psutil.Process().children(recursive=True))
    threads = set(threading.enumerate())
    yield
    gc.collect()
    left = [child for child in psutil.Process().children(recursive=True) if child not in children]
    _, alive = psutil.wait_procs(left, timeout=2)
    names = [" ".join(child.cmdline()) for child in alive if child.is_running()]
    for child in alive:
        child.kill()
    assert [] == names
    for thread in threading.enumerate():
        if thread not in threads and thread.name.startswith(("llmsession-attend", "llmsession-stop")):
            thread.join(timeout=2)
            assert not thread.is_alive(), thread.name


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.backend)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each real engine that is here: the embedded one always, the llama-server binary where it was built."""
    found: Engine = request.param
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Hugging Face as far as we need it, with one repository, and a cache of its own for the test alone."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add(REPO, FILES)
        yield hub
