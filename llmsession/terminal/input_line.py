"""Parses a typed line: a message for the model, or a command for the chat."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeAlias

import msgspec


class Say(msgspec.Struct, frozen=True):
    """A message for the model."""

    text: str


class BeginReply(msgspec.Struct, frozen=True):
    """The beginning of the next reply; None: ask for it."""

    text: str | None


class SetSystemPrompt(msgspec.Struct, frozen=True):
    """A new system prompt; None: edit the present one."""

    text: str | None


class Run(msgspec.Struct, frozen=True):
    """A command by its name in lower case; an empty name asks for one."""

    name: str
    argument: str = ""


class Nothing(msgspec.Struct, frozen=True):
    """An empty line."""


Intent: TypeAlias = Say | BeginReply | SetSystemPrompt | Run | Nothing


def parse_line(line: str) -> Intent:
    """Parse a line. A leading space makes anything a message for the model."""
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
    """Parse what follows the `!`, which may be repeated."""
    name, _, argument = line.strip().removeprefix("!").strip().partition(" ")
    return Run(name.lower(), argument.strip())


def find_near(name: str, names: Iterable[str]) -> str | None:
    """Return the command that was probably meant."""
    known = sorted(names)
    begun = [other for other in known if name and other.startswith(name)]
    return next(iter(begun or difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)
