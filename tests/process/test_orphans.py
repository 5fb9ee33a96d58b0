"""`kill -9` of the program at any moment: the engine is gone. DESIGN 1.2 and 4, rows B8 and B9."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import fake_llama_server
from tests.engines import BINARIES, ENGINES, Engine, own_child
from tests.process.programs import GONE_WITHIN, is_alive, without_child_mode

# Says what it has reached, a line each, and reads on for ever.
PROGRAM = """
import asyncio, json, sys
from llmsession import Sampling, Session

endless = Sampling(ignore_eos=True)

async def main():
    options = json.loads(sys.argv[1])
    print("begin", flush=True)
    async with Session(**options) as session:
        print("idle", flush=True)
        await asyncio.sleep(float(sys.argv[2]))
        async with session.prompt_streaming("count to 100", sampling=endless) as stream:
            async for _ in stream:
                print("generating", flush=True)

asyncio.run(main())
"""


def spawn(options: dict[str, object], *, stay_idle: bool) -> subprocess.Popen[bytes]:
    """The program with a session of these options."""
    import json

    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(options), "3600" if stay_idle else "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def read_until(program: subprocess.Popen[bytes], word: bytes) -> None:
    """Until it has said so."""
    assert program.stdout is not None
    for line in program.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"it ended before it said {word.decode()}")


def engines_of(program: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All that it started, waited for until there is one."""
    parent = psutil.Process(program.pid)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if children := parent.children(recursive=True):
            return children
    pytest.fail("it started no engine")


def kill_and_look(program: subprocess.Popen[bytes], engines: list[psutil.Process]) -> None:
    """Kill it with all the force there is, and see that the engines follow."""
    program.kill()
    killed_at = time.monotonic()
    program.wait()
    assert program.stdout is not None
    program.stdout.close()
    while any(engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE for engine in engines):
        assert time.monotonic() - killed_at < GONE_WITHIN, "the engine outlived its owner"


def test_killed_as_soon_as_the_engine_is_spawned(engine: Engine, slow_model: Path) -> None:
    """Issue 1: kill -9 of the parent while starting."""
    program = spawn(engine.options(model=str(slow_model)), stay_idle=True)
    read_until(program, b"begin")
    kill_and_look(program, engines_of(program))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_killed_while_the_model_loads(engine: Engine, slow_model: Path, share: float, cache_dir: Path) -> None:
    """Issue 1: while loading; the embedded engine cannot run a line of Python then (LLAMA_SERVER 7)."""
    program = spawn(engine.options(model=str(slow_model)), stay_idle=True)
    read_until(program, b"begin")
    engines = engines_of(program)
    wait_for_word(cache_dir / "logs", b"loading model")
    let_load(share)
    kill_and_look(program, engines)


def let_load(seconds: float) -> None:
    """Somewhere in the middle of the load, which gives no sign: the one place where a test lets time pass."""
    time.sleep(seconds)


def wait_for_word(folder: Path, word: bytes) -> None:
    """Until a log in the folder has it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any(word in path.read_bytes() for path in folder.glob("*.log")):
            return
    pytest.fail(f"no log says {word.decode()}")


def test_killed_while_idle(engine: Engine) -> None:
    """Issue 1: while idle."""
    program = spawn(engine.options(), stay_idle=True)
    read_until(program, b"idle")
    kill_and_look(program, engines_of(program))


def test_killed_while_generating(engine: Engine) -> None:
    """Issue 1: while generating; then the engine ignores a first SIGTERM (LLAMA_SERVER F1)."""
    program = spawn(engine.options(), stay_idle=False)
    read_until(program, b"generating")
    kill_and_look(program, engines_of(program))


def test_where_setpriv_is_missing_our_own_guard_does_its_work(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 4: not every system has setpriv (musl, containers)."""
    monkeypatch.setenv("PATH", str(tmp_path))
    program = spawn(engine.options(), stay_idle=True)
    read_until(program, b"idle")
    kill_and_look(program, engines_of(program))


@pytest.mark.parametrize("flags", ["", "--ignore-stdin --ignore-sigterm", "--no-child-mode --ignore-sigterm"])
@pytest.mark.parametrize("moment", ["loading", "idle"])
def test_an_engine_that_listens_to_nothing_is_gone_as_well(
    tmp_path: Path, flags: str, moment: str, cache_dir: Path
) -> None:
    """DESIGN 4: three ways at once; each alone fails somewhere. Here the kernel's is left."""
    never = " --never-ready" if moment == "loading" else ""
    server = fake_llama_server.wrapper(tmp_path, flags + never)
    program = spawn({"backend": "llama-server", "server_path": str(server)}, stay_idle=True)
    if moment == "loading":
        read_until(program, b"begin")
        wait_for_word(cache_dir / "logs", b"loading")
    else:
        read_until(program, b"idle")
    kill_and_look(program, engines_of(program))


@pytest.mark.parametrize("binary", BINARIES, ids=str)
@pytest.mark.parametrize("moment", ["idle", "generating"])
def test_a_build_without_child_mode_is_gone_as_well(tmp_path: Path, binary: str, moment: str) -> None:
    """DESIGN 4: the guard of our own is all that such a build has; the real binary, too, as an old one."""
    flags = "--no-child-mode --tokens 100000 --token-delay 0.01"
    fake = binary == "fake"
    server = fake_llama_server.wrapper(tmp_path, flags) if fake else without_child_mode(tmp_path, binary)
    options = {"backend": "llama-server", "threads": 1, "server_path": str(server)}
    program = spawn(options, stay_idle=moment == "idle")
    read_until(program, moment.encode())
    kill_and_look(program, engines_of(program))


def test_killed_while_it_closes(tmp_path: Path) -> None:
    """DESIGN 4: in every state, here stopping: the engine ignores all that asks it to end."""
    server = fake_llama_server.wrapper(tmp_path, "--ignore-stdin --ignore-sigterm")
    code = (
        "import asyncio, sys\nfrom llmsession import Session\n"
        "async def main():\n"
        "    session = await Session.open(backend='llama-server', server_path=sys.argv[1])\n"
        "    session._info.endpoint.child.request_stop()\n"
        "    print('stopping', flush=True)\n"
        "    await session.aclose()\n"
        "asyncio.run(main())"
    )
    program = subprocess.Popen([sys.executable, "-c", code, str(server)], stdout=subprocess.PIPE)
    engines = engines_of(program)
    read_until(program, b"stopping")
    kill_and_look(program, engines)


def test_closed_stdin_alone_ends_an_idle_engine(engine: Engine) -> None:
    """LLAMA_SERVER F2: what protects where the kernel knows no death signal; a new build tells us here."""
    import anyio

    from llmsession import Session

    async def main() -> int | None:
        async with Session(**engine.options()) as session:
            child = own_child(session)
            assert child._process is not None
            child._process.close_stdin()
            with anyio.fail_after(10):
                await child.exited.wait()
            return child.returncode

    assert anyio.run(main) is not None


def test_a_program_that_just_ends_takes_its_engine_along() -> None:
    """README: when the program is gone, the server is gone: also where nobody closed the session."""
    code = (
        "import asyncio\nfrom llmsession import Session\n"
        "async def main():\n"
        "    session = await Session.open(threads=1, backend='embedded')\n"
        "    print(session.pid, flush=True)\n"
        "    import os; os._exit(0)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    deadline = time.monotonic() + GONE_WITHIN
    while is_alive(int(done.stdout)):
        assert time.monotonic() < deadline


def test_a_forked_copy_of_the_program_can_start_engines_of_its_own() -> None:
    """Web servers fork their workers: the copy has none of the original's threads."""
    code = (
        "import asyncio, os\nfrom llmsession import Session\n"
        "async def main():\n"
        "    async with Session(threads=1, backend='embedded') as session:\n"
        "        print(await session.prompt('say \"river\"', temperature=0), flush=True)\n"
        "asyncio.run(main())\n"
        "if (copy := os.fork()) == 0:\n"
        "    asyncio.run(main())\n"
        "    os._exit(0)\n"
        "os.waitpid(copy, 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "river\nriver\n" == done.stdout


def test_every_engine_is_tried_here() -> None:
    """A lane that silently has no engine proves nothing."""
    assert "embedded" in [engine.backend for engine in ENGINES]
    if os.environ.get("LLMSESSION_TEST_LLAMA_SERVER"):
        assert ["embedded", "llama-server"] == [engine.backend for engine in ENGINES]
