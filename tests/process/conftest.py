"""A model that takes a second to load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_files import write_random_model


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Half a million tokens in its vocabulary: seconds to load, 76 MB on disk."""
    path = write_random_model(tmp_path_factory.mktemp("slow") / "slow.gguf", width=32, more_tokens=500_000)
    yield path
    path.unlink()
