"""What the downloads use of huggingface_hub is there, as it is called: this finds a release that has moved it.

pyproject.toml allows every release of its first two majors. Some of these names are not in its documentation.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmsession.models.hub
from llmsession.models.hub.errors import http_error

ROOM = Path(llmsession.models.hub.__file__ or "").parent
# Each call that we make, by the arguments' positions and names.
CALLS = {
    "huggingface_hub.get_hf_file_metadata": (1, ("headers", "token")),
    "huggingface_hub.hf_hub_download": (2, ("revision", "token")),
    "huggingface_hub.hf_hub_url": (2, ("revision",)),
    "huggingface_hub.HfApi": (0, ("token", "library_name")),
    "huggingface_hub.HfApi.list_repo_tree": (2, ("recursive", "revision")),  # with self
    "huggingface_hub.file_download.http_get": (2, ("resume_size", "headers", "expected_size")),
    "huggingface_hub.get_token": (0, ()),
    "huggingface_hub.file_download.are_symlinks_supported": (1, ()),
    "huggingface_hub.utils.WeakFileLock": (1, ()),
    "huggingface_hub.utils.build_hf_headers": (0, ("token", "library_name")),
    "huggingface_hub.utils.filter_repo_objects": (1, ("allow_patterns",)),
}
CONSTANTS = ("DOWNLOAD_CHUNK_SIZE", "ENDPOINT", "HF_HUB_CACHE")


def imported() -> Iterator[str]:
    """The names that the room imports from the library."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find(name: str) -> object:
    """The object of a full name."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", sorted(set(imported())))
def test_every_imported_name_exists(name: str) -> None:
    """A name that is not there would show only when a user downloads a model."""
    assert find(name) is not None


def test_every_imported_function_is_in_the_table_of_calls() -> None:
    """So that a new import gets its row: errors, constants and the class of an entry are not called."""
    called = {name for name in imported() if ".errors" not in name and not name.endswith(("constants", "RepoFile"))}
    assert {name for name in called if not name.endswith(".errors")} == {
        name for name in CALLS if not name.endswith("list_repo_tree")
    }


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_call_fits_its_signature(name: str) -> None:
    """A parameter that was renamed or removed would be a TypeError in the middle of a download."""
    found = find(name)
    assert callable(found)
    positions, keywords = CALLS[name]
    inspect.signature(found).bind(*[None] * positions, **dict.fromkeys(keywords))


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_constant_exists(name: str) -> None:
    """DOWNLOAD_CHUNK_SIZE is set by us: if it went, progress would come in large steps."""
    assert hasattr(importlib.import_module("huggingface_hub.constants"), name)


def test_errors_of_the_connection_share_the_root_that_is_caught() -> None:
    """`http_error` finds the HTTP library that the hub uses by the base of HfHubHTTPError: httpx, or httpx2."""
    library = importlib.import_module(http_error().__module__.partition(".")[0])
    assert issubclass(library.ConnectError, http_error())
    assert issubclass(library.ReadTimeout, http_error())
    assert not issubclass(OSError, http_error())
