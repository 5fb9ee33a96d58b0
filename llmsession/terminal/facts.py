"""Tables of facts that commands show on a console."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmsession.terminal.printable import printable_line
from llmsession.terminal.talk import TalkSession
from llmsession.types.completion import Completion
from llmsession.types.errors import LLMSessionError
from llmsession.types.inspection import InspectedPiece
from llmsession.wire.metrics import Metrics

# Of a piece of a prompt so many characters are shown.
SHOWN = 200
# Fewer columns have no room for a table with a text in it.
NARROW = 60


def header_of(session: TalkSession) -> str:
    """Return the model, the engine and the context in one line."""
    facts = [session.model, f"{session.backend} {session.version}"]
    with contextlib.suppress(LLMSessionError):  # a remote one may not tell
        facts.append(f"{session.context_length} tokens of context")
    return printable_line(" · ".join(facts))


def model_facts(session: TalkSession) -> Table:
    """Return what is known of the model and its server; unknown facts are left out."""
    asked: list[tuple[str, Callable[[], Any]]] = [
        ("model", lambda: session.model),
        ("file", lambda: session.model_path),
        ("size", lambda: f"{session.info.size_bytes / 1e6:,.1f} MB"),
        ("architecture", lambda: session.info.architecture),
        ("parameters", lambda: f"{session.info.parameter_count:,}"),
        ("quantization", lambda: session.info.quantization),
        ("trained context", lambda: session.info.trained_context_length),
        ("context", lambda: f"{session.context_length} tokens for a conversation"),
        ("prompts", lambda: "by an encoding" if session.encoding is not None else "by the model's own template"),
        ("engine", lambda: f"{session.backend} {session.version}"),
        ("replies at once", lambda: session.parallel),
        ("server", lambda: session.base_url),
        ("process", lambda: session.pid),
        ("log", lambda: session.log_path),
    ]
    return _two_columns(_known(asked))


def _known(asked: Iterable[tuple[str, Callable[[], Any]]]) -> Iterable[tuple[str, Any]]:
    for name, ask in asked:
        with contextlib.suppress(LLMSessionError):
            if (value := ask()) is not None:
                yield name, value


def metrics_table(metrics: Metrics) -> Table:
    """Return the server's counts since it started."""
    rows: list[tuple[str, Any]] = [
        ("prompt", _rated(metrics.prompt.count, metrics.prompt.rate)),
        ("from the cache", _count(metrics.cached_prompt_tokens)),
        ("generated", _rated(metrics.generated.count, metrics.generated.rate)),
        ("KV cache", f"{metrics.kv_cache_usage:.1%} used" if metrics.kv_cache_usage is not None else None),
        ("in the KV cache", _count(metrics.kv_cache_tokens)),
        ("replies now", metrics.requests_processing),
        ("waiting", metrics.requests_pending),
    ]
    return _two_columns((name, value) for name, value in rows if value is not None)


def describe_last(reply: Completion) -> str:
    """Return a line about the newest reply."""
    usage, generated = reply.usage, reply.timings.generated
    words = [f"last reply: {_count(usage.completion_tokens)}"]
    if generated.rate:
        words.append(f"{generated.rate:.0f} a second")
    words.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens from the cache")
    return ", ".join(words)


def pieces_shown(pieces: Sequence[InspectedPiece], *, width: int) -> RenderableType:
    """Return the next prompt in pieces. In a narrow terminal each text stands below its facts."""
    rows = [(_facts_of(piece), _text_of(piece)) for piece in pieces]
    cached = sum(piece.tokens for piece in pieces if piece.is_cached)
    total = f"{_count(sum(piece.tokens for piece in pieces))}, {cached} of them cached"
    if width < NARROW:
        return Group(*(line for facts, text in rows for line in (_above(*facts), text)), total)
    table = Table(box=None, pad_edge=False)
    for name in ("role", "piece", "tokens", "cached"):
        table.add_column(name, no_wrap=True, justify="right" if name == "tokens" else "left")
    table.add_column("text", overflow="fold")
    for facts, text in rows:
        table.add_row(*facts, text)
    return Group(table, total)


def _facts_of(piece: InspectedPiece) -> tuple[str, str, str, str]:
    kind = "control" if piece.is_control else "text"
    return str(piece.role or "-"), kind, str(piece.tokens), {True: "yes", False: "no", None: "?"}[piece.is_cached]


def _above(role: str, kind: str, tokens: str, cached: str) -> Text:
    return Text(f"{role} · {kind} · {tokens} · cached: {cached}", style="dim")


def _text_of(piece: InspectedPiece) -> Text:
    shown = repr(piece.text)[1:-1]
    if len(shown) > SHOWN:
        shown = f"{shown[: SHOWN // 2]} … {shown[-SHOWN // 2 :]}"
    return Text(printable_line(shown), style="dim" if piece.is_control else "")


def _two_columns(rows: Iterable[tuple[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(printable_line(str(value))))
    return table


def _count(tokens: int | None) -> str | None:
    return None if tokens is None else f"{tokens} token{'' if tokens == 1 else 's'}"


def _rated(count: int, rate: float) -> str:
    return f"{_count(count)}, {rate:.0f} a second" if rate else f"{_count(count)}"
