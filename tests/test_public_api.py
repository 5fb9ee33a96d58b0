"""The public surface is what `__all__` says, sorted, typed, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llmsession
import public_stub
from llmsession import Session
from llmsession.types import errors


def test_all_is_sorted_and_without_duplicates() -> None:
    """STYLE 1, httpx: an explicit sorted `__all__`."""
    assert sorted(set(llmsession.__all__)) == llmsession.__all__


@pytest.mark.parametrize("name", llmsession.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """STYLE 1: `__all__` is exactly what can be imported."""
    assert getattr(llmsession, name).__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    """HOUSE: one table of the public names; the stub is written from it by scripts/public_stub.py."""
    assert public_stub.make_stub() == public_stub.STUB.read_text(encoding="utf-8")


def test_every_error_is_public() -> None:
    """API 5: whoever wants to catch one can import it."""
    all_errors = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.LLMSessionError)
    }
    assert all_errors <= set(llmsession.__all__)


def test_every_error_is_drawn_in_the_tree() -> None:
    """STYLE 1, httpx: the tree in the docstring is the tree."""
    drawn = errors.__doc__ or ""
    assert [name for name in llmsession.__all__ if name.endswith("Error") and f" {name}" not in drawn] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Python's own contract for modules."""
    with pytest.raises(AttributeError, match="no_such_thing"):
        getattr(llmsession, "no_such_thing")  # noqa: B009 - a type checker would not let it pass


def test_the_import_brings_no_server_and_no_heavy_library() -> None:
    """DESIGN 9, P3: importing costs next to nothing."""
    code = "import sys, llmsession; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"anyio", "httpx", "msgspec", "psutil", "rich", "torch", "trio", "typer", "xllamacpp", "yaml"}
    assert heavy & set(done.stdout.split()) == set()


def test_a_first_reply_brings_no_library_of_the_command_lines() -> None:
    """DESIGN 9, P2: the way to the first token imports what it needs; httpx would bring click and rich with it."""
    code = (
        "import asyncio, sys, llmsession\n"
        "async def main():\n"
        " async with llmsession.Session(threads=1) as session:\n"
        "  print(await session.prompt('reply with \"ok chief\"'))\n"
        "asyncio.run(main())\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reply, loaded = done.stdout.splitlines()
    assert "ok chief" == reply
    assert "httpx" in loaded.split()
    assert {"click", "prompt_toolkit", "pygments", "rich", "typer"} & set(loaded.split()) == set()


def test_what_httpx_leaves_out_can_still_be_had() -> None:
    """`llmsession.wire.lean_httpx`: another's program, in which httpx is used as well, is not changed by it."""
    code = "import llmsession.wire.http, httpx._main; print(httpx._main.main.name, httpx.get.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "main get" == done.stdout.strip()


def test_every_public_method_of_a_session_has_a_docstring() -> None:
    """STYLE 3: the first line of a public call is a sentence."""
    bare = [name for name, value in vars(Session).items() if not name.startswith("_") and not value.__doc__]
    assert bare == []


def test_the_package_says_that_it_is_typed() -> None:
    """API: `py.typed` ships."""
    assert Path(llmsession.__file__).with_name("py.typed").exists()
