"""Backend `llamafile`: the stand-in of tests/fake_llamafile.py has its command line, and a real engine behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from llmsession import BackendNotFoundError, ConfigError, Session, StartFailedError, UnsupportedFeatureError
from llmsession.backends.choose import choose_backend
from llmsession.backends.llamafile import Llamafile
from llmsession.backends.probes import AnnouncedPort
from llmsession.backends.survey import list_candidates
from llmsession.processes.logfile import LogFile
from llmsession.system.paths import cache_folder
from tests import fake_llamafile
from tests.engines import own_child, own_files

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
VERSIONS = ["0.8.17", "0.9.3", "0.10.1"]
NAMES = ["llamafile", "o'neil's \"best\" $(touch gone) model.llamafile", "-dash `touch gone`.llamafile"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_it_is_started_with_the_flags_of_its_version(tmp_path: Path, version: str) -> None:
    """CAPABILITIES B2, LLAMA_SERVER 8: 0.8 and 0.9 have flags of their own, 0.10 those of llama-server."""
    server = fake_llamafile.wrapper(tmp_path, like=version)
    async with Session(backend="llamafile", server_path=server, threads=1, parallel=2) as session:
        assert ("llamafile", f"llamafile {version}") == (session.backend, session.version)
        assert 2 == session.parallel
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["0.9.3", "0.10.1"])
async def test_no_name_is_read_by_the_shell_that_starts_it(tmp_path: Path, name: str, version: str) -> None:
    """LLAMA_SERVER 8: a shell starts it; here with quotes, spaces and commands in its name and the model's."""
    folder = tmp_path / "a 'b' \"c\" $(touch gone)"
    folder.mkdir()
    server = fake_llamafile.wrapper(folder, like=version, name=name)
    model = folder / "it's $HOME; touch gone.gguf"
    model.write_bytes(Path(_bundled()).read_bytes())
    async with Session(model, backend="llamafile", server_path=server, threads=1, prompt_encoding="chatml") as session:
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text
    assert not list(tmp_path.rglob("gone"))
    assert not Path("gone").exists()


def _bundled() -> Path:
    from llmsession.models.bundled import bundled_path

    return bundled_path()


@pytest.mark.parametrize("version", ["0.9.3", "0.10.1"])
async def test_the_key_is_neither_on_the_command_line_nor_in_a_log(tmp_path: Path, version: str) -> None:
    """CAPABILITIES B15: 0.9 takes a key from its arguments or a file, and logs the end of a single one."""
    import psutil

    server = fake_llamafile.wrapper(tmp_path, like=version)
    async with Session(backend="llamafile", server_path=server, threads=1) as session:
        assert session.pid is not None
        assert session.api_key not in " ".join(psutil.Process(session.pid).cmdline())
        log = own_child(session).log
        said = log.read_log() + log.read_out()
        assert session.api_key.encode() not in said
        assert b"****" not in said
        assert [] == list(own_files(session)[1].parents[1].rglob("*key*"))
        reply = await session.prompt(OK, temperature=0)
    assert "ok chief" == reply.text


async def test_an_old_one_refuses_what_it_does_not_have_by_name(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: no count of a chat's tokens before 2025; said before anything is sent."""
    server = fake_llamafile.wrapper(tmp_path, like="0.9.3")
    async with Session(backend="llamafile", server_path=server, threads=1, prompt_encoding="chat") as session:
        with pytest.raises(UnsupportedFeatureError, match=r"llamafile at .* has no count of a chat's tokens"):
            await session.count_tokens([{"role": "user", "content": "hello"}])
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text


async def test_a_port_that_is_taken_meanwhile_is_another_try(tmp_path: Path) -> None:
    """CAPABILITIES B7: a port that was free a moment ago."""
    taken = tmp_path / "taken"
    taken.touch()
    server = fake_llamafile.wrapper(tmp_path, like="0.9.3", flags=f"--port-taken-once {taken}")
    async with Session(backend="llamafile", server_path=server, threads=1) as session:
        assert not taken.exists()
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text


async def test_the_users_own_flags_come_along(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: --unsecure lifts its sandbox, --gpu disable keeps it off the GPU."""
    server = fake_llamafile.wrapper(tmp_path, like="0.9.3")
    flags = ("--unsecure", "--gpu", "disable")
    async with Session(backend="llamafile", server_path=server, threads=1, extra_args=flags) as session:
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text
    with pytest.raises(ConfigError, match="this llamafile knows no --no-such"):
        await Session.open(backend="llamafile", server_path=server, extra_args=("--no-such",))


@pytest.mark.parametrize("flag", ["--chat", "--v2", "--port", "--api-key-file=x", "--nobrowser"])
async def test_what_would_make_it_something_else_is_refused(tmp_path: Path, flag: str) -> None:
    """Our decision: the session sets what it does and where it listens."""
    server = fake_llamafile.wrapper(tmp_path)
    with pytest.raises(ConfigError, match=flag.partition("=")[0]):
        await Session.open(backend="llamafile", server_path=server, extra_args=(flag,))


@pytest.mark.parametrize(
    ("body", "ready"),
    [
        ((200, b'{"status":"no slot available","slots_idle":0,"slots_processing":4}'), True),
        ((200, b'{"status":"ok","slots_idle":4,"slots_processing":0}'), True),
        ((200, b"fine"), True),
        ((503, b'{"status":"loading model"}'), False),
        ((500, b'{"status":"error","error":"Model failed to load"}'), False),
    ],
)
async def test_any_200_is_ready(tmp_path: Path, body: tuple[int, bytes], ready: bool) -> None:
    """LLAMA_SERVER 8: all slots busy is 200 with other words."""
    status, content = body

    async def answer(stream: Any) -> None:
        async with stream:
            await stream.receive()
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
            await stream.send(head.encode() + content)

    log = LogFile(tmp_path, "llamafile")
    log.path.write_bytes(b"")
    probe = AnnouncedPort(log)
    assert not (await probe()).ready
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        log.path.write_text(f"\nllama server listening at http://127.0.0.1:{port}\n\n")
        assert ready is (await probe()).ready
        assert (f"http://127.0.0.1:{port}" if ready else None) == probe.base_url
        tasks.cancel_scope.cancel()


async def test_it_is_found_on_path_and_named_by_auto_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES B2: from PATH; another engine goes before it, unless a file called so is named."""
    server = fake_llamafile.wrapper(tmp_path, like="0.9.3")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await choose_backend("llamafile", cache=cache_folder())
    assert isinstance(found, Llamafile)
    assert server == found.binary
    assert not isinstance(await choose_backend("auto", cache=cache_folder()), Llamafile)
    assert isinstance(await choose_backend("auto", server, cache=cache_folder()), Llamafile)
    listed = {engine.backend: engine for engine in await list_candidates(cache=cache_folder())}
    assert (str(server), "0.9.3") == (listed["llamafile"].path, listed["llamafile"].version)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BackendNotFoundError, match="no llamafile on PATH") as refused:
        await choose_backend("llamafile", cache=cache_folder())
    assert refused.value.hint is not None
    assert "llamafile" in refused.value.hint


async def test_what_is_none_is_told(tmp_path: Path) -> None:
    """STYLE: one sentence with what, which, and what to do next."""
    other = tmp_path / "other.llamafile"
    other.write_text('echo "hello, I am something else"\n')
    with pytest.raises(ConfigError, match=r"chmod \+x"):
        await choose_backend("llamafile", other, cache=cache_folder())
    other.chmod(0o755)
    with pytest.raises(
        StartFailedError, match=r"is not a llamafile: to --version it says 'hello, I am something else'"
    ):
        await Session.open(backend="llamafile", server_path=other)
    with pytest.raises(ConfigError, match="not a program"):
        await choose_backend("llamafile", tmp_path / "nothing", cache=cache_folder())
