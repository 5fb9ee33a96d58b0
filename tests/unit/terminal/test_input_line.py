"""What a typed line means. Row D9."""

from __future__ import annotations

import pytest

from llmsession.terminal.commands import COMMANDS
from llmsession.terminal.input_line import (
    BeginReply,
    Intent,
    Nothing,
    Run,
    Say,
    SetSystemPrompt,
    find_near,
    parse_command,
    parse_line,
)


@pytest.mark.parametrize(
    ("line", "intent"),
    [
        ("", Nothing()),
        (" \t\n", Nothing()),
        ("hello", Say("hello")),
        ("two\nlines ", Say("two\nlines")),
        (" !important", Say("!important")),
        (" < 3", Say("< 3")),
        ("<html>", Say("<html>")),
        ("<3", Say("<3")),
        ("!!! wow", Say("!!! wow")),
        ("<", BeginReply(None)),
        ("< Once upon", BeginReply("Once upon")),
        ("!!", SetSystemPrompt(None)),
        ("!! Be brief.", SetSystemPrompt("Be brief.")),
        ("!!Be\nbrief.", SetSystemPrompt("Be\nbrief.")),
        ("!", Run("")),
        ("!important\nnote", Say("!important\nnote")),
        ("!save\n", Run("save")),
        ("!help", Run("help")),
        ("! HELP ", Run("help")),
        ("!save a file.md", Run("save", "a file.md")),
        ("!rewind  2", Run("rewind", "2")),
    ],
)
def test_a_line_is_for_the_model_or_for_the_chat(line: str, intent: Intent) -> None:
    """D9: `<`, `!!`, `!` and `!command`; a space in front makes anything words for the model."""
    assert intent == parse_line(line)


def test_at_the_prompt_of_commands_the_mark_may_be_left_out() -> None:
    """D9: `!` then Enter."""
    assert Run("stats") == parse_command("stats") == parse_command("!stats")


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("hlep", "help"),
        ("stat", "stats"),
        ("re", "retry"),
        ("qiut", "exit"),
        ("zzz", None),
        ("exti", "exit"),
        ("", None),
    ],
)
def test_an_unknown_command_has_a_near_one(typed: str, near: str | None) -> None:
    """D9: a slip of the finger is told what was probably meant."""
    assert near == find_near(typed, COMMANDS)


def test_every_command_of_the_row_is_there() -> None:
    """Issue 6: help, stats, retry, rewind, edit, forget, save, model, metrics, inspect, exit."""
    names = "help stats retry rewind edit forget save model metrics inspect exit"
    assert names.split() == list(COMMANDS)
