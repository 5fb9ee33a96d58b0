"""What a typed line means: words for the model, or for the chat itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeAlias

import msgspec


class Say(msgspec.Struct, frozen=True):
    """To the model."""

    text: str


class BeginReply(msgspec.Struct, frozen=True):
    """The next reply begins with this; None: ask what with."""

    text: str | None


class SetSystemPrompt(msgspec.Struct, frozen=True):
    """None: show it to be edited."""

    text: str | None


class Run(msgspec.Struct, frozen=True):
    """A command by its name in lower case; an empty name asks for one."""

    name: str
    argument: str = ""


class Nothing(msgspec.Struct, frozen=True):
    """An empty line."""


Intent: TypeAlias = Say | BeginReply | SetSystemPrompt | Run | Nothing


def parse_line(line: str) -> Intent:
    """A space at the beginning makes anything words for the model."""
    text = line.strip()
    if not text:
        return Nothing()
    if line[0].isspace():
        return Say(text)
    if text.startswith("!!") and not text.startswith("!!!"):
        return SetSystemPrompt(text[2:].strip() or None)
    if text.startswith("!") and not text.startswith("!!") and "\n" not in text:  # several lines are a paste: words
        return parse_command(text[1:])
    if text == "<":
        return BeginReply(None)
    if text.startswith("< "):
        return BeginReply(text[2:].strip())
    return Say(text)


def parse_command(line: str) -> Run:
    """What stands after the `!`, which may be said once more."""
    name, _, argument = line.strip().removeprefix("!").strip().partition(" ")
    return Run(name.lower(), argument.strip())


def find_near(name: str, names: Iterable[str]) -> str | None:
    """The one that was probably meant."""
    known = sorted(names)
    begun = [other for other in known if name and other.startswith(name)]
    return next(iter(begun or difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)
