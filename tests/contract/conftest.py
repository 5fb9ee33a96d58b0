"""The contract suite runs over each real engine and both APIs; one session serves all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import anyio
import pytest

from llmsession import Session, UnsupportedFeatureError
from tests.engines import ALL_ENGINES, TRANSFORMERS, Engine


@pytest.fixture(scope="module", params=ALL_ENGINES, ids=lambda engine: engine.backend)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each real engine that is here, for sessions that outlive a test."""
    found: Engine = request.param
    return found


# Of the suite that is not about slots, llama.cpp's own endpoints, or a cache of prompts: transformers has none of them.
OF_TRANSFORMERS = "test_replies.py"
NOT_OF_TRANSFORMERS = ("test_both_apis_give_the_same_text", "test_a_second_turn_is_read_from_the_cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Transformers has one API, so that each test of it runs once, and only those that are for it."""
    items[:] = [item for item in items if _is_for_it(item)]


def _is_for_it(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    engine = params.get("engine")
    if engine not in TRANSFORMERS:
        return True
    fits = item.path.name == OF_TRANSFORMERS and getattr(item, "originalname", "") not in NOT_OF_TRANSFORMERS
    return fits and params.get("api", "chat") == "chat"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Transformers is held to what it has: what it refuses by name, tests/transformers names."""
    try:
        yield
    except UnsupportedFeatureError as refused:
        if refused.backend != "transformers":
            raise
        pytest.skip(f"transformers lacks it, and says so: {refused.feature}")


@pytest.fixture(scope="module", params=[None, "chat"], ids=["completion", "chat"])
def api(request: pytest.FixtureRequest) -> str | None:
    """What prompt_encoding= makes of it: /completion with our own encoding, or the chat endpoint."""
    return None if request.param is None else str(request.param)


@pytest.fixture(scope="module")
def session(engine: Engine, api: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Opened and closed in event loops of their own, used in those of the tests: a session is bound to none."""
    cache = tmp_path_factory.mktemp("cache")
    session = Session(**engine.options(prompt_encoding=api, cache_dir=cache))

    async def open_it() -> None:
        await session.__aenter__()

    anyio.run(open_it)
    yield session
    anyio.run(session.aclose)
