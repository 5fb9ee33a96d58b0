"""The claims of test_child once more with the real engines, at the front door. DESIGN 4, rows B7, B8, B15."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import psutil
import pytest

from llmsession import ClosedError, ServerExitedError, Session, StartFailedError, StartTimeoutError
from llmsession.processes.child import State
from tests import fake_llama_server
from tests.engines import Engine

pytestmark = pytest.mark.anyio


async def until(condition: Callable[[], object]) -> None:
    """Bounded, and quick to notice."""
    with anyio.fail_after(30):
        while not condition():
            await anyio.lowlevel.checkpoint()


def logs_say(folder: Path, word: bytes) -> bool:
    """Whether a log has it."""
    return any(word in path.read_bytes() for path in (folder / "logs").glob("*.log"))


async def test_ready_means_that_it_answers(engine: Engine, slow_model: Path) -> None:
    """Issue 1: ready only when the server says so, also where loading takes seconds."""
    async with Session(slow_model, context_length=256, parallel=1, **engine.options()) as session:
        assert "ok" == await session.get_health()
        assert 1 == (await session.generate("a", max_tokens=1)).usage.completion_tokens


async def test_progress_while_loading_moves_the_deadline_or_the_start_is_given_up(
    engine: Engine, slow_model: Path
) -> None:
    """DESIGN 2: seconds of loading within a deadline of half a second: the engine gave signs, or we say which limit."""
    session = Session(slow_model, context_length=256, start_timeout=0.3, **engine.options())
    with anyio.fail_after(60), pytest.raises(StartTimeoutError, match=r"start_timeout=.*\.log"):
        await session.__aenter__()
    await session.aclose()


async def test_load_progress_is_reported(engine: Engine) -> None:
    """Row B7: load progress to a callback."""
    shares: list[float] = []
    async with Session(on_progress=shares.append, **engine.options()):
        assert 0.0 in shares


async def test_an_engine_that_cannot_start_says_why(engine: Engine, tmp_path: Path) -> None:
    """Row B15: the tail in every start error: here the file names an architecture that no build knows."""
    import gguf

    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "nosucharchitecture")
    writer.add_context_length(128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with anyio.fail_after(30), pytest.raises(StartFailedError) as caught:
        await Session.open(path, **engine.options())
    assert "nosucharchitecture" in caught.value.log_tail


async def test_cancelling_the_start_leaves_nothing(engine: Engine, slow_model: Path, cache_dir: Path) -> None:
    """Issue 1: cancel during start, in the middle of the load."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def opening() -> None:
                async with Session(slow_model, **engine.options()):
                    pytest.fail("it was cancelled")

            group.start_soon(opening)
            await until(lambda: logs_say(cache_dir, b"loading model"))
            group.cancel_scope.cancel()
    assert [] == psutil.Process().children()


async def test_closing_while_it_loads_ends_the_start(engine: Engine, slow_model: Path, cache_dir: Path) -> None:
    """DESIGN 4: aclose from any state, here starting, from another task."""
    session = Session(slow_model, **engine.options())
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def opening() -> None:
                with pytest.raises(ClosedError):
                    await session.__aenter__()

            group.start_soon(opening)
            await until(lambda: logs_say(cache_dir, b"loading model"))
            await session.aclose()
    assert [] == psutil.Process().children()


async def test_it_lives_on_when_the_portal_that_opened_it_ends(engine: Engine) -> None:
    """Issue 1: opened from a blocking portal that then ends; used and closed from another loop."""
    sessions: list[Session] = []

    def open_in_a_portal() -> None:
        with anyio.from_thread.start_blocking_portal() as portal:
            sessions.append(portal.call(lambda: Session.open(**engine.options())))

    opener = threading.Thread(target=open_in_a_portal)
    opener.start()
    await until(lambda: not opener.is_alive())
    (session,) = sessions
    assert "river" == str(await session.prompt('say "river"', temperature=0))
    closer = threading.Thread(target=anyio.run, args=(session.aclose,))
    closer.start()
    await until(lambda: not closer.is_alive())
    await session.aclose()
    with pytest.raises(ClosedError):
        await session.prompt("hello")


async def test_a_killed_engine_is_an_error_with_the_text_so_far_and_starts_again(engine: Engine) -> None:
    """DESIGN 4: a request that finds the child dead has it started again."""
    async with Session(**engine.options()) as session:
        first = session.pid
        assert first is not None

        async def read_and_kill() -> None:
            async with session.prompt_streaming("count to 100", temperature=0) as stream:
                async for _ in stream:
                    os.kill(first, signal.SIGKILL)

        with anyio.fail_after(30), pytest.raises(ServerExitedError, match="SIGKILL") as caught:
            await read_and_kill()
        assert caught.value.partial is not None
        assert caught.value.partial.text.startswith("1")
        assert -signal.SIGKILL == caught.value.returncode
        assert "river" == str(await session.prompt('say "river"', temperature=0))
        assert session.pid not in (None, first)


async def test_many_who_find_it_dead_start_it_once(engine: Engine, cache_dir: Path) -> None:
    """DESIGN 4: ensure_ready under a lock: one log for each start."""
    async with Session(**engine.options()) as session:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        await session._endpoint.child.exited.wait()
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(12):
                    group.start_soon(session.prompt, "hello")
    assert 2 == len(list((cache_dir / "logs").glob("*.log")))


async def test_neither_command_line_nor_logs_hold_the_key(engine: Engine, cache_dir: Path) -> None:
    """LLAMA_SERVER F9, row B15: the key goes by the environment or stdin."""
    async with Session(**engine.options()) as session:
        await session.prompt("hello")
        key = session.api_key
        assert key not in " ".join(psutil.Process(session.pid).cmdline())
    written = b"".join(path.read_bytes() for path in cache_dir.rglob("*") if path.is_file())
    assert b"listening" in written
    assert key.encode() not in written


async def test_the_engine_sees_little_of_our_environment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_SERVER trap 7: configuration leaks in; DESIGN 4: an allow-list."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    monkeypatch.setenv("LLAMA_API_KEY", "another")
    monkeypatch.setenv("MY_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    async with Session(**engine.options()) as session:
        seen = psutil.Process(session.pid).environ()
        assert 2048 == session.context_length
    assert {"LLAMA_ARG_CTX_SIZE", "MY_SECRET_TOKEN"} & set(seen) == set()
    assert "another" != seen.get("LLAMA_API_KEY")
    assert ("passive", "") == (seen["OMP_WAIT_POLICY"], seen["CUDA_VISIBLE_DEVICES"])


async def test_a_port_that_was_taken_in_between_is_no_failure(tmp_path: Path) -> None:
    """DESIGN 4: for builds that cannot report their port, another is tried. The fake plays such a build."""
    flag = tmp_path / "taken"
    flag.touch()
    server = fake_llama_server.wrapper(tmp_path, f"--no-child-mode --port-taken-times {flag}")
    async with Session(backend="llama-server", server_path=server, prompt_encoding="chatml") as session:
        assert "fake" == session.version
        assert "word1 word2 word3 " == str(await session.prompt("hello"))


async def test_a_binary_that_hangs_when_asked_can_be_given_up(tmp_path: Path) -> None:
    """Issue 1: nothing hangs: cancelled while its --help is awaited."""
    server = fake_llama_server.wrapper(tmp_path, "--hang-help")
    with anyio.fail_after(20):
        with anyio.move_on_after(0.5) as scope:
            await Session.open(backend="llama-server", server_path=server)
    assert scope.cancelled_caught
    assert [] == psutil.Process().children()


async def test_closing_is_bounded_whatever_the_engine_does(tmp_path: Path) -> None:
    """DESIGN 9, P8: an engine that ignores everything, with a reply in flight that never begins."""
    server = fake_llama_server.wrapper(tmp_path, "--ignore-stdin --ignore-sigterm --hang-stream")
    session = await Session.open(backend="llama-server", server_path=server)
    child = session._endpoint.child

    async def waiting() -> None:
        with pytest.raises(ClosedError):
            await session.prompt("hello")

    async with anyio.create_task_group() as group:
        group.start_soon(waiting)
        await until(lambda: session._replies)
        with anyio.fail_after(5):
            await session.aclose()
    assert State.STOPPED is child.state
