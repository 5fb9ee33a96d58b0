"""`llmsession devices`, and GPUs of other machines by a stand-in: there is none on ours, so no GPU path was run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsession import BackendNotFoundError, ConfigError, Device, Session, StartFailedError, available_devices
from llmsession.backends import find
from tests import fake_llama_server, listed_devices
from tests.engines import own_child

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> str:
    """A llama-server that sees the two GPUs of a listing."""
    (tmp_path / "listing").write_text(listed_devices.CUDA)
    return str(fake_llama_server.wrapper(tmp_path, f"--devices {tmp_path / 'listing'}"))


async def argv_of(server: str, **fields: Any) -> list[str]:
    """The command line of a session on it."""
    async with Session(server_path=server, threads=1, **fields) as session:
        return list(own_child(session).command.argv)


def value(argv: list[str], flag: str) -> str | None:
    """What stands behind a flag."""
    return argv[argv.index(flag) + 1] if flag in argv else None


async def test_the_gpus_that_the_chosen_build_sees(server: str) -> None:
    """B13: the CPU always, then each GPU with its memory; what device= takes is the id, or the device."""
    cpu, *gpus = await available_devices(server_path=server)
    assert ("cpu", "cpu") == (cpu.id, cpu.kind)
    assert [
        Device(id="gpu:0", name="NVIDIA GeForce RTX 3080 Ti", kind="gpu", memory_bytes=11909 << 20,
               free_bytes=11650 << 20),
        Device(id="gpu:1", name="NVIDIA RTX PRO 4000 Blackwell SFF Edition", kind="gpu", memory_bytes=24026 << 20,
               free_bytes=23795 << 20),
    ] == gpus  # fmt: skip
    assert "CUDA1" == value(await argv_of(server, device=gpus[1]), "--device")


@pytest.mark.parametrize(
    ("fields", "device", "layers"),
    [
        ({}, None, None),
        ({"device": "gpu"}, None, None),
        ({"device": "gpu:0"}, "CUDA0", None),
        ({"device": "gpu:1", "gpu_layers": 12}, "CUDA1", "12"),
        ({"gpu_layers": 0}, None, "0"),
        ({"device": "cpu"}, "none", "0"),
    ],
    ids=str,
)
async def test_what_the_engine_is_told(
    server: str, fields: dict[str, Any], device: str | None, layers: str | None
) -> None:
    """B13: best and gpu leave the layers to the engine, which fits them to what is free; cpu keeps off the GPU."""
    argv = await argv_of(server, **fields)
    assert (device, layers) == (value(argv, "--device"), value(argv, "--gpu-layers"))


async def test_a_gpu_that_is_not_there(server: str) -> None:
    """B13: told with those that there are."""
    with pytest.raises(ConfigError, match=r"gpu:2' is not there: .* sees gpu:0 .*, gpu:1 \("):
        await Session.open(server_path=server, device="gpu:2")


async def test_the_cpu_is_there_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """B13: what no engine is asked for."""
    monkeypatch.setattr(find, "find_llama_servers", lambda cache: iter(()))
    monkeypatch.setattr(find, "find_wheel", lambda: None)
    monkeypatch.setattr(find, "find_llamafile", lambda path=None: None)
    assert ["cpu"] == [device.id for device in await available_devices()]
    with pytest.raises(BackendNotFoundError):
        await available_devices(backend="embedded")


async def test_a_server_that_cannot_be_asked(tmp_path: Path) -> None:
    """Bad input: a program that cannot be run, by its name."""
    path = tmp_path / "llama-server"
    path.write_bytes(b"\x7fELF no program at all")
    path.chmod(0o755)
    with pytest.raises(StartFailedError, match="llama-server cannot say which devices it sees"):
        await available_devices(server_path=path)


def test_the_command(server: str) -> None:
    """E2: a table for people, JSON for programs, by the options of the environment."""
    done = {
        json_too: subprocess.run(
            [sys.executable, "-m", "llmsession", "devices", *(["--json"] if json_too else [])],
            capture_output=True, text=True, check=True, env=environment(server),
        ).stdout
        for json_too in (False, True)
    }  # fmt: skip
    assert ["cpu", "gpu:0", "gpu:1"] == [each["id"] for each in json.loads(done[True])]
    lines = done[False].splitlines()
    assert ["id", "name", "memory", "free"] == lines[0].split()
    assert any(line.startswith("gpu:1  NVIDIA RTX PRO 4000") and "23.2 GiB" in line for line in lines)


def environment(server: str) -> dict[str, str]:
    """Ours, with the server named in it."""
    return {**os.environ, "LLMSESSION_SERVER_PATH": server}
