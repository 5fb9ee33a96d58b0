"""What is filled into a system prompt, and what is not."""

from __future__ import annotations

from datetime import datetime

import pytest

from llmsession.prompts.system_prompt import render_system_prompt

NOW = datetime(2026, 11, 20, 19, 19, 44).astimezone()


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("", ""),
        ("You are {model}.", "You are tiny."),
        ("It is {now}.", "It is Friday 2026-11-20 19:19."),
        ("{model}{model} {now}{now}", "tinytiny Friday 2026-11-20 19:19Friday 2026-11-20 19:19"),
        ('{"a": {b}} {{now}} {Now}', '{"a": {b}} {Friday 2026-11-20 19:19} {Now}'),
        ("{} { now } {model!r} %s {0}", "{} { now } {model!r} %s {0}"),
    ],
)  # fmt: skip
def test_only_these_two_are_filled_in(text: str, rendered: str) -> None:
    """CAPABILITIES C2: only these two are replaced, other braces stay."""
    assert rendered == render_system_prompt(text, model="tiny", now=NOW)


def test_a_models_name_is_no_template() -> None:
    """CAPABILITIES C2: what is filled in is not looked through again."""
    assert "{now} is {now}" == render_system_prompt("{model} is {model}", model="{now}", now=NOW)


def test_within_a_minute_it_stays_the_same() -> None:
    """CAPABILITIES C2: rendered to the minute, so that the prompt's start stays in the cache."""
    later = NOW.replace(second=59)
    assert render_system_prompt("{now}", model="m", now=NOW) == render_system_prompt("{now}", model="m", now=later)
