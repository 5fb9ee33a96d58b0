"""A lane of its own, `scripts/test transformers`: it needs an environment with torch, which is made when asked for.

Without one nothing here is collected; scripts/build_transformers says where it lies, and LLMSESSION_TEST_TRANSFORMERS
names its Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from llmsession import Session
from tests.engines import TRANSFORMERS, Engine

collect_ignore_glob = [] if TRANSFORMERS else ["test_*.py"]


@pytest.fixture(scope="session")
def transformers() -> Engine:
    """The environment, with the tiny model's safetensors."""
    (found,) = TRANSFORMERS
    return found


@pytest.fixture(scope="module")
def session(transformers: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One for all tests that leave it as it was: it takes seconds to start."""
    session = Session(**transformers.options(cache_dir=tmp_path_factory.mktemp("cache")))

    async def open_it() -> None:
        await session.__aenter__()

    anyio.run(open_it)
    yield session
    anyio.run(session.aclose)
