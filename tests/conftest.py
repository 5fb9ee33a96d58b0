"""What all tests share: both event loops, a cache folder of their own, and nothing left running."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engines import ENGINES, Engine
from tests.hub_server import FILES, REPO, Hub, serve
from tests.lanes import is_wanted

# Sessions that outlive a test; what belongs to them was there before it.
SHARED = ("session", "engine_session")
UNIT = Path(__file__).with_name("unit")

# Under nohup, in a background job, it is ignored, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The lane of uvloop: the same tests on its loop, once each.
UVLOOP = bool(os.environ.get("LLMSESSION_TEST_UVLOOP"))
LOOPS = [pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")] if UVLOOP else ["asyncio", "trio"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """See tests/lanes.py."""
    parser.addoption("--all", action="store_true", help="also the slow tests, and every pairing of loops and engines")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `--numprocesses auto`: many tests wait for a deadline, and leave their core to another."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those of the lane. A test that is named on the command line always runs."""
    named = any("::" in argument for argument in config.args)
    if named:
        return
    wanted = [item for item in items if is_wanted(item, everything=bool(config.getoption("all")))]
    kept = set(wanted)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = wanted


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Both event loops, or uvloop."""
    return request.param


# Set when any program is started, by whichever thread.
_started = threading.Event()
_STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn")
sys.addaudithook(lambda event, _: _started.set() if event in _STARTS else None)
# The children of the run when that was last looked at.
_children: set[psutil.Process] = set()


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
    if _started.is_set():  # else the children are those of the test before, a shared session's engine among them
        _started.clear()
        _children.clear()
        _children.update(psutil.Process().children(recursive=True))
    children = set(_children)
    threads = set(threading.enumerate())
    yield
    if not _started.is_set():
        return
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
