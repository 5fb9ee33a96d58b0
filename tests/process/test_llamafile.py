"""The processes of backend `llamafile`: a shell starts it, and neither it nor the engine behind it outlives us."""

from __future__ import annotations

from pathlib import Path

import anyio
import psutil
import pytest

from llmsession import Session
from tests import fake_llamafile
from tests.process.test_orphans import engines_of, kill_and_look, let_load, read_until, spawn, wait_for_word

pytestmark = pytest.mark.anyio

VERSIONS = ["0.9.3", "0.10.1"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("moment", ["loading", "idle", "generating"])
def test_kill_9_of_the_program_ends_it(
    tmp_path: Path, version: str, moment: str, slow_model: Path, cache_dir: Path
) -> None:
    """CAPABILITIES B9: it knows no child mode, so on Linux the guard's death signal is what ends it."""
    server = fake_llamafile.wrapper(tmp_path, like=version, name="a 'llamafile'")
    options: dict[str, object] = {"backend": "llamafile", "server_path": str(server), "threads": 1}
    if moment == "loading":
        options["model"] = str(slow_model)
    program = spawn(options, stay_idle=moment != "generating")
    if moment == "loading":
        read_until(program, b"begin")
        wait_for_word(cache_dir / "logs", b"loading model")
        let_load(0.2)
    else:
        read_until(program, moment.encode())
    kill_and_look(program, engines_of(program))


@pytest.mark.parametrize("version", VERSIONS)
async def test_closing_in_the_middle_of_a_reply_leaves_nothing(tmp_path: Path, version: str) -> None:
    """CAPABILITIES B8: one process, no shell beside it; bounded also with a reply in flight."""
    server = fake_llamafile.wrapper(tmp_path, like=version)
    session = await Session.open(backend="llamafile", server_path=server, threads=1)
    (engine,) = psutil.Process().children(recursive=True)
    assert engine.pid == session.pid
    async with session.prompt_streaming("count to 100", extra={"ignore_eos": True}) as stream:
        async for _ in stream:
            break
        with anyio.fail_after(10):
            await session.aclose()
    assert not engine.is_running()
    assert [] == psutil.Process().children(recursive=True)
