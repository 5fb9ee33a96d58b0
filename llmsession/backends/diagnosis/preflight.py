"""Whether a model fits into the memory that is free, looked at before anything is started."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmsession.backends.machine import free_memory
from llmsession.types.errors import StartFailedError

if TYPE_CHECKING:
    from llmsession.backends.launch import Launch

# A start writes some kilobytes, and a running engine goes on to.
LEAST_DISK = 64 * 1024
# Flags of llama-server's that change what is needed: with one of them in extra_args our estimate is none.
_CHANGE_NEED = {
    "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-ngl", "--gpu-layers", "--n-gpu-layers", "-dev", "--device",
    "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "--override-kv",
}  # fmt: skip


def check_memory(launch: Launch, *, offloaded: float = 0.0) -> None:
    """Raise NotEnoughMemoryError if it does not fit. `offloaded`: the share that a GPU's own memory takes, 0 to 1.

    Costs some reading of /proc, a fraction of a millisecond.
    """
    unknown = (
        launch.cache_type_k or launch.cache_type_v or any(_flag(text) in _CHANGE_NEED for text in launch.extra_args)
    )
    if not launch.check_memory or launch.info is None or unknown:
        return
    needed = launch.info.memory_needed(launch.context_length, launch.parallel) * (1 - offloaded)
    if needed <= (free := free_memory()):
        return
    from llmsession.backends.diagnosis.causes import not_enough_memory

    raise not_enough_memory(launch, free, advice="; check_memory=False starts it all the same")


def check_disk(folder: Path) -> None:
    """Raise StartFailedError if an engine could not write its log: its states come through such a file."""
    if not hasattr(os, "statvfs"):
        return
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize < LEAST_DISK:
            raise StartFailedError(
                f"the disk of {folder} is full: make room there, or name another folder with cache_dir=",
                returncode=None,
                log_tail="",
            )


def _flag(argument: str) -> str:
    return argument.partition("=")[0].replace("_", "-")
