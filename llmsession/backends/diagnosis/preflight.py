"""Checks, before anything is started, whether a model fits into the free memory and the log onto the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmsession.backends.machine import free_memory
from llmsession.types.errors import StartFailedError

if TYPE_CHECKING:
    from llmsession.backends.launch import Launch

# Bytes. A start writes some kilobytes to the log, and a running engine keeps writing to it.
LEAST_DISK = 64 * 1024
# Flags of llama-server that change how much memory is needed: with one of them in extra_args there is no estimate.
_CHANGE_NEED = {
    "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-ngl", "--gpu-layers", "--n-gpu-layers", "-dev", "--device",
    "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "--override-kv",
}  # fmt: skip


def check_memory(launch: Launch, *, offloaded: float = 0.0) -> None:
    """Raise NotEnoughMemoryError if the model does not fit into the free memory.

    `offloaded`: the share that goes into a GPU's own memory, 0 to 1. Takes a fraction of a millisecond.
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
    """Raise StartFailedError if the disk is too full for an engine's log files, through which it reports its states."""
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
