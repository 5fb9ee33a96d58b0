"""What the docstrings of the public surface promise about errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import llmsession
from llmsession import Chat, Memory, Session

BUILT_IN = {"ValueError", "OSError", "TimeoutError", "RuntimeError"}


def public_calls() -> Iterator[tuple[str, str]]:
    """The name and the docstring of each function and method."""
    for name in llmsession.__all__:
        found = getattr(llmsession, name)
        if inspect.isclass(found):
            for method, function in inspect.getmembers(found, inspect.isroutine):
                if not method.startswith("_") and (getattr(function, "__module__", None) or "").startswith(
                    "llmsession"
                ):
                    yield f"{name}.{method}", inspect.getdoc(function) or ""
        elif inspect.isroutine(found):
            yield name, inspect.getdoc(found) or ""


def test_every_public_call_has_a_docstring() -> None:
    """HOUSE: a user reads it in the editor."""
    assert [] == [name for name, text in public_calls() if not text]


def test_every_error_that_a_docstring_names_is_one_of_ours() -> None:
    """DESIGN: nothing of another library crosses the public line."""
    named = {
        (name, error)
        for name, text in public_calls()
        for error in re.findall(r"\b[A-Z]\w+Error\b", text)
        if error not in llmsession.__all__ and error not in BUILT_IN
    }
    assert set() == named


def test_what_talks_to_a_server_or_a_file_says_what_it_raises() -> None:
    """HOUSE: `Raises:` on every public call of these that can fail."""
    # Ends things, reads what is known, or answers with a value instead of an error.
    harmless = {
        *("Session.aclose", "Session.get_health", "Session.interrupt", "Memory.aclose"),
        *("Chat.as_text", "Chat.stats", "Chat.with_conversation"),
    }
    silent = {
        name
        for name, text in public_calls()
        if name.partition(".")[0] in {Session.__name__, Chat.__name__, Memory.__name__} and "Raises" not in text
    }
    assert set() == silent - harmless
