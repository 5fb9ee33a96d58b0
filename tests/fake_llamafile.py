"""A stand-in for llamafile, since its releases are no packages: its command line in front of a real engine.

It takes the flags of llamafile 0.9 or 0.10, refuses in its words what that would refuse, and does what a session must
not let happen (open a browser, chat, write a log where it was started) by ending with a complaint. Then it hands over:
to the llama-server binary where one is installed, else to the wheel's server, hosted in this process. `wrapper` makes
the file that a session is given: as an APE it is not a program that the kernel knows, so only a shell can start it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

# Of 0.9 --server, as its server_params_parse has them: with a value, and without.
OLD_VALUES = {
    "--port", "--host", "-m", "--model", "-a", "--alias", "-c", "--ctx-size", "-t", "--threads", "-tb",
    "--threads-batch", "-b", "--batch-size", "-ngl", "--gpu-layers", "--n-gpu-layers", "--gpu", "-np", "--parallel",
    "--api-key", "--api-key-file", "-to", "--timeout", "--chat-template",
    "-ctk", "--cache-type-k", "-ctv", "--cache-type-v",
    "--mmproj", "--log-format", "-n", "--n-predict", "--rope-freq-base",
}  # fmt: skip
OLD_SWITCHES = {
    "--server", "--nobrowser", "--unsecure", "-cb", "--cont-batching", "--metrics", "--slots-endpoint-disable",
    "--log-disable", "--embedding", "-fa", "--flash-attn", "-v", "--verbose", "--mlock", "--no-mmap", "--nologo",
}  # fmt: skip
SHORT = {
    "-m": "--model", "-a": "--alias", "-c": "--ctx-size", "-t": "--threads", "-tb": "--threads-batch",
    "-b": "--batch-size", "-np": "--parallel", "-cb": "--cont-batching",
}  # fmt: skip
GPUS = {"auto", "apple", "amd", "nvidia", "disable", "disabled"}
# Of 0.10: what it takes itself; the rest is for the llama-server in it.
NEW_SWITCHES = {"--server", "--chat", "--cli", "--ascii", "--nologo", "--nothink", "--unsecure", "--confine-reads"}
UPSTREAM_VALUES = {
    "--model", "--alias", "--host", "--port", "--parallel", "--ctx-size", "--threads", "--threads-batch",
    "--batch-size", "--ubatch-size", "--cache-ram",
}  # fmt: skip
UPSTREAM_HELP = "\n".join(
    [f"{flag + ' N':<40}as llama-server has it" for flag in sorted(UPSTREAM_VALUES)]
    + [f"{flag:<40}as llama-server has it" for flag in ("--metrics", "--no-kv-unified")]
)


def fail(message: str) -> NoReturn:
    """As it does."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(1)


def read_old(arguments: list[str]) -> dict[str, str]:
    """The flags of 0.9 by their long names."""
    given: dict[str, str] = {}
    rest = iter(arguments)
    for flag in rest:
        if flag in OLD_SWITCHES:
            given[SHORT.get(flag, flag)] = ""
        elif flag in OLD_VALUES:
            value = next(rest, None)
            if value is None:
                fail(f"error: invalid parameter for argument: {flag}")
            given[SHORT.get(flag, flag)] = value
        else:
            fail(f"error: unknown argument: {flag}")
    if given.get("--gpu", "auto").lower() not in GPUS:
        fail(f"error: invalid --gpu flag value: {given['--gpu']}")
    for flag, harm in (
        ("--server", "it would chat in the terminal"),
        ("--nobrowser", "it would open a browser"),
        ("--log-disable", "it would write llama.log into the folder where it was started"),
        ("--cont-batching", "conversations would wait for each other"),
    ):
        if flag not in given:
            fail(f"stand-in: without {flag} {harm}")
    if "--api-key" in given:
        fail("stand-in: everyone can read a key on the command line")
    return given


def read_new(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of 0.10, and those that are left for its llama-server."""
    if "--server" not in arguments:
        fail("stand-in: without --server it would chat in the terminal")
    left: list[str] = []
    rest = iter(arguments)
    for flag in rest:
        if flag == "--gpu":
            next(rest, None)
        elif flag == "--nobrowser":
            fail(f"error: invalid argument: {flag}")
        elif flag not in NEW_SWITCHES:
            left.append(flag)
    values = {flag: left[at + 1] for at, flag in enumerate(left[:-1]) if flag in UPSTREAM_VALUES}
    return values, left


def read_key(given: dict[str, str]) -> str:
    """From the file of keys, one a line."""
    path = given.get("--api-key-file")
    keys = [line for line in Path(path).read_text().splitlines() if line] if path is not None else []
    if len(keys) == 1:  # of one key it logs the end
        print(f"api_key: ****{keys[0][-4:]}", file=sys.stderr, flush=True)
    return keys[0] if keys else ""


def hand_over_to_binary(binary: str, given: dict[str, str], left: list[str], key: str) -> NoReturn:
    """Become llama-server, which says where it listens."""
    argv = [binary, *(left or ["--no-kv-unified", "--metrics", "--slots"])]
    if not left:
        for flag in (
            "--model",
            "--alias",
            "--host",
            "--port",
            "--ctx-size",
            "--threads",
            "--threads-batch",
            "--parallel",
        ):
            argv += [flag, given[flag]]
    os.environ["LLAMA_API_KEY"] = key
    os.execv(binary, argv)


def hand_over_to_wheel(wheel: str, given: dict[str, str], key: str) -> NoReturn:
    """Host its server, on another port than was asked for: as 0.9 does where that one is taken."""
    sys.path += [wheel, str(Path(__file__).parent)]
    hosted = importlib.import_module("hosted_engine")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        server = hosted.serve(hosted.load_embedded_child(), given, key)
    except RuntimeError as error:
        fail(f"error: unable to load model: {error}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"\nllama server listening at {server.listening_address}\n", file=sys.stderr, flush=True)
    while True:
        signal.pause()


def main() -> None:
    """Parse, refuse or hand over."""
    own = argparse.ArgumentParser()
    own.add_argument("--like")
    own.add_argument("--binary")
    own.add_argument("--wheel")
    own.add_argument("--port-taken-once")
    options = own.parse_args(shlex.split(os.environ.pop("FAKE")))
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"llamafile v{options.like}")
        return
    rebuilt = options.like.startswith("0.10")
    if "--help" in arguments:
        print(UPSTREAM_HELP if rebuilt else "a page of the manual")
        return
    given, left = read_new(arguments) if rebuilt else (read_old(arguments), [])
    key = os.environ.get("LLAMA_API_KEY", "") if rebuilt else read_key(given)
    if not key:
        fail("stand-in: without a key every web page could use it")
    if options.port_taken_once and Path(options.port_taken_once).exists():
        Path(options.port_taken_once).unlink()
        fail("couldn't bind to server socket")
    if options.binary:
        hand_over_to_binary(options.binary, given, left, key)
    hand_over_to_wheel(options.wheel, given, key)


def wrapper(folder: Path, *, like: str = "0.10.0", name: str = "llamafile", flags: str = "") -> Path:
    """The file. It has no `#!`, so that the kernel does not know how to start it."""
    binary = os.environ.get("LLMSESSION_TEST_LLAMA_SERVER", "")
    engine = (
        f"--binary {shlex.quote(binary)}" if binary and Path(binary).exists() else f"--wheel {shlex.quote(_wheel())}"
    )
    script = shlex.join([sys.executable, "-I", "-S", str(Path(__file__))])
    path = folder / name
    path.write_text(f'FAKE={shlex.quote(f"--like {like} {engine} {flags}")} exec {script} "$@"\n')
    path.chmod(0o755)
    return path


def _wheel() -> str:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


if __name__ == "__main__":
    main()
