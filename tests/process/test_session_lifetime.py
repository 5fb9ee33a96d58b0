"""The claims of test_child once more with the real engines, at the front door. DESIGN 4, rows B7, B8, B15."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import msgspec
import psutil
import pytest

from llmsession import (
    ClosedError,
    LLMSessionError,
    Progress,
    ServerExitedError,
    Session,
    StartFailedError,
    StartTimeoutError,
)
from llmsession.backends import llama_server, probes
from llmsession.processes.child import State
from llmsession.processes.records import read_records, write_record
from llmsession.system.paths import records_folder
from tests import fake_llama_server
from tests.engines import BINARIES, Engine, own_child, own_files
from tests.model_files import write_random_model
from tests.process.programs import is_alive, without_child_mode

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
    seen: list[Progress] = []
    async with Session(on_progress=seen.append, **engine.options()) as session:
        assert Progress(stage="load", done=0, total=session.info.size_bytes) in seen


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


async def test_a_killed_engine_that_may_not_be_started_again_is_an_error_with_the_text_so_far(engine: Engine) -> None:
    """Options.restart_limit; how it goes on otherwise is in test_restarts."""
    async with Session(**engine.options(restart_limit=0)) as session:
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
        assert session.pid is None


async def test_a_prompt_right_after_the_engines_death_is_answered(engine: Engine) -> None:
    """DESIGN 4: nothing delivered: the same request again. Its end need not be known yet when the prompt is sent."""
    async with Session(**engine.options()) as session:
        for _ in range(3):
            assert session.pid is not None
            os.kill(session.pid, signal.SIGKILL)
            assert "river" == str(await session.prompt('say "river"', temperature=0))


async def test_an_engine_comes_back_though_its_cache_was_emptied_and_the_program_moved(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E14: a relative cache_dir, then chdir; the folder emptied; then the engine dies. It never came back."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    async with Session(**engine.options(cache_dir="mine", chat_template=template)) as session:
        assert 1 == (await session.generate("a", max_tokens=1)).usage.completion_tokens
        monkeypatch.chdir(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "mine")
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        assert 1 == (await session.generate("a", max_tokens=1)).usage.completion_tokens
    assert (tmp_path / "mine" / "logs").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


async def test_many_who_find_it_dead_start_it_once(engine: Engine, cache_dir: Path) -> None:
    """DESIGN 4: ensure_ready under a lock: one log for each start."""
    async with Session(**engine.options()) as session:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        await own_child(session).exited.wait()
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
    child = own_child(session)

    async def waiting() -> None:
        with pytest.raises(ClosedError):
            await session.prompt("hello")

    async with anyio.create_task_group() as group:
        group.start_soon(waiting)
        await until(lambda: session._replies.active.count)
        with anyio.fail_after(5):
            await session.aclose()
    assert State.STOPPED is child.state


async def test_a_session_that_was_never_opened_can_be_closed(engine: Engine) -> None:
    """DESIGN 4: any state, here new; after that it is never opened."""
    session = Session(**engine.options())
    await session.aclose()
    await session.aclose()
    with pytest.raises(ClosedError):
        await session.__aenter__()
    assert [] == psutil.Process().children()


@pytest.mark.parametrize("encoding", [None, "chat"], ids=["completion", "chat"])
async def test_a_prompt_may_come_while_the_server_is_being_started(engine: Engine, encoding: str | None) -> None:
    """DESIGN 3: whoever needs the server waits for its start."""
    session = Session(**engine.options(prompt_encoding=encoding))
    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.__aenter__)
                while not session._server.is_starting:
                    await anyio.lowlevel.checkpoint()
                assert "loading" == await session.get_health()
                assert "river" == str(await session.prompt('say "river"', temperature=0))
    finally:
        await session.aclose()


async def test_a_session_whose_start_failed_can_be_closed_again_and_again(engine: Engine, tmp_path: Path) -> None:
    """DESIGN 4: any state, here failed."""
    model_path = write_random_model(tmp_path / "cut.gguf")
    session = Session(model_path, **engine.options())
    with model_path.open("r+b") as file:
        file.truncate(model_path.stat().st_size - 10_000)
    with anyio.fail_after(30), pytest.raises(LLMSessionError):
        await session.__aenter__()
    await session.aclose()
    await session.aclose()


async def test_ten_may_close_it_at_once_also_when_cancelled(engine: Engine) -> None:
    """DESIGN 4: idempotent, from any task; STYLE 1: shielded and bounded. The engine ends by itself, unkilled."""
    session = await Session.open(**engine.options())
    child = own_child(session)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(session.aclose)
            group.cancel_scope.cancel()
    assert (State.STOPPED, 0) == (child.state, child.returncode)


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_another_event_loop_in_another_thread_may_close_it(engine: Engine, other: str) -> None:
    """DESIGN 4: bots close their session from another task or loop; here with a reply in flight in the first."""
    session = await Session.open(**engine.options())
    child = own_child(session)
    closer = threading.Thread(target=anyio.run, args=(session.aclose,), kwargs={"backend": other})

    async def read_on() -> None:
        async with session.prompt_streaming("count to 100", extra={"ignore_eos": True}) as stream:
            async for _ in stream:
                if closer.ident is None:
                    closer.start()

    with anyio.fail_after(30):
        with pytest.raises(ClosedError):
            await read_on()
        await child.exited.wait()
        await session.aclose()
    closer.join()
    assert State.STOPPED is child.state


async def test_an_engine_that_hangs_is_gone_after_aclose(engine: Engine) -> None:
    """DESIGN 4: the ladder ends with SIGKILL. A stopped process hears neither the exit line nor SIGTERM."""
    session = await Session.open(**engine.options())
    child = own_child(session)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    with anyio.fail_after(5):
        await session.aclose()
    assert (State.STOPPED, -signal.SIGKILL) == (child.state, child.returncode)


async def test_an_engine_that_dies_while_it_loads_is_noticed(engine: Engine, slow_model: Path, cache_dir: Path) -> None:
    """Issue 2: early exit, noticed at once: the model would take seconds, the deadline is far away."""
    errors: list[StartFailedError] = []
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def opening() -> None:
                with pytest.raises(StartFailedError, match="SIGKILL") as caught:
                    await Session.open(slow_model, start_timeout=1000, **engine.options())
                errors.append(caught.value)

            group.start_soon(opening)
            await until(lambda: logs_say(cache_dir, b"loading model"))
            for child in psutil.Process().children():
                child.kill()
    assert "loading model" in errors[0].log_tail


async def test_a_callback_that_raises_ends_the_start_and_the_engine(engine: Engine) -> None:
    """A bug in the user's on_progress is theirs to see, and leaves nothing running."""

    def fail(share: float) -> None:
        raise ZeroDivisionError

    with anyio.fail_after(30), pytest.raises(ZeroDivisionError):
        await Session.open(on_progress=fail, **engine.options())
    assert [] == psutil.Process().children()


async def test_a_grandchild_of_the_engine_is_gone_with_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 4: it holds the output open, which hangs nobody, and is ended with the group."""
    real = engine.server_path or sys.executable
    program = tmp_path / "with-grandchild"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--help*) ;; *) sleep 3600 & echo grandchild $! >&2 ;; esac\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    options = engine.options()
    if engine.server_path is None:
        monkeypatch.setattr(sys, "executable", str(program))
    else:
        options["server_path"] = str(program)
    async with Session(**options) as session:
        found = re.search(r"grandchild (\d+)", own_files(session)[1].read_text())
        assert found is not None
        grandchild = int(found.group(1))
        assert is_alive(grandchild)
        with anyio.fail_after(5):
            await session.aclose()
    await until(lambda: not is_alive(grandchild))


async def test_the_terminals_interrupt_does_not_reach_it(engine: Engine) -> None:
    """Row B7: a group of its own: Ctrl-C is the program's to handle."""
    async with Session(**engine.options()) as session:
        assert session.pid is not None
        assert session.pid == os.getpgid(session.pid) != os.getpgid(0)


async def test_it_is_on_record_while_it_runs_and_a_start_clears_what_others_left(
    engine: Engine, cache_dir: Path
) -> None:
    """Row B9: a true leftover is ended, a stranger with a number that was used again is not."""
    folder = records_folder(cache_dir)
    owner = subprocess.Popen([sys.executable, "-c", ""])
    owner.wait()
    sleepers = [subprocess.Popen(["sleep", "3600"], process_group=0) for _ in range(2)]
    left, stranger = sleepers
    try:
        for process in sleepers:
            path = write_record(folder, process.pid, name="engine", log=cache_dir / "log")
            assert path is not None
            record = msgspec.structs.replace(read_records(folder)[path], owner_pid=owner.pid)
            if process is stranger:
                record = msgspec.structs.replace(record, started=record.started - 100)
            path.write_bytes(msgspec.json.encode(record))
        async with Session(**engine.options()) as session:
            await until(lambda: [session.pid] == [record.pid for record in read_records(folder).values()])
            await until(lambda: left.poll() is not None)
            assert -signal.SIGKILL == left.returncode
            assert stranger.poll() is None
        assert {} == read_records(folder)
    finally:
        for process in sleepers:
            process.kill()
            process.wait()


@pytest.mark.parametrize("binary", BINARIES, ids=str)
async def test_a_build_without_child_mode_is_started_by_port_and_health(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 4: a free port that we choose; taken in between, another is tried. The real one, too, as an old build."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        real = probes.find_free_port
        monkeypatch.setattr(llama_server, "find_free_port", lambda: ports.pop() if ports else real())
        fake = binary == "fake"
        server = (
            fake_llama_server.wrapper(tmp_path, "--no-child-mode") if fake else without_child_mode(tmp_path, binary)
        )
        async with Session(backend="llama-server", threads=1, server_path=server) as session:
            child = own_child(session)
            assert (False, None) == (child.command.watches_stdin, child.command.farewell)
            assert "ok" == await session.get_health()
            with anyio.fail_after(5):
                await session.aclose()
        assert State.STOPPED is child.state
    assert [] == ports


async def test_a_build_without_child_mode_that_gives_no_sign_is_given_up(tmp_path: Path) -> None:
    """DESIGN 2: the deadline, also for a port that nobody listens at."""
    server = fake_llama_server.wrapper(tmp_path, "--no-child-mode --hang-before-listening")
    with anyio.fail_after(20), pytest.raises(StartTimeoutError):
        await Session.open(backend="llama-server", server_path=server, start_timeout=0.5)


@pytest.mark.parametrize("binary", BINARIES, ids=str)
async def test_loading_is_followed_share_by_share(binary: str, tmp_path: Path) -> None:
    """Row B7: the real binary tells how far it is where it reads the file itself: what moves the deadline."""
    fake = binary == "fake"
    server = fake_llama_server.wrapper(tmp_path, "--ready-after 0.5 --progress-every 0.05") if fake else binary
    path = write_random_model(tmp_path / "large.gguf", width=64 if fake else 1024, layers=20)
    seen: list[Progress] = []
    try:
        async with Session(
            path,
            context_length=256,
            parallel=1,
            extra_args=("--load-mode", "none"),
            on_progress=seen.append,
            backend="llama-server",
            threads=1,
            server_path=server,
        ):
            shares = [progress.share or 0.0 for progress in seen]
            assert sorted(shares) == shares
            assert [share for share in shares if 0 < share < 1] != []
    finally:
        path.unlink()
