"""What a llama-server build can do, by its own --help: asked once, kept by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
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


async def probe_capabilities(binary: Path, cache: Path, *, start: Sequence[str] = ()) -> Capabilities:
    """From the cache, else by running it. Raises StartFailedError where it is no llama-server.

    `start` is how it is run, where that takes more than its path.
    """
    stat = binary.stat()
    key = hashlib.sha256(f"{binary.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache / f"capabilities-{key}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(kept.read_bytes(), type=Capabilities)
    found = await _ask(binary, start or [str(binary)])
    with contextlib.suppress(OSError):
        half = kept.with_suffix(f".{os.getpid()}.new")
        half.write_bytes(msgspec.json.encode(found))
        half.replace(kept)
    return found


async def ask_version(binary: Path) -> str:
    """The first line of what it says to --version; "unknown" where it does not."""
    with contextlib.suppress(OSError, TimeoutError):
        if found := _VERSION.search(await run_for_words([str(binary), "--version"])):
            return found[1].strip()
    return "unknown"


async def run_for_words(argv: Sequence[str]) -> str:
    """All that it prints. Raises OSError, and TimeoutError where it hangs."""
    answer = await _run(argv)
    return (answer.stdout + b"\n" + answer.stderr).decode(errors="replace")


async def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with anyio.fail_after(HELP_TIMEOUT):
        return await anyio.run_process(argv, check=False, env=environment)


async def _ask(binary: Path, start: Sequence[str]) -> Capabilities:
    def refuse(why: str) -> StartFailedError:
        return StartFailedError(
            f"{binary} is no llama-server: {why}; name another with server_path=",
            returncode=None,
            log_tail="",
        )

    try:
        answer = await _run([*start, "--help"])
    except TimeoutError as error:
        raise refuse(f"it did not answer --help within {HELP_TIMEOUT:g} s") from error
    except OSError as error:
        raise refuse(str(error.strerror or error)) from error
    flags = frozenset(_FLAG.findall(answer.stdout.decode(errors="replace")))
    if "--ctx-size" not in flags:
        raise refuse("its --help does not know --ctx-size")
    return Capabilities(flags=flags)
