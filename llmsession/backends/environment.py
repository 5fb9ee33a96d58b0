"""The environment variables of an engine: an allow-list of those of this process, and a random key."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from llmsession.system.paths import empty_folder

# The variables that an engine may see: enough to run and to find its GPU, but no LLAMA_ARG_* and none of the user's
# keys (LLAMA_SERVER trap 7).
_ALLOWED = {
    "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "XDG_DATA_DIRS",  # where Vulkan finds its drivers
    "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "USERPROFILE", "LOCALAPPDATA",
}  # fmt: skip


# Prefixes of each vendor's variables for choosing devices and drivers.
_ALLOWED_PREFIXES = (
    "CUDA_", "HIP_", "HSA_", "ROCR_", "ROCM_", "ROCBLAS_", "AMD_", "GPU_", "ONEAPI_", "ZES_", "SYCL_",
    "MUSA_", "ASCEND_", "GGML_", "VK_", "MESA_", "RADV_",
)  # fmt: skip


def new_api_key() -> str:
    """Return a key for one process. Without one, any web page could use the server (LLAMA_SERVER F9)."""
    return secrets.token_urlsafe(24)


def allowed_environment() -> dict[str, str]:
    """Return the variables that an engine may see, also when it is only asked which devices it has."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }


def child_environment(cache: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the allowed variables, `extra`, and those that keep the engine from reading configuration files."""
    return {
        **allowed_environment(),
        "XDG_CONFIG_HOME": str(empty_folder(cache)),
        # Threads that spin while they wait make a token take 300 ms on a busy machine (LLAMA_SERVER trap 4).
        "OMP_WAIT_POLICY": "passive",
        "GGML_NO_BACKTRACE": "1",
        **extra,
    }
