"""What a llama-server build can do, by its own --help: asked once, kept by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
from pathlib import Path

import anyio
import msgspec

from llmsession.errors import StartFailedError

# --help prints at once; a binary that hangs is none of llama.cpp's.
HELP_TIMEOUT = 20.0

_VERSION = re.compile(r"version: *(.+)")
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of a build."""

    flags: frozenset[str]

    @property
    def has_child_mode(self) -> bool:
        """Whether it reports its states to a parent and watches its stdin: builds that can be a router can."""
        return "--models-max" in self.flags


async def probe_capabilities(binary: Path, cache: Path) -> Capabilities:
    """From the cache, else by running it. Raises StartFailedError where it is no llama-server."""
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
    found = await _ask(binary)
    with contextlib.suppress(OSError):
        half = kept.with_suffix(f".{os.getpid()}.new")
        half.write_bytes(msgspec.json.encode(found))
        half.replace(kept)
    return found


async def ask_version(binary: Path) -> str:
    """The first line of what it says to --version; "unknown" where it does not."""
    with contextlib.suppress(OSError, TimeoutError):
        answer = await _run(binary, "--version")
        said = (answer.stdout + b"\n" + answer.stderr).decode(errors="replace")
        if found := _VERSION.search(said):
            return found[1].strip()
    return "unknown"


async def require_version(binary: Path) -> str:
    """The same, of one that has to run. Raises StartFailedError with its last words."""
    try:
        answer = await _run(binary, "--version")
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


async def _run(binary: Path, flag: str) -> subprocess.CompletedProcess[bytes]:
    """Raises OSError, and TimeoutError where it hangs."""
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with anyio.fail_after(HELP_TIMEOUT):
        return await anyio.run_process([str(binary), flag], check=False, env=environment)


async def _ask(binary: Path) -> Capabilities:
    def refuse(why: str) -> StartFailedError:
        return StartFailedError(
            f"{binary} is no llama-server: {why}; name another with server_path=",
            returncode=None,
            log_tail="",
        )

    try:
        answer = await _run(binary, "--help")
    except TimeoutError as error:
        raise refuse(f"it did not answer --help within {HELP_TIMEOUT:g} s") from error
    except OSError as error:
        raise refuse(str(error.strerror or error)) from error
    flags = frozenset(_FLAG.findall(answer.stdout.decode(errors="replace")))
    if "--ctx-size" not in flags:
        raise refuse("its --help does not know --ctx-size")
    return Capabilities(flags=flags)
