"""Devices and threads: listings of other machines, and what a cgroup allows."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from llmsession import ConfigError
from llmsession.backends.gpus import parse_listed_gpus, pick_gpu
from llmsession.backends.machine import default_threads
from llmsession.processes.cgroups import allowed_cores
from llmsession.types.device import DeviceRequest, parse_device
from tests import listed_devices

MIB = 2**20


def test_the_gpus_of_a_listing() -> None:
    """LLAMA_SERVER 4.5, and listings of other people: names, memory, in the engine's order."""
    found = parse_listed_gpus(listed_devices.CUDA)
    assert [("CUDA0", 0, "NVIDIA GeForce RTX 3080 Ti", 11909 * MIB, 11650 * MIB)] == [
        (gpu.name, gpu.index, gpu.text, gpu.memory_bytes, gpu.free_bytes) for gpu in found[:1]
    ]
    assert [("CUDA0", 0), ("CUDA1", 1)] == [(gpu.name, gpu.index) for gpu in found]
    assert ["Vulkan0"] == [gpu.name for gpu in parse_listed_gpus(listed_devices.VULKAN)]
    assert [] == parse_listed_gpus(listed_devices.NONE)


def test_a_library_for_the_cpu_is_no_gpu() -> None:
    """LLAMA_SERVER 4.5: BLAS is listed beside Metal, with no memory of its own."""
    assert ["Metal"] == [gpu.name for gpu in parse_listed_gpus(listed_devices.METAL)]


def test_the_gpu_that_was_asked_for() -> None:
    """B13: gpu:1 is the second of the list; gpu is any; what is not there is told with what is."""
    gpus = parse_listed_gpus(listed_devices.CUDA)
    assert gpus[1] == pick_gpu(parse_device("gpu:1"), gpus, "the engine")
    assert pick_gpu(parse_device("gpu"), gpus, "the engine") is None
    with pytest.raises(ConfigError, match=r"gpu:2' is not there: the engine sees gpu:0 \(NVIDIA GeForce"):
        pick_gpu(parse_device("gpu:2"), gpus, "the engine")
    with pytest.raises(ConfigError, match=r"the engine sees none here: .* server_path="):
        pick_gpu(parse_device("gpu"), [], "the engine")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("best", DeviceRequest()),
        ("cpu", DeviceRequest(kind="cpu")),
        ("cpu:3", DeviceRequest(kind="cpu", threads=3)),
        ("gpu", DeviceRequest(kind="gpu")),
        ("gpu:0", DeviceRequest(kind="gpu", index=0)),
    ],
)
def test_what_a_device_is_called(text: str, choice: DeviceRequest) -> None:
    """API 3: best, cpu, cpu:THREADS, gpu, gpu:INDEX."""
    assert choice == parse_device(text)


@pytest.mark.parametrize("text", ["", "cpu:0", "cpu:-1", "cpu:", "gpu:x", "gpu:1:2", "GPU", "best:1", "cuda", None, 0])
def test_what_is_no_device(text: object) -> None:
    """Bad input: one sentence with the forms that there are."""
    with pytest.raises(ConfigError, match="use best, cpu, cpu:THREADS, gpu or gpu:INDEX"):
        parse_device(text)


def write(folder: Path, files: dict[str, str]) -> None:
    """Each at its place."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


V1 = "cpu/{}cpu.cfs_quota_us", "cpu/{}cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("member", "files", "cores"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("2:cpu,cpuacct:/d/x", {"cpu/d/x/cpu.cfs_quota_us": "300000", "cpu/d/x/cpu.cfs_period_us": "100000"}, 3),
        ("2:cpu,x:/d", {"cpu,x/cpu.cfs_quota_us": "200000", "cpu,x/cpu.cfs_period_us": "100000"}, 2),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, None),
        ("3:cpuset:/", {}, None),
    ],
)  # fmt: skip
def test_what_a_cgroup_allows(tmp_path: Path, member: str, files: dict[str, str], cores: int | None) -> None:
    """B13: versions 1 and 2, the group's own quota and those around it; a part of a core is none, but there is one."""
    write(tmp_path / "sys/fs/cgroup", files)
    write(tmp_path / "proc/self", {"cgroup": member})
    assert cores == allowed_cores(tmp_path)


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    """B13: as on macOS and Windows."""
    assert allowed_cores(tmp_path) is None


@pytest.mark.parametrize(
    ("usable", "quota", "threads"), [(8, None, 7), (64, 4, 3), (2, None, 1), (1, 1, 1), (1, None, 1), (16, 32, 15)]
)
def test_threads_are_the_cores_that_we_may_use_less_one(
    monkeypatch: pytest.MonkeyPatch, usable: int, quota: int | None, threads: int
) -> None:
    """B13, F4: what is busy at the start does not matter: 16 cores at load 15 were one thread for days."""
    monkeypatch.setattr(psutil, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr("llmsession.backends.machine._usable_cores", lambda: usable)
    monkeypatch.setattr("llmsession.backends.machine.allowed_cores", lambda: quota)
    assert threads == default_threads()


def test_no_more_threads_than_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """B13: an affinity for one core is one thread, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda *, logical: 64)
    assert 1 == default_threads()
