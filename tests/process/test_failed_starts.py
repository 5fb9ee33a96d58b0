"""Starts that fail, on real engines: one sentence each with the next step, and nothing left behind (row B12)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import psutil
import pytest

from llmsession import (
    ConfigError,
    InvalidModelError,
    LLMSessionError,
    NotEnoughMemoryError,
    Options,
    ProtocolError,
    ServerExitedError,
    Session,
    StartFailedError,
    StartTimeoutError,
    UnsupportedFeatureError,
)
from llmsession.backends import endpoint, llama_server
from llmsession.models.bundled import bundled_path
from llmsession.session.server.launch_plan import LaunchPlanner
from llmsession.session.server.model_files import EngineFiles
from tests import fake_llama_server
from tests.engines import BINARIES, Engine
from tests.model_files import write_random_model
from tests.process.programs import without_child_mode

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_files_left(cache_dir: Path) -> Any:
    """No record of a process, no half-written file."""
    yield
    left = [path for path in cache_dir.rglob("*") if path.parent.name == "running" or path.suffix == ".new"]
    assert [] == left


async def fail(engine: Engine, model: Path | None = None, **fields: Any) -> LLMSessionError:
    """The error of a start, which is one line."""
    with anyio.fail_after(30), pytest.raises(LLMSessionError) as caught:
        await Session.open(**engine.options(model=model, **fields))
    assert "\n" not in str(caught.value)
    return caught.value


def changed(path: Path, old: bytes, new: bytes, *, after: bytes = b"") -> Path:
    """A small model with some bytes of it replaced: the first after a place."""
    whole = write_random_model(path).read_bytes()
    at = whole.index(old, whole.index(after))
    path.write_bytes(whole[:at] + new + whole[at + len(old) :])
    return path


def unknown_type(path: Path) -> Path:
    """A model with a tensor in a format of the future."""
    whole = bytearray(write_random_model(path).read_bytes())
    at = whole.index(b"blk.1.ffn_down.weight") + len(b"blk.1.ffn_down.weight") + 4 + 2 * 8
    whole[at : at + 4] = (999).to_bytes(4, "little")
    path.write_bytes(whole)
    return path


MODELS: dict[str, tuple[Callable[[Path], Path], type[LLMSessionError], str]] = {
    "architecture": (
        lambda path: changed(path, b"llama", b"xyzzy", after=b"general.architecture"),
        StartFailedError,
        "does not know .*'s architecture xyzzy; the build is older than the model",
    ),
    "pre-tokenizer": (
        lambda path: changed(path, b"gpt-2", b"gpt-9", after=b"tokenizer.ggml.pre"),
        StartFailedError,
        "tokenizer gpt-9; the build is older than the model",
    ),
    "tokenizer": (
        lambda path: changed(path, b"gpt2", b"gpt9", after=b"tokenizer.ggml.model"),
        StartFailedError,
        "tokenizer gpt9; the build is older than the model",
    ),
    "format": (unknown_type, StartFailedError, "does not know the format 999"),
    "merges": (
        lambda path: changed(path, b"tokenizer.ggml.merges", b"tokenizer.ggml.verges"),
        InvalidModelError,
        "its vocabulary cannot be read; take another conversion",
    ),
    "tensor": (
        lambda path: changed(path, b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight"),
        InvalidModelError,
        "it lacks the tensor blk.1.ffn_down.weight; take another conversion",
    ),
    "entry": (
        lambda path: changed(path, b"llama.block_count", b"llama.block_amount"[:17]),
        InvalidModelError,
        "its header lacks llama.block_count; take another conversion",
    ),
    "template": (
        lambda path: write_random_model(path, template="{% if messages %}{{ oh no "),
        InvalidModelError,
        r"its chat template cannot be parsed \(Parser Error.*--chat-template-file",
    ),
}


@pytest.mark.parametrize("name", MODELS)
async def test_a_model_that_the_engine_cannot_load(engine: Engine, tmp_path: Path, name: str) -> None:
    """Row B12: whether the file is at fault or the build too old, and what to do about it."""
    make, kind, sentence = MODELS[name]
    path = make(tmp_path / "m.gguf")
    error = await fail(engine, path)
    assert type(error) is kind
    assert re.search(sentence, str(error)), str(error)
    assert str(path) in str(error)
    cause = error.__cause__
    assert isinstance(cause, StartFailedError)
    assert (1, True) == (cause.returncode, bool(cause.log_tail))


def cut(path: Path) -> None:
    """Half of a model."""
    path.write_bytes(bundled_path().read_bytes()[:900_000])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, r"cannot open it \(No such file or directory\); look at the path"),
        (lambda path: path.write_bytes(b"I am no model. " * 1000), "it is not a GGUF file; give one"),
        (lambda path: path.mkdir(), "it is not a GGUF file|cannot open it"),
        (cut, "it is cut; fetch it again"),
    ],
    ids=["missing", "not GGUF", "folder", "cut"],
)
async def test_a_file_that_goes_bad_after_it_was_looked_at(
    engine: Engine, tmp_path: Path, cache_dir: Path, make: Callable[[Path], None], sentence: str
) -> None:
    """LLAMA_SERVER §4.6: our own look at the header comes first; then it is the engine that finds out."""
    path = tmp_path / "m.gguf"
    make(path)
    options = Options(**engine.options(cache_dir=cache_dir))
    preparation = LaunchPlanner(options, keep_download=lambda end: None)
    info = await read_info(bundled_path())
    backend = await preparation.choose_backend()
    launch = preparation.make_launch(backend, bundled_path(), info, EngineFiles())
    with anyio.fail_after(30), pytest.raises(InvalidModelError, match=sentence) as caught:
        await backend.prepare(msgspec.structs.replace(launch, model_path=path), lambda child: None)
    assert path == caught.value.path


async def read_info(path: Path) -> Any:
    """As a session does."""
    from llmsession import read_model_info

    return await anyio.to_thread.run_sync(read_model_info, path)


FLAGS = {
    ("--bogus-flag",): "this llama-server .* has no --bogus-flag",
    ("--top-k", "many"): "--top-k: this is not a number that it can take; its --help",
    ("--top-k",): "wants a value after --top-k",
    ("--device", "CUDA0"): "may not hold --device: use device=",
    ("--tensor-split", "x,y"): "--tensor-split",
    ("--verbosity", "1"): "may not hold --verbosity 1",
    ("--slot-save-path", "/no/where"): "--slot-save-path: not a directory: /no/where",
    ("--chat-template", "{% if"): "may not hold --chat-template: use chat_template=",
    ("--lora", "/no/where.gguf"): "may not hold --lora: use lora=",
    ("--mmproj", "/no/where.gguf"): "may not hold --mmproj: use mmproj=",
    ("-md", "/no/where.gguf"): "may not hold -md: use draft_model=",
    ("--log-disable",): "may not hold --log-disable",
    ("--ssl-key-file", "x"): "may not hold --ssl-key-file",
    ("--port", "1"): "may not hold --port: the session chooses",
}


async def test_a_flag_of_the_users_that_cannot_be(engine: Engine) -> None:
    """LLAMA_SERVER §4.6: what is unknown, removed, of no value, or fights ours."""
    for flags, sentence in FLAGS.items():
        error = await fail(engine, extra_args=flags)
        if engine.backend == "embedded":
            assert isinstance(error, UnsupportedFeatureError | ConfigError)
            assert flags[0] in str(error)
        else:
            assert isinstance(error, ConfigError)
            assert re.search(sentence, str(error)), str(error)


async def test_more_conversations_than_an_engine_serves(engine: Engine) -> None:
    """LLAMA_SERVER §4.6: the engine's bound in the words of our options."""
    error = await fail(engine, parallel=300)
    assert isinstance(error, ConfigError)
    assert "parallel=300 is more than the 256 conversations" in str(error)
    error = await fail(engine, parallel=3_000_000, check_memory=False)
    assert isinstance(error, ConfigError)
    assert "context_length=2048 times parallel=3000000 is more than an engine can count" in str(error)


# With a limit on its address space, of which its engine is a part; then what was suggested is tried.
LIMITED = """
import resource, sys, anyio
from llmsession import NotEnoughMemoryError, Session
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
async def main():
    fields = {"backend": sys.argv[3], "threads": 1}
    if len(sys.argv) > 4:
        fields["server_path"] = sys.argv[4]
    for check in (True, False):
        try:
            await Session.open(sys.argv[2], context_length=16384, parallel=4, check_memory=check, **fields)
        except NotEnoughMemoryError as error:
            print(error)
            suggested = dict([error.suggestion.split(" ")[0].split("=")])
    async with Session(sys.argv[2], parallel=4, context_length=int(suggested["context_length"]), **fields) as session:
        print("tokens", (await session.generate("hello", max_tokens=3)).usage.completion_tokens)
anyio.run(main)
"""


def test_too_little_memory_is_seen_before_and_after_and_what_is_suggested_fits(
    engine: Engine, tmp_path: Path, cache_dir: Path
) -> None:
    """Rows B12 and C16: with both numbers; before anything is spawned, unless the check is overruled."""
    path = write_random_model(
        tmp_path / "m.gguf", width=512, layers=6, context=16384, heads=8, kv_heads=8, feed_forward=1024
    )
    given = [engine.backend, *filter(None, [engine.server_path])]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "850000000", str(path), *given],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    before, after, tokens = done.stdout.splitlines()
    need = r"m needs \d+ MB of memory \(.* MB of weights, .* MB for 4 conversations of 16384 tokens\), and 350 MB are "
    assert re.fullmatch(
        need + r"free: context_length=\d+ or parallel=1 would fit; check_memory=False starts it all the same", before
    )
    assert re.fullmatch(
        f"(the embedded engine|llama-server) ran out of memory: {need}free: context_length=.* would fit", after
    )
    assert "tokens 3" == tokens
    assert 2 == len([*cache_dir.glob("logs/*.log")])  # of the overruled start, and of the one that fits


async def test_memory_is_looked_at_before_anything_is_spawned(engine: Engine, tmp_path: Path, cache_dir: Path) -> None:
    """Rows B12 and C16: a model of which no memory could hold what was asked."""
    path = write_random_model(tmp_path / "m.gguf", width=1024, layers=1, heads=8, kv_heads=8, context=1 << 30)
    error = await fail(engine, path, context_length=1 << 30, parallel=64)
    assert isinstance(error, NotEnoughMemoryError)
    assert re.search(r"needs 28\d TB of memory .* GB are free: context_length=\d+", str(error)), str(error)
    assert error.needed_bytes > error.free_bytes > 0
    assert "context_length=" in error.suggestion
    assert [] == [*cache_dir.glob("logs/*"), *cache_dir.glob("capabilities-*")]


async def test_an_engine_that_a_signal_ends_while_it_loads(engine: Engine, slow_model: Path) -> None:
    """LLAMA_SERVER §4.6: each is named, with what it most likely means."""
    meanings = {
        signal.SIGILL: "instructions that this processor does not have .*SIGILL.*; (use|take) backend=",
        signal.SIGSEGV: "crashed by a fault of its own .SIGSEGV.; try again",
        signal.SIGABRT: "crashed by a fault of its own .SIGABRT.; try again",
        signal.SIGBUS: "model's file could not be read any more .SIGBUS.; .*fetch it again",
        signal.SIGTERM: "ended from outside .SIGTERM.",
        signal.SIGKILL: "killed from outside .SIGKILL.: by hand, or by the system for lack of memory; look into",
    }
    for number, meaning in meanings.items():
        errors: list[LLMSessionError] = []

        async def opening(errors: list[LLMSessionError] = errors) -> None:
            errors.append(await fail(engine, slow_model))

        async with anyio.create_task_group() as group:
            group.start_soon(opening)
            # A capability probe of a binary is a child too, with neither a record nor a log.
            with anyio.fail_after(20):
                while not (children := [child for child in psutil.Process().children() if is_loading(child)]):
                    await anyio.lowlevel.checkpoint()
            for child in children:
                child.send_signal(number)
        assert isinstance(errors[0], StartFailedError)
        assert -number == errors[0].returncode
        assert re.search(meaning, str(errors[0])), str(errors[0])


def is_loading(child: psutil.Process) -> bool:
    """Whether it has the model's file open."""
    try:
        return any("slow.gguf" in file.path for file in child.open_files())
    except psutil.Error:
        return False


async def test_a_file_that_is_cut_while_it_is_in_use(engine: Engine, tmp_path: Path) -> None:
    """LLAMA_SERVER §4.6, signals: the engine dies of SIGBUS in mid-reply; the next start finds the file cut."""
    path = write_random_model(tmp_path / "m.gguf", width=256, layers=4)
    with anyio.fail_after(30):
        async with Session(path, **engine.options(prompt_encoding="chat")) as session:

            async def reply() -> None:
                async with session.generate_streaming("hello", max_tokens=2000, extra={"ignore_eos": True}) as stream:
                    async for _ in stream:
                        os.truncate(path, 20_000)

            with pytest.raises((ServerExitedError, InvalidModelError)) as caught:
                await reply()
            if isinstance(caught.value, ServerExitedError):
                assert re.search("SIGBUS while it replied: .*model's file .* fetch it again", str(caught.value))
            with pytest.raises(InvalidModelError, match="cut"):
                await session.prompt("hello")


async def test_a_library_that_is_not_there(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row B12: the loader's own words, for a program and for the embedded engine's wheel."""
    missing = "libcuda-of-no-machine.so.1"
    if engine.backend == "embedded":
        package = tmp_path / "xllamacpp"
        package.mkdir()
        package.joinpath("__init__.py").write_text(f"import ctypes\nctypes.CDLL('{missing}')\n")
        monkeypatch.setattr("llmsession.backends.find.find_wheel", lambda: tmp_path)
        error = await fail(engine)
    else:
        assert engine.server_path is not None
        path = tmp_path / "llama-server"
        path.write_bytes(Path(engine.server_path).read_bytes())  # alone, without the libraries beside it
        path.chmod(0o755)
        missing = "libllama-server-impl.so"
        error = await fail(Engine(engine.backend, str(path)))
    assert isinstance(error, StartFailedError)
    assert re.search(f"did not start: it lacks the library {missing}; ", str(error)), str(error)


def patched_python(path: Path, old: bytes, new: bytes) -> Path:
    """A real program of this machine, with some bytes replaced."""
    path.write_bytes(Path(sys.executable).resolve().read_bytes().replace(old, new))
    path.chmod(0o755)
    return path


async def test_a_program_that_this_system_cannot_run(tmp_path: Path) -> None:
    """Issue: built for another processor, for a newer system, or cut."""
    whole = Path(sys.executable).resolve().read_bytes()
    versions = sorted(set(re.findall(rb"GLIBC_2\.\d\d\0", whole)))
    foreign = whole[:18] + (183 if whole[18] != 183 else 62).to_bytes(2, "little") + whole[20:]
    programs = {
        "foreign": (foreign, "is not a llama-server: it is built for (aarch64|x86_64), and this machine is"),
        "newer": (
            whole.replace(versions[-1], b"GLIBC_9.99\0"),
            "built for a newer system .it wants GLIBC 9.99.; use backend=",
        ),
        "lacking": (whole.replace(b"libc.so.6\0", b"libq.so.6\0"), "it lacks the library libq.so.6; install it, or"),
        "cut": (whole[:100], "is not a llama-server: "),
        "text": (b"hello", "is not a llama-server: it is not a program"),
        "lost": (b"#!/no/such/shell\n", "is not a llama-server: its interpreter /no/such/shell is not there"),
    }
    for name, (content, sentence) in programs.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o755)
        error = await fail(Engine("llama-server", str(path)))
        assert isinstance(error, StartFailedError)
        assert re.search(sentence, str(error)), (name, str(error))
        assert str(path) in str(error)


@pytest.mark.parametrize("mode", ["", " --no-child-mode"], ids=["child mode", "health"])
@pytest.mark.parametrize("way", ["404", "hang", "nonsense"])
async def test_a_server_that_answers_health_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, way: str
) -> None:
    """Issue: it is none of llama.cpp's, or too old; it is ended."""
    monkeypatch.setattr(endpoint, "PROPS_TIMEOUT", 0.3)
    path = fake_llama_server.wrapper(tmp_path, f"--only-health {way}{mode}")
    error = await fail(Engine("llama-server", str(path)))
    assert isinstance(error, ProtocolError)
    assert re.search("is no llama.cpp server|does not answer /props as .* server_path=", str(error)), str(error)


@pytest.mark.parametrize("flags", ["--hang-before-listening", "--never-ready", "--never-ready --no-child-mode"])
async def test_a_server_that_never_gets_ready(tmp_path: Path, flags: str) -> None:
    """Issue: it hangs before it listens, or listens and never gets ready; it is ended, and the option is named."""
    path = fake_llama_server.wrapper(tmp_path, flags)
    error = await fail(Engine("llama-server", str(path)), start_timeout=0.5)
    assert isinstance(error, StartTimeoutError)
    assert "start_timeout=" in str(error)


async def test_a_server_that_exits_at_once_is_quoted(tmp_path: Path) -> None:
    """Issue: with its code and its last words, where they tell nothing that is known."""
    path = fake_llama_server.wrapper(tmp_path, "--die-while-loading 3")
    error = await fail(Engine("llama-server", str(path)))
    assert isinstance(error, StartFailedError)
    assert "ended with exit code 3 before it was ready: the model is made of cheese" in str(error)


@pytest.mark.parametrize("binary", BINARIES)
async def test_a_port_that_is_always_taken_by_another(
    binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: a build without port 0; four ports are tried, then it is said. With port 0 the kernel gives a free one."""
    path = (
        fake_llama_server.wrapper(tmp_path, "--no-child-mode")
        if binary == "fake"
        else without_child_mode(tmp_path, binary)
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(llama_server, "find_free_port", lambda: other.getsockname()[1])
        error = await fail(Engine("llama-server", str(path)))
    assert isinstance(error, StartFailedError)
    assert "another program took its port; try again" in str(error)


async def test_a_cache_folder_that_cannot_be_written(engine: Engine, tmp_path: Path) -> None:
    """Issue: the folder and the option are named, whichever part of it is in the way."""
    (tmp_path / "file").touch()
    for folder in (Path("/proc"), tmp_path / "file", Path("/dev/null")):
        error = await fail(engine, cache_dir=folder)
        assert isinstance(error, ConfigError)
        assert str(folder) in str(error)
        assert "cache_dir=" in str(error)
    for name in ("logs", "running", "no-config"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).touch()
        error = await fail(engine, cache_dir=folder)
        assert isinstance(error, ConfigError)
        assert f"{folder / name}" in str(error)
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o500)
    if os.geteuid():  # to root every folder is open
        assert "nothing can be written into the folder" in str(await fail(engine, cache_dir=folder))


# Files may not grow beyond so many bytes: as on a full disk, what is written further is refused.
BOUNDED = """
import os, resource, sys, anyio
from llmsession import LLMSessionError, Session
async def main():
    fields = {"backend": sys.argv[2], "threads": 1, "start_timeout": 2.0}
    if len(sys.argv) > 3:
        fields["server_path"] = sys.argv[3]
        async with Session(**fields):  # what its build can do is asked, and kept
            pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    try:
        async with Session(**fields) as session:
            replies = [str(await session.prompt('say "river"', temperature=0)) for _ in range(12)]
            print(set(replies), os.path.getsize(session.log_path))
    except LLMSessionError as error:
        print(type(error).__name__, error)
anyio.run(main)
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (0, "StartFailedError .* could not write its log into .*/logs .File too large.: make room there, or name "),
        (4096, r"\{'river'\} 4096"),
    ],
    ids=["from the beginning", "later"],
)
def test_a_log_that_cannot_grow_neither_hangs_nor_breaks_a_session(
    engine: Engine, cache_dir: Path, limit: int, said: str
) -> None:
    """Issue: a full disk under the log. The engine goes on without one; where its states cannot be read, it is said."""
    given = [engine.backend, *filter(None, [engine.server_path])]
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(limit), *given],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    assert re.search(said, done.stdout), done.stdout


async def test_a_full_disk_is_seen_before_the_start(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue: nothing is spawned, and the folder and the option are named."""
    real = os.statvfs
    full = lambda path: os.statvfs_result((*real(path)[:4], 0, *real(path)[5:]))  # noqa: E731
    monkeypatch.setattr("llmsession.backends.diagnosis.preflight.os.statvfs", full)
    error = await fail(engine)
    assert isinstance(error, StartFailedError)
    assert re.search("the disk of .*/logs is full: make room there, or name another folder with cache_dir=", str(error))


def test_the_command_shows_one_sentence_and_the_right_code(engine: Engine, tmp_path: Path) -> None:
    """API 6: 1 where the work failed, 2 for wrong use; nothing on stdout."""
    variables = {"LLMSESSION_BACKEND": engine.backend, "LLMSESSION_THREADS": "1"}
    if engine.server_path is not None:
        variables["LLMSESSION_SERVER_PATH"] = engine.server_path
    strange = MODELS["architecture"][0](tmp_path / "strange.gguf")
    for model, more, code, sentence in (
        (strange, {}, 1, "llmsession: .* did not start: it does not know .*'s architecture xyzzy; "),
        (
            bundled_path(),
            {"LLMSESSION_PARALLEL": "200000000"},
            1,
            "llmsession: tiny-chat needs .* would fit; check_mem",
        ),
        (bundled_path(), {"LLMSESSION_PARALLEL": "300"}, 2, "llmsession: parallel=300 is more than the 256"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "llmsession", "run", "hello", "--model", str(model)],
            env=os.environ | variables | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (code, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n")), done.stderr
        assert re.match(sentence, done.stderr), done.stderr
