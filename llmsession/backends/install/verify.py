"""Verifies that a llama-server runs here: it must report its version, and answer correctly with a tiny model.

So a build for another processor, a missing library, and a driver that computes nonsense are noticed before it is used.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from llmsession.backends.flags.capabilities import require_version
from llmsession.backends.launch import Launch
from llmsession.backends.llama_server import LlamaServer
from llmsession.models import bundled
from llmsession.system.paths import logs_folder, records_folder
from llmsession.types.errors import LLMSessionError, StartFailedError
from llmsession.types.messages import Message

PROMPT, ANSWER = 'reply with "ok chief"', "ok chief"
# Seconds. The model has only two megabytes, but a GPU driver may have to compile its programs first.
REPLY_TIMEOUT = 120.0


class _Reply(msgspec.Struct):
    content: str


async def verify_engine(binary: Path, name: str, *, cache: Path, scratch: Path) -> str:
    """Return the version of a llama-server that runs. `scratch`: a temporary folder, which is created and removed.

    Raises StartFailedError if it does not run or answers wrongly. In any case, no process is left.
    """
    try:
        version = await require_version(binary)
        said = await _ask(binary, cache, scratch)
    except LLMSessionError as error:
        raise StartFailedError(
            f"{name} does not run on this machine: {error}",
            returncode=getattr(error, "returncode", None),
            log_tail=getattr(error, "log_tail", ""),
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if said.strip() != ANSWER:
        raise StartFailedError(
            f"{name} runs on this machine, but computes nonsense: the demonstration model said {said[:40]!r} and not "
            f"{ANSWER!r}; try another variant, such as cpu, or a newer driver",
            returncode=None,
            log_tail="",
        )
    return version


async def _ask(binary: Path, cache: Path, scratch: Path) -> str:
    scratch.mkdir(exist_ok=True)
    launch = Launch(
        model_path=bundled.bundled_path(),
        alias=bundled.NAME,
        context_length=512,
        parallel=1,
        threads=1,
        cache_ram_mib=0,
        start_timeout=REPLY_TIMEOUT,
        cache=scratch,  # the capabilities of a binary that will be renamed are of no use later
        logs=logs_folder(cache),
        records=records_folder(cache),
    )
    endpoint = await LlamaServer(binary).prepare(launch, lambda _: None)
    assert endpoint.child is not None  # noqa: S101 - LlamaServer always starts a process
    try:
        asked = {"prompt": bundled.ENCODING.render([Message.user(PROMPT)]), "n_predict": 16, "temperature": 0}
        body = await endpoint.client.post("/completion", msgspec.json.encode(asked), timeout=REPLY_TIMEOUT)
        return msgspec.json.decode(body, type=_Reply).content
    except msgspec.DecodeError as error:
        raise StartFailedError(f"its answer cannot be read: {error}", returncode=None, log_tail="") from error
    finally:
        await endpoint.child.aclose()
