"""The environment of an engine: an allow-list of ours, and a random key."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from llmsession.system.paths import empty_folder

# What an engine may see of our environment: enough to run and to find its GPU, no LLAMA_ARG_* and no keys of the
# user's (LLAMA_SERVER trap 7).
_ALLOWED = {
    "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "XDG_DATA_DIRS",  # where Vulkan finds its drivers
    "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "USERPROFILE", "LOCALAPPDATA",
}  # fmt: skip


# Every vendor's selectors and tables of drivers.
_ALLOWED_PREFIXES = (
    "CUDA_", "HIP_", "HSA_", "ROCR_", "ROCM_", "ROCBLAS_", "AMD_", "GPU_", "ONEAPI_", "ZES_", "SYCL_",
    "MUSA_", "ASCEND_", "GGML_", "VK_", "MESA_", "RADV_",
)  # fmt: skip


def new_api_key() -> str:
    """A key for one process: without one any web page could use the server (LLAMA_SERVER F9)."""
    return secrets.token_urlsafe(24)


def allowed_environment() -> dict[str, str]:
    """What an engine may see of ours: also where it is only asked which devices it has."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }


def child_environment(cache: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The allow-list, and what keeps the engine's own configuration files out."""
    return {
        **allowed_environment(),
        "XDG_CONFIG_HOME": str(empty_folder(cache)),
        # Threads that spin while they wait make a token take 300 ms on a busy machine (LLAMA_SERVER trap 4).
        "OMP_WAIT_POLICY": "passive",
        "GGML_NO_BACKTRACE": "1",
        **extra,
    }
