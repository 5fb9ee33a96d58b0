"""A Launch as the command line of llama-server, in the words of the build that gets it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from llmsession.backends.flags.capabilities import Capabilities
from llmsession.backends.flags.launch_table import Row, list_rows
from llmsession.backends.flags.translate import translate, translate_extra
from llmsession.backends.launch import Launch


def build_argv(binary: Path, launch: Launch, capabilities: Capabilities, *, port: int, backend: str) -> list[str]:
    """Return the command line. Raises UnsupportedFeatureError if the build lacks a flag that matters, ConfigError."""
    return [
        *(str(binary), "--model", str(launch.model_path), "--alias", launch.alias),
        *("--host", "127.0.0.1", "--port", str(port)),
        *write_flags(list_rows(launch), capabilities, backend=backend),
        *translate_extra(launch.extra_args, capabilities, backend=backend),
    ]


def write_flags(rows: Iterable[Row], capabilities: Capabilities, *, backend: str) -> Iterator[str]:
    """Yield the words of each row. Raises UnsupportedFeatureError if the build lacks a flag that is not optional."""
    for row in rows:
        if row.words:
            yield from translate(row.words, capabilities, option=row.option, is_optional=row.optional, backend=backend)
