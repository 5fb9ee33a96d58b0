"""Which builds of llama.cpp fit this machine: its platform, and the accelerators that it seems to have.

The check is cheap: it looks for files of drivers, and loads or runs nothing. A build that finds no device after all
still runs on the CPU.
"""

from __future__ import annotations

import os
import platform as host
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

Accelerator: TypeAlias = Literal["cpu", "cuda", "vulkan", "rocm", "metal"]

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64", "s390x": "s390x"}


class Platform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The system and processor that a program is compiled for."""

    system: Literal["linux", "macos", "windows"]
    machine: Literal["x64", "arm64", "s390x"]

    def __str__(self) -> str:
        """Return its name, such as `Linux x64`."""
        return f"{ {'linux': 'Linux', 'macos': 'macOS', 'windows': 'Windows'}[self.system] } {self.machine}"


def this_platform() -> Platform | None:
    """Return the platform of this machine; None if llama.cpp publishes no builds for it."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform)
    machine = _MACHINES.get(host.machine().lower())
    if system is None or machine is None:
        return None
    return Platform(system=system, machine=machine)  # type: ignore[arg-type]


def present_accelerators(root: Path = Path("/")) -> frozenset[Accelerator]:
    """Return the accelerators that this machine seems to have, `cpu` included. `root`: the root of the file system."""
    if sys.platform == "win32":
        return frozenset(_on_windows())
    if sys.platform == "darwin":
        return frozenset(["cpu", "metal"] if host.machine() == "arm64" else ["cpu"])
    return frozenset(_on_linux(root))


def _on_linux(root: Path) -> Iterator[Accelerator]:
    yield "cpu"
    has_nvidia = (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()
    if has_nvidia:
        yield "cuda"
    # The kernel driver alone is not enough: ROCm's libraries are not in the archive.
    if (root / "dev/kfd").exists() and any(root.glob("opt/rocm*/lib/libamdhip64.so*")):
        yield "rocm"
    has_card = has_nvidia or any(root.glob("dev/dri/renderD*"))
    # lavapipe (lvp) runs Vulkan on the CPU, more slowly than ggml's own CPU code.
    drivers = [*root.glob("usr/share/vulkan/icd.d/*.json"), *root.glob("etc/vulkan/icd.d/*.json")]
    if has_card and any(not driver.name.startswith("lvp") for driver in drivers):
        yield "vulkan"


def _on_windows() -> Iterator[Accelerator]:
    yield "cpu"
    system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
    if (system / "nvcuda.dll").exists() or shutil.which("nvidia-smi"):
        yield "cuda"
    if any(system.glob("amdhip64*.dll")):
        yield "rocm"
    if (system / "vulkan-1.dll").exists():
        yield "vulkan"
