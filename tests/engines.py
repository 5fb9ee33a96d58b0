"""The real engines that tests run against."""

from __future__ import annotations

import atexit
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmsession import ReplyStream, Session
from llmsession.processes.child import Child
from llmsession.session.requests.settings import GenerateKeywords
from llmsession.session.session import replies_of
from llmsession.types.message_input import MessagesLike, as_messages
from tests import fake_llamafile


@dataclass(frozen=True)
class Engine:
    """A backend by name, and what it needs: the binary, or the environment and the model that it can run."""

    backend: str
    server_path: str | None = None
    python_path: str | None = None
    model: str | None = None

    def options(self, **fields: Any) -> dict[str, Any]:
        """Fields for a Session on it: one thread, since two on a busy machine make a token take 300 ms."""
        given = {"backend": self.backend, "threads": 1, **fields}
        for name in ("server_path", "python_path", "model"):
            if (value := getattr(self, name)) is not None:
                given.setdefault(name, value)
        return given


def find_engines() -> list[Engine]:
    """The embedded engine always; the binary that scripts/test found."""
    engines = [Engine("embedded")]
    if (binary := os.environ.get("LLMSESSION_TEST_LLAMA_SERVER")) and Path(binary).exists():
        engines.append(Engine("llama-server", binary))
    return engines


def find_transformers() -> list[Engine]:
    """The environment that scripts/test found or made, with the tiny model's safetensors."""
    python = os.environ.get("LLMSESSION_TEST_TRANSFORMERS")
    if not python or not Path(python).exists():
        return []
    from llmsession.models.bundled import bundled_path
    from tiny_chat.to_safetensors import export_safetensors

    folder = tempfile.TemporaryDirectory(prefix="llmsession-tests-")
    atexit.register(folder.cleanup)
    model = Path(folder.name) / "tiny-chat"
    export_safetensors(bundled_path(), model)
    return [Engine("transformers", python_path=python, model=str(model))]


def make_llamafile() -> Engine:
    """The stand-in for llamafile, with a real engine behind it; its file goes with the run."""
    folder = tempfile.TemporaryDirectory(prefix="llmsession-tests-")
    atexit.register(folder.cleanup)
    return Engine("llamafile", str(fake_llamafile.wrapper(Path(folder.name))))


ENGINES = find_engines()
# Where each of them serves one session for a whole module, and where processes are looked at from outside.
TRANSFORMERS = find_transformers()
ALL_ENGINES = [*ENGINES, make_llamafile(), *TRANSFORMERS]
# The imitation always, the real binary where it was built.
BINARIES = ["fake", *(engine.server_path for engine in ENGINES if engine.server_path)]
EMBEDDED = ENGINES[0]


def own_child(session: Session) -> Child:
    """The process of a session's server."""
    child = session._info.endpoint.child
    assert child is not None
    return child


def own_files(session: Session) -> tuple[Path, Path]:
    """The model's file and the server's log."""
    assert session.model_path is not None
    assert session.log_path is not None
    return session.model_path, session.log_path


def kept_stream(session: Session, name: str, messages: MessagesLike, **keywords: Any) -> ReplyStream:
    """A reply in a conversation whose KV is kept on disk by that name, as Chat asks for it."""
    replies = replies_of(session)
    return replies.reply_to(name, as_messages(messages), replies.check(cast("GenerateKeywords", keywords)))
