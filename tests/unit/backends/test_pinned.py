"""Which archives of llama.cpp there are, and which of them suits a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from llmsession.backends.install.pinned import (
    PAGE,
    Asset,
    Build,
    Release,
    ReleaseTable,
    choose_archive,
    choose_build,
    choose_release,
    parse_archive_name,
    read_table,
)
from llmsession.backends.install.platforms import Accelerator, Platform, present_accelerators
from llmsession.types.errors import ConfigError, UsageError

LINUX = Platform(system="linux", machine="x64")
WINDOWS = Platform(system="windows", machine="x64")
DIGEST = "0" * 64


def build(platform: Platform, variant: str) -> Build:
    """As a table has it."""
    kind: Any = variant.partition("-")[0]
    assert kind in get_args(Accelerator)
    name = f"llama-b1-bin-any-{variant}.zip"
    return Build(
        platform=platform, accelerator=kind, variant=variant, assets=(Asset(name=name, size=1, sha256=DIGEST),)
    )


RELEASE = Release(
    tag="b1",
    url="https://example.org/b1",
    builds=(
        *(build(LINUX, variant) for variant in ("cpu", "vulkan", "rocm-7.2")),
        *(build(WINDOWS, variant) for variant in ("cuda-13.3", "vulkan", "cpu", "cuda-12.4")),
    ),
)


@pytest.mark.parametrize(
    ("name", "platform", "accelerator", "variant"),
    [
        ("llama-b6123-bin-ubuntu-x64.zip", "linux x64", "cpu", "cpu"),
        ("llama-b9001-bin-ubuntu-x64.tar.gz", "linux x64", "cpu", "cpu"),
        ("llama-b9001-bin-ubuntu-s390x.tar.gz", "linux s390x", "cpu", "cpu"),
        ("llama-b9001-bin-ubuntu-vulkan-arm64.tar.gz", "linux arm64", "vulkan", "vulkan"),
        ("llama-b9001-bin-ubuntu-rocm-7.2-x64.tar.gz", "linux x64", "rocm", "rocm-7.2"),
        ("llama-b9001-bin-macos-arm64.tar.gz", "macos arm64", "metal", "metal"),
        ("llama-b9001-bin-macos-x64.tar.gz", "macos x64", "cpu", "cpu"),
        ("llama-b9001-bin-win-cpu-x64.zip", "windows x64", "cpu", "cpu"),
        ("llama-b9001-bin-win-cpu-arm64.zip", "windows arm64", "cpu", "cpu"),
        ("llama-b9001-bin-win-cuda-12.4-x64.zip", "windows x64", "cuda", "cuda-12.4"),
        ("llama-b9001-bin-win-hip-radeon-x64.zip", "windows x64", "rocm", "hip-radeon"),
        ("llama-b9001-bin-win-vulkan-x64.zip", "windows x64", "vulkan", "vulkan"),
        ("cudart-llama-bin-win-cuda-12.4-x64.zip", "windows x64", "cuda", "cuda-12.4"),
    ],
)
def test_an_archives_name_says_what_it_is_for(name: str, platform: str, accelerator: str, variant: str) -> None:
    """CAPABILITIES B6: as llama.cpp's release workflow names them."""
    said = parse_archive_name(name)
    assert said is not None
    assert (platform, accelerator, variant) == (
        f"{said.platform.system} {said.platform.machine}", said.accelerator, said.variant,
    )  # fmt: skip
    assert name.startswith("cudart") == said.runtime


@pytest.mark.parametrize(
    "name",
    [
        "llama-b9001-xcframework.zip",
        "llama-b9001-ui.tar.gz",
        "llama-b9001-bin-android-arm64.tar.gz",
        "llama-b9001-bin-ubuntu-openvino-2026.0-x64.tar.gz",
        "llama-b9001-bin-ubuntu-sycl-fp16-x64.tar.gz",
        "llama-b9001-bin-macos-arm64-kleidiai.tar.gz",
        "llama-b9001-bin-win-opencl-adreno-arm64.zip",
        "llama-b9001-bin-910b-openEuler-x86-aclgraph.tar.gz",
        "llama-b9001-bin-ubuntu-x64.tar.gz/../../x",
        "../llama-b9001-bin-ubuntu-x64.tar.gz",
        "",
    ],
)
def test_what_is_not_understood_is_left_alone(name: str) -> None:
    """CAPABILITIES B6: neither other systems and accelerators, nor paths."""
    assert parse_archive_name(name) is None


@pytest.mark.parametrize(
    ("platform", "kinds", "variant", "expected"),
    [
        (LINUX, ["cpu"], None, "cpu"),
        (LINUX, ["cpu", "cuda"], None, "cpu"),  # llama.cpp publishes none with CUDA for Linux
        (LINUX, ["cpu", "cuda", "vulkan"], None, "vulkan"),
        (LINUX, ["cpu", "rocm", "vulkan"], None, "rocm-7.2"),
        (LINUX, ["cpu"], "vulkan", "vulkan"),
        (LINUX, ["cpu"], "rocm", "rocm-7.2"),
        (WINDOWS, ["cpu", "cuda", "vulkan"], None, "cuda-12.4"),  # which newer drivers run too
        (WINDOWS, ["cpu", "cuda"], "cuda-13.3", "cuda-13.3"),
        (WINDOWS, ["cpu", "rocm", "vulkan"], None, "vulkan"),
    ],
)
def test_the_best_that_fits_is_chosen(
    platform: Platform, kinds: list[Accelerator], variant: str | None, expected: str
) -> None:
    """CAPABILITIES B6: the variant by platform and GPU; one that is named counts."""
    chosen = choose_build(RELEASE, platform, kinds, variant)
    assert (f"b1-{expected}", platform) == (chosen.name, chosen.build.platform)


def test_what_is_not_there_is_told_with_what_is() -> None:
    """CAPABILITIES B6: one sentence, with the choices."""
    with pytest.raises(UsageError, match=r"no variant 'metal' for Linux x64: it has cpu, vulkan, rocm-7\.2"):
        choose_build(RELEASE, LINUX, ["cpu"], "metal")
    with pytest.raises(UsageError, match="no build for macOS arm64"):
        choose_build(RELEASE, Platform(system="macos", machine="arm64"), ["cpu", "metal"])
    table = ReleaseTable(releases=(RELEASE,))
    assert choose_release(table) is choose_release(table, "b1") is RELEASE
    with pytest.raises(UsageError, match="'b2' is neither a pinned release, of which there are b1"):
        choose_release(table, "b2")
    with pytest.raises(UsageError, match=r"pins no release of llama\.cpp.*--sha256"):
        choose_release(ReleaseTable())


def test_an_archive_may_be_named() -> None:
    """CAPABILITIES B6: with the table's digest where that has it; else it comes from llama.cpp's own page."""
    name = "llama-b7-bin-ubuntu-x64.tar.gz"
    chosen = choose_archive(ReleaseTable(), name, LINUX, None)
    assert ("b7-cpu", f"{PAGE}/download/b7", False) == (chosen.name, chosen.url, chosen.build.is_pinned)
    assert choose_archive(ReleaseTable(), name, LINUX, DIGEST).build.is_pinned
    pinned = Build(platform=LINUX, accelerator="cpu", variant="cpu", assets=(Asset(name=name, size=5, sha256=DIGEST),))
    table = ReleaseTable(releases=(Release(tag="b7", url="https://example.org", builds=(pinned,)),))
    assert pinned is choose_archive(table, name, LINUX, None).build
    assert "1" * 64 == choose_archive(table, name, LINUX, "1" * 64).build.assets[0].sha256
    with pytest.raises(UsageError, match="is for Linux x64, and this is Windows x64"):
        choose_archive(table, name, WINDOWS, None)
    with pytest.raises(UsageError, match="is neither a pinned release nor the name of an archive"):
        choose_archive(table, "cudart-llama-bin-win-cuda-12.4-x64.zip", WINDOWS, None)


def test_no_digest_is_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES B6: whatever the package pins has digests; never "latest"."""
    monkeypatch.delenv("LLMSESSION_RELEASES", raising=False)
    for release in read_table().releases:
        assert "latest" not in (release.tag, release.url)
        assert all(build.is_pinned for build in release.builds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x.zip"}, "name"),
        ({"sha256": "abc"}, "sha256"),
        ({"size": 0}, "size"),
        ({"sha265": DIGEST}, "sha265"),
    ],
)
def test_a_table_is_checked(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """CAPABILITIES B6: where it is wrong is told; LLMSESSION_RELEASES may name one."""
    asset = {"name": "llama-b1-bin-ubuntu-x64.zip", "size": 5, "sha256": DIGEST, **change}
    platform = {"system": "linux", "machine": "x64"}
    built = {"platform": platform, "accelerator": "cpu", "variant": "cpu", "assets": [asset]}
    path = tmp_path / "table.json"
    table = {"version": 1, "releases": [{"tag": "b1", "url": "https://x.org", "builds": [built]}]}
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=words) as caught:
        read_table(path)
    assert path == caught.value.path
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (["dev/nvidiactl"], ["cuda"]),
        (["proc/driver/nvidia/version", "usr/share/vulkan/icd.d/nvidia_icd.json"], ["cuda", "vulkan"]),
        (["dev/kfd"], []),
        (["dev/kfd", "opt/rocm-7.2.1/lib/libamdhip64.so.7"], ["rocm"]),
        (["dev/dri/renderD128", "etc/vulkan/icd.d/radeon_icd.x86_64.json"], ["vulkan"]),
        (["dev/dri/renderD128", "usr/share/vulkan/icd.d/lvp_icd.x86_64.json"], []),
        (["usr/share/vulkan/icd.d/intel_icd.x86_64.json"], []),
    ],
)
def test_what_drivers_leave_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], expected: list[str]
) -> None:
    """CAPABILITIES B6: by files alone; a card without its driver, or a driver without a card, is none."""
    monkeypatch.setattr("sys.platform", "linux")
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {"cpu", *expected} == present_accelerators(tmp_path)
