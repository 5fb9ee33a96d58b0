"""What `!model`, `!metrics` and `!inspect` show. Row D9."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from llmsession.terminal.facts import header_of, metrics_table, model_facts, pieces_shown
from llmsession.types.completion import TokenPerformance
from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.inspection import InspectedPiece
from llmsession.types.messages import Role
from llmsession.wire.metrics import Metrics


def shown(what: Any, width: int = 80) -> str:
    """As it stands on a screen of that width."""
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


class Remote(SimpleNamespace):
    """A server that does not tell what it runs."""

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedFeatureError(f"no {name}", feature=name, backend="openai")


def test_what_a_server_does_not_tell_is_left_out() -> None:
    """D9: `!model`, and the line above the chat, on a remote."""
    remote: Any = Remote(
        model="gpt\x1b[2J", backend="openai", version="?", model_path=None, base_url="http://x", pid=None
    )
    assert ["model", "engine", "server"] == [line.split()[0] for line in shown(model_facts(remote)).splitlines()]
    assert "gpt�[2J" in shown(model_facts(remote))
    assert "gpt�[2J · openai ?" == header_of(remote)


def test_facts_of_a_model_of_ours() -> None:
    """D9: `!model`."""
    info = SimpleNamespace(
        size_bytes=1_936_000,
        architecture="llama",
        parameter_count=1_803_840,
        quantization=None,
        trained_context_length=2048,
    )
    session: Any = Remote(
        model="tiny", model_path=Path("tiny.gguf"), info=info, encoding=None, backend="embedded", version="1"
    )
    lines = [" ".join(line.split()) for line in shown(model_facts(session)).splitlines()]
    assert {"file tiny.gguf", "size 1.9 MB", "parameters 1,803,840"} <= set(lines)
    assert not any("quantization" in line for line in lines)


def test_metrics_without_what_is_not_counted() -> None:
    """D9: `!metrics`."""
    metrics = Metrics(prompt=TokenPerformance(count=1, seconds=0.5), kv_cache_usage=0.25)
    text = shown(metrics_table(metrics))
    assert "1 token, 2 a second" in text
    assert "25.0% used" in text
    assert "from the cache" not in text


def test_pieces_on_a_wide_and_on_a_narrow_screen() -> None:
    """D9: `!inspect` shows each piece; a long text by its two ends, control characters by their spelling."""
    pieces = [
        InspectedPiece(role=None, is_control=True, text="<s>", tokens=1, is_cached=True),
        InspectedPiece(role=Role.USER, is_control=False, text=f"a\x1b[0m{'x' * 5000}b\n", tokens=9, is_cached=None),
    ]
    for width in (100, 30):
        text = "".join(line.strip() for line in shown(pieces_shown(pieces, width=width), width).splitlines())
        assert "<s>" in text
        assert r"a\x1b[0mxxx" in text
        assert r"xxxb\n" in text
        assert len(text) < 700
        assert "10 tokens, 1 of them cached" in text
