"""Releases of llama.cpp as it publishes them, small ones: archives around a real server, and a table that pins them."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from llmsession.backends.install.platforms import this_platform
from tests.engines import ENGINES
from tests.hub_server import Hub

REPO = "ggml-org/llama.cpp"
# A real server wherever the tests run, and the real binary where it was built.
SERVERS = ["handed-over", *(engine.server_path for engine in ENGINES if engine.server_path)]
HANDED_OVER = shlex.join([sys.executable, "-I", str(Path(__file__).with_name("released_server.py"))])
LIBRARIES = ("libllama", "libggml", "libggml-base", "libggml-cpu", "libmtmd", "libllama-common", "libllama-server-impl")


def script(command: str) -> bytes:
    """A program of one line."""
    return f'#!/bin/sh\n{command} "$@"\n'.encode()


def pack(tag: str, program: bytes, **more: bytes) -> bytes:
    """llama-TAG-bin-….tar.gz: a folder with the server, and a library with the links that make it found."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(f"llama-{tag}/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, content in {
            "LICENSE": b"MIT",
            "llama-server": program,
            "libfake.so.1.2": tag.encode(),
            **more,
        }.items():
            file = tarfile.TarInfo(f"llama-{tag}/{name}")
            file.size, file.mode = len(content), 0o644 if name == "LICENSE" else 0o755
            archive.addfile(file, io.BytesIO(content))
        for name, target in (("libfake.so.1", "libfake.so.1.2"), ("libfake.so", "libfake.so.1")):
            link = tarfile.TarInfo(f"llama-{tag}/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    return buffer.getvalue()


def pack_zip(program: bytes) -> bytes:
    """As releases of 2025 were: build/bin/ in a zip, with modes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in (("llama-server", program, 0o100755), ("LICENSE", b"MIT", 0o100644)):
            info = zipfile.ZipInfo(f"build/bin/{name}")
            info.external_attr = mode << 16
            archive.writestr(info, content)
        info = zipfile.ZipInfo("build/bin/libfake.so")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "LICENSE")
    return buffer.getvalue()


def pack_server(tag: str, server: str) -> bytes:
    """An archive around one of SERVERS."""
    if server == "handed-over":
        return pack(tag, script(f"exec {HANDED_OVER}"))
    buffer = io.BytesIO()
    folder = Path(server).parent
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(folder.iterdir()):
            stem = path.name.partition(".so")[0]
            if path.name == "llama-server" or (stem in LIBRARIES and path.name != stem):
                archive.add(path, f"llama-{tag}/{path.name}", recursive=False)
    return buffer.getvalue()


def archive_name(tag: str, variant: str = "") -> str:
    """As llama.cpp calls it, for this machine."""
    platform = this_platform()
    assert platform is not None
    return f"llama-{tag}-bin-ubuntu-{variant and f'{variant}-'}{platform.machine}.tar.gz"


def publish(hub: Hub, archives: dict[str, bytes]) -> None:
    """Have the hub serve all that it had and these."""
    former = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]] if REPO in hub.repos else {}
    hub.add(REPO, {**former, **archives})


def write_table(path: Path, hub: Hub, builds: dict[str, dict[str, bytes]], **changes: Any) -> Path:
    """A table that pins them: tag to variant to archive; the first is installed. `changes` to each asset."""
    platform = this_platform()
    assert platform is not None
    releases = []
    for tag, variants in builds.items():
        listed = []
        for variant, data in variants.items():
            name = archive_name(tag, "" if variant == "cpu" else variant)
            publish(hub, {name: data})
            asset = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
            listed.append(
                {
                    "platform": {"system": platform.system, "machine": platform.machine},
                    "accelerator": variant.partition("-")[0],
                    "variant": variant,
                    "assets": [{name: value for name, value in asset.items() if value is not None}],
                }
            )
        releases.append({"tag": tag, "url": f"{hub.url}/{REPO}/resolve/main", "builds": listed})
    path.write_text(json.dumps({"version": 1, "releases": releases}))
    return path
