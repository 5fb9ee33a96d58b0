"""What a llama-server build can do, by its --help and --version. Cached by path, size and modification time."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import anyio
import msgspec

from llmsession.backends.environment import allowed_environment
from llmsession.system.atomic_file import write_atomically
from llmsession.types.errors import StartFailedError

# Seconds. --help prints at once; a binary that hangs is not one of llama.cpp's.
HELP_TIMEOUT = 20.0
# Bytes at the start of a program that show what it was built for.
HEAD = 4096

_VERSION = re.compile(r"version: *(.+)")
# A line that begins with flags; their description follows after two spaces, or on the next lines.
_HEAD = re.compile(r" {0,4}(-{1,2}[A-Za-z].*)")
_FLAG = re.compile(r"(?:^|(?<=[\s,]))--?[A-Za-z][\w.-]*")
_REMOVED = "argument has been removed"


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a build: its spellings, the values it takes (empty: none), and its description."""

    flags: tuple[str, ...]
    takes: str = ""
    text: str = ""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The options of a build. `removed`: those that it recognizes only to refuse them."""

    options: tuple[Option, ...]
    removed: tuple[Option, ...] = ()
    version: str = "unknown"

    @cached_property
    def by_flag(self) -> dict[str, Option]:
        """The options by each of their spellings."""
        return {flag: option for option in self.options for flag in option.flags}

    @property
    def has_child_mode(self) -> bool:
        """Whether it can report its states to a parent and watch its stdin, as builds with a router mode can."""
        return "--models-max" in self.by_flag


async def probe_capabilities(binary: Path, cache: Path, *, start: Sequence[str] = ()) -> Capabilities:
    """Return the capabilities of a binary, from the cache or else by running it.

    `start`: the command that runs it, if that is more than its path. Raises StartFailedError if it is not a
    llama-server.
    """
    try:
        stat = binary.stat()
    except OSError as error:
        raise StartFailedError(
            f"{binary} is gone or cannot be read ({error.strerror})", returncode=None, log_tail=""
        ) from error
    key = hashlib.sha256(f"{binary.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache / f"capabilities-{key}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(kept.read_bytes(), type=Capabilities)
    found = await _ask(binary, start or [str(binary)])
    with contextlib.suppress(OSError):
        write_atomically(kept, msgspec.json.encode(found))
    return found


async def ask_version(binary: Path) -> str:
    """Return the version that --version prints; "unknown" if there is none."""
    with contextlib.suppress(OSError, TimeoutError):
        if found := _VERSION.search(await run_for_words([str(binary), "--version"])):
            return found[1].strip()
    return "unknown"


async def ask_devices(binary: Path) -> str:
    """Return what --list-devices prints. Raises StartFailedError if the binary cannot be run.

    A build without that flag lists no devices.
    """
    try:
        answer = await _run([str(binary), "--list-devices"])
    except (TimeoutError, OSError) as error:
        raise StartFailedError(
            f"{binary} cannot say which devices it sees: {error.strerror or f'no answer within {HELP_TIMEOUT:g} s'}",
            returncode=None,
            log_tail="",
        ) from error
    if answer.returncode in (126, 127):  # of a shell: uvloop runs a file through it that the kernel refuses to execute
        raise StartFailedError(
            f"{binary} cannot say which devices it sees: it is not a program",
            returncode=answer.returncode,
            log_tail=answer.stderr.decode(errors="replace"),
        )
    return answer.stdout.decode(errors="replace")


def parse_help(text: str) -> tuple[tuple[Option, ...], tuple[Option, ...]]:
    """Return the options, and those that were removed, from help texts of today, of 2024, and of llamafile."""
    options: list[Option] = []
    removed: list[Option] = []
    for block in _blocks(text):
        head, *lines = block
        spelt, _, said = re.sub(r",\s+", ", ", head).partition("  ")
        flags = tuple(_FLAG.findall(spelt))
        # `-t N, --threads N` names the value twice.
        takes = spelt[spelt.rindex(flags[-1]) + len(flags[-1]) :].strip(" ,")
        words = " ".join([said.strip(), *lines]).strip()
        (removed if _REMOVED in words else options).append(Option(flags=flags, takes=takes, text=words))
    return tuple(options), tuple(removed)


def _blocks(text: str) -> list[list[str]]:
    """Return the lines of each option: the one with its flags, and those that continue its description."""
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if found := _HEAD.fullmatch(line.rstrip()):
            if not found[1].startswith("-----"):
                blocks.append([found[1]])
            inside = not found[1].startswith("-----")
        elif inside and line.startswith("     "):
            blocks[-1].append(line.strip())
        else:
            inside = False
    return blocks


async def require_version(binary: Path) -> str:
    """Return the version of a binary that has to run. Raises StartFailedError with the end of its output."""
    try:
        answer = await _run([str(binary), "--version"])
    except TimeoutError as error:
        raise StartFailedError(
            f"{binary} did not answer --version within {HELP_TIMEOUT:g} s", returncode=None, log_tail=""
        ) from error
    except OSError as error:
        raise StartFailedError(
            f"{binary} cannot be run: {error.strerror or error}", returncode=None, log_tail=""
        ) from error
    said = (answer.stdout + b"\n" + answer.stderr).decode(errors="replace").strip()
    found = _VERSION.search(said)
    if answer.returncode or found is None:
        raise StartFailedError(
            f"--version ended with exit code {answer.returncode}: {said.rpartition(chr(10))[2] or 'it said nothing'}",
            returncode=answer.returncode,
            log_tail=said,
        )
    return found[1].strip()


async def run_for_words(argv: Sequence[str]) -> str:
    """Return all that a command prints. Raises OSError, and TimeoutError if it hangs."""
    answer = await _run(argv)
    return (answer.stdout + b"\n" + answer.stderr).decode(errors="replace")


async def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command. Raises OSError, and TimeoutError if it hangs."""
    with anyio.fail_after(HELP_TIMEOUT):
        return await anyio.run_process(argv, check=False, env=allowed_environment())


def _explain_refusal(error: OSError, binary: Path) -> str:
    import platform

    from llmsession.backends.diagnosis.loader import explain_refusal

    head = b""
    with contextlib.suppress(OSError), binary.open("rb") as file:
        head = file.read(HEAD)
    return explain_refusal(error, head, platform.machine())


def _explain_silence(answer: subprocess.CompletedProcess[bytes], binary: Path) -> StartFailedError | None:
    """Return the error if it could not even print its help because of its libraries or the processor; else None."""
    from llmsession.backends.diagnosis.exit_codes import describe_signal
    from llmsession.backends.diagnosis.loader import explain_loader

    words = answer.stderr.decode(errors="replace")
    why = explain_loader(words, "llama-server") or describe_signal(answer.returncode, "llama-server")
    if why is None:
        return None
    return StartFailedError(
        f"{binary} did not start: {'; '.join(why)}", returncode=answer.returncode, log_tail=words[-4000:]
    )


async def _ask(binary: Path, start: Sequence[str]) -> Capabilities:
    def refuse(why: str) -> StartFailedError:
        return StartFailedError(
            f"{binary} is not a llama-server: {why}; name another with server_path=",
            returncode=None,
            log_tail="",
        )

    try:
        answer = await _run([*start, "--help"])
    except TimeoutError as error:
        raise refuse(f"it did not answer --help within {HELP_TIMEOUT:g} s") from error
    except OSError as error:
        raise refuse(_explain_refusal(error, binary)) from error
    options, removed = parse_help(answer.stdout.decode(errors="replace"))
    found = Capabilities(options=options, removed=removed)
    if "--ctx-size" not in found.by_flag:
        raise _explain_silence(answer, binary) or refuse("its --help does not know --ctx-size")
    return msgspec.structs.replace(found, version=await ask_version(binary))
