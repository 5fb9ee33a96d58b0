"""Finds files in Hugging Face's cache without its library."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmsession.models.gguf import read_model_info
from llmsession.models.quantization import SUFFIX, find_meant, list_models, list_shards
from llmsession.models.references import HEAD, PackedFileRef
from llmsession.models.registry import KnownLLM
from llmsession.types.errors import InvalidModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")


_TRUE = ("1", "on", "yes", "true")


def is_offline(given: bool | None) -> bool:  # noqa: FBT001 - an option's value, which may be None
    """Return the given value, else the environment's."""
    return given if given is not None else os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def find_cached(ref: PackedFileRef) -> Path | None:
    """Return the file in Hugging Face's cache, with all its shards present; the hub's naming rules apply."""
    folder = find_snapshot(ref.repo_id, ref.revision)
    if folder is None:
        return None
    for name in (ref.basename, ref.basename + SUFFIX):
        if (folder / name).is_file():
            return _whole(folder, name)
    names = {path.relative_to(folder).as_posix(): 0 for path in folder.rglob("*.[gG][gG][uU][fF]") if path.is_file()}
    meant = find_meant(ref.basename, list_models(names))
    return _whole(folder, meant[0]) if len(meant) == 1 else None


def list_cached(known: KnownLLM) -> dict[str, int]:
    """Return the cached files of a known model at its default branch and their bytes, smallest first."""
    folder = find_snapshot(known.repo_id, HEAD)
    if folder is None:
        return {}
    paths = [path for path in folder.rglob("*.[gG][gG][uU][fF]") if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    start = known.start.lower()
    return list_models({name: size for name, size in sizes.items() if name.lower().startswith(start)})


def hub_cache() -> Path:
    """Return the folder of Hugging Face's cache, from the current environment."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(name):
            return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _whole(folder: Path, name: str) -> Path | None:
    shards = list_shards(name)
    return folder / shards[0] if all((folder / shard).is_file() for shard in shards) else None


def find_snapshot(repo_id: str, revision: str) -> Path | None:
    """Return the folder of the revision in the cache; None if missing."""
    storage = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (storage / "refs" / ("main" if revision == HEAD else revision)).read_text().strip()
        except OSError:
            return None
    folder = storage / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def is_readable(path: Path) -> bool:
    """Return whether the model file and all its shards have a valid GGUF header and their full size."""
    try:
        for shard in list_shards(path.name):
            read_model_info(path.with_name(shard))
    except InvalidModelError:
        return False
    return True
