"""`remote` with a `transformers serve` that somebody else started: row B5. With a model of its own, and with any."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsession import ConfigError, Sampling, Session, StopReason, UnsupportedFeatureError
from tests.engines import Engine
from tests.process.programs import wait_for

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'


@pytest.fixture(scope="module", params=["pinned", "any"])
def served(
    request: pytest.FixtureRequest, transformers: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its address. `pinned` has its model on the command line, the other loads what a request names."""
    assert transformers.python_path is not None
    assert transformers.model is not None
    log = tmp_path_factory.mktemp("serve") / "log"
    model = [transformers.model] if request.param == "pinned" else []
    command = [transformers.python_path, "-m", "transformers.cli.transformers", "serve", *model]
    env = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", "0"], stdout=out, stderr=out, env=env)
    try:
        wait_for(lambda: b"Uvicorn running" in log.read_bytes() or server.poll() is not None, seconds=120)
        found = re.search(r"running on (http://\S+)", log.read_text())
        assert found is not None, log.read_text()
        yield found[1]
    finally:
        server.kill()
        server.wait()


async def test_it_is_told_by_its_answers_and_asked_as_it_wants(
    served: str, transformers: Engine, request: pytest.FixtureRequest
) -> None:
    """CAPABILITIES B5: identified without being told; stop phrases, seeds and counts as of our own."""
    pinned = "pinned" in request.node.name
    async with Session(remote=served, model=None if pinned else transformers.model) as session:
        assert ("transformers", transformers.model) == (session.backend, session.model)
        assert "ok" == await session.get_health()
        reply = await session.prompt(OK)
        assert ("ok chief", StopReason.END) == (reply.text, reply.stop_reason)
        counted = await session.prompt("count to 100", temperature=0, stop=["zz", "5"])
        assert ("1 2 3 4 ", "5") == (counted.text, counted.stop_phrase)
        hot = [await session.prompt("count to 100", temperature=4.0, seed=5, max_tokens=20) for _ in range(2)]
        assert hot[0].text == hot[1].text
        assert 1 == (await session.prompt("a <|im_end|> b", max_tokens=1)).neutralized
        for call in (session.generate("x"), session.prompt(OK, sampling=Sampling(mirostat=2)), session.tokenize("x")):
            with pytest.raises(UnsupportedFeatureError, match="transformers at http"):
                await call
        with pytest.raises(UnsupportedFeatureError, match="context"):
            _ = session.context_length


async def test_what_does_not_fit_it_is_told(served: str, transformers: Engine, request: pytest.FixtureRequest) -> None:
    """API.md 3: an encoding cannot be applied; a model is its own, or has to be named."""
    with pytest.raises(UnsupportedFeatureError, match='prompt_encoding="chat"'):
        await Session.open(remote=served, model=transformers.model, prompt_encoding="chatml")
    if "pinned" in request.node.name:
        with pytest.raises(ConfigError, match=r"serves .* and no other"):
            await Session.open(remote=served, model="some/other")
    else:
        with pytest.raises(ConfigError, match="say which with model="):
            await Session.open(remote=served)
    assert Path(transformers.model or "").is_dir()
