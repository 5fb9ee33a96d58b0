"""How a reply is drawn: what is on the screen and above it, at every moment and at the end. Row D9."""

from __future__ import annotations

import io

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsession.terminal import reply_view
from llmsession.terminal.markdown_lines import markdown_lines
from llmsession.terminal.reply_view import MarkdownView, PlainView, Reasoning
from tests.unit.terminal.screen import Screen

CODE = "".join(f"row_{number} = {number}\n" for number in range(25))
REPLY = f"""Here is **the plan**
of two lines

# Title
- one
- two

1. first
2. second

```python
{CODE}```

| a | b |
|---|--:|
{"".join(f"| {number} | {number * number} |{chr(10)}" for number in range(15))}
> quoted

The `end`."""


@pytest.fixture(autouse=True)
def draw_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make a drawing wait for the next."""
    monkeypatch.setattr(reply_view, "SHARE", 1.0)


def show(text: str, *, size: int, columns: int = 40, height: int = 10, **settings: object) -> Screen:
    """In pieces of that many characters."""
    screen = Screen(columns, height)
    view = MarkdownView(screen.console(), **settings)  # type: ignore[arg-type]
    for start in range(0, len(text), size):
        view.say(text[start : start + size])
    view.finish()
    return screen


def whole(text: str, columns: int = 40) -> list[str]:
    """The same, rendered once."""
    lines = markdown_lines(Screen(columns, 1000).console(), text, columns - 1)
    return ["".join(part.text for part in line).rstrip() for line in lines]


@pytest.mark.parametrize("size", [2, 7, 50, 5000])
def test_a_reply_longer_than_the_screen_stands_there_once_and_whole(size: int) -> None:
    """D9: no garbage when a reply is longer than the screen, in whatever pieces it comes."""
    assert [*whole(REPLY), ""] == show(REPLY, size=size).all_lines


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a word", "**bold**", "`code`", "\n", "\n\n", "# ", "- ", "1. ", "> "]), max_size=20),
    st.integers(1, 9),
)
def test_any_short_reply_ends_as_it_would_look_at_once(parts: list[str], size: int) -> None:
    """D9: what was drawn on the way leaves nothing behind."""
    text = "".join(parts)
    assert whole(text) == show(text, size=size, height=100).all_lines[:-1]


@pytest.mark.parametrize("text", ["- a word\n**bold** and more", "1. one\n2 and more", "> quoted\n_still_ quoted"])
def test_a_line_whose_beginning_looks_like_a_new_block(text: str) -> None:
    """D9: `*` ends a list and begins another, until it is `**bold**`, which goes on with the list's words."""
    assert whole(text) == show(text, size=1).all_lines[:-1]


def test_only_what_changed_is_written() -> None:
    """D9: without flicker."""
    screen = Screen(40, 10)
    view = MarkdownView(screen.console())
    view.say("first line\nsecond line\nthird")
    screen.writes.clear()
    view.say(" and more")
    assert "third and more" in "".join(screen.writes)
    assert "second" not in "".join(screen.writes)


def test_a_markup_that_is_not_decided_is_not_shown_yet() -> None:
    """D9: `-` after a line would make it a heading for a moment."""
    screen = Screen(40, 10)
    view = MarkdownView(screen.console())
    view.say("These:\n-")
    assert ["These:"] == screen.all_lines
    view.say(" one")
    assert ["These:", "", " • one"] == screen.all_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("use <div> and <br>", "use <div> and <br>"),
        ("[here](http://example.com)", "here (http://example.com)"),
        ("![seen](x.png)", "!seen (x.png)"),
        ("red \x1b[31mtext\x07 \x9b0m", "red �[31mtext� �0m"),
        ("over\rwritten &#13;&#27;[2J\u202eback", "overwritten �[2J�back"),
    ],
)
def test_words_of_a_model_hide_nothing_and_control_nothing(text: str, shown: str) -> None:
    """D9: control characters never reach the terminal; HTML and where links lead can be read."""
    assert shown == show(text, size=4, columns=60).all_lines[0].replace("��", "�")


def test_code_can_be_copied_as_it_is() -> None:
    """D9: code blocks; nothing stands in front of a line or behind it."""
    assert ["sh " + "─" * 36, "ls  |  wc", "─" * 39, ""] == show("```sh\nls  |  wc\n```", size=5).all_lines


def test_reasoning_stands_above_the_answer() -> None:
    """D9: dimmed, or hidden."""
    for mode, expected in [
        (Reasoning.DIM, ["Let me *think*.", "", "Yes.", ""]),
        (Reasoning.SHOW, ["Let me *think*.", "", "Yes.", ""]),
        (Reasoning.HIDE, ["Yes.", ""]),
    ]:
        screen = Screen(40, 10)
        view = MarkdownView(screen.console(), reasoning=mode)
        for piece in ("Let me ", "*think*."):
            view.think(piece)
        assert ("think" in screen.getvalue() or "think" in "".join(screen.all_lines)) is True
        dimmed = "\x1b[2" in "".join(write for write in screen.writes if "Let me" in write)
        assert (mode is Reasoning.DIM) == dimmed
        view.say("\nYes.")
        view.finish()
        assert expected == screen.all_lines


def test_long_reasoning_scrolls_away_once() -> None:
    """D9: it may be longer than the screen, too."""
    screen = Screen(40, 5)
    view = MarkdownView(screen.console())
    for number in range(30):
        view.think(f"thought {number}\n")
    view.say("So.")
    view.finish()
    assert [*(f"thought {number}" for number in range(30)), "", "So.", ""] == screen.all_lines


def test_not_streamed_it_comes_at_once() -> None:
    """API 4: `interact(stream=False)`."""
    screen = Screen(40, 10)
    view = MarkdownView(screen.console(), stream=False)
    view.think("Hm.")
    view.say("All ")
    assert 1 == len(screen.all_lines[0].split()[0])  # the spinner
    view.say("of it.")
    view.finish()
    assert ["Hm.", "", "All of it.", ""] == screen.all_lines


@pytest.mark.anyio
async def test_a_spinner_turns_until_the_first_piece() -> None:
    """D9: a spinner until the first token, which takes its place."""
    screen = Screen(40, 10)
    view = MarkdownView(screen.console())
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.keep_drawn)
            while len(screen.writes) < 3:
                await checkpoint()
            tasks.cancel_scope.cancel()
    assert screen.all_lines[0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    view.say("Hi")
    view.finish()
    assert ["Hi", ""] == screen.all_lines


@pytest.mark.anyio
async def test_what_could_not_be_drawn_when_it_came_is_drawn_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """D9: a model that pauses leaves no piece unseen."""
    monkeypatch.setattr(reply_view, "SHARE", 1e-3)
    screen = Screen(40, 10)
    view = MarkdownView(screen.console())
    view.say("one")
    view.say(" two")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(view.keep_drawn)
            while screen.all_lines != ["one two"]:
                await checkpoint()
            tasks.cancel_scope.cancel()


def test_a_terminal_that_becomes_narrower_while_it_comes_keeps_the_words() -> None:
    """D9: resized in a reply; nothing raises, and the end of it is right."""
    screen = Screen(40, 10)
    console = screen.console()
    view = MarkdownView(console)
    view.say("one two three four five six seven")
    console.width = 20
    screen.narrow(20)
    view.say(" eight")
    view.finish()
    assert ["one two three four", "five six seven", "eight", ""] == screen.all_lines


def test_plain_text_is_as_it_came_in_a_pipe_and_safe_on_a_terminal() -> None:
    """D9: a pipe gets plain text; a terminal without cursor movement gets no control characters either."""
    for is_safe, expected in [(False, "**a**\x1b[31m\n"), (True, "**a**�[31m\n")]:
        out = io.StringIO()
        view = PlainView(out, is_safe=is_safe)
        view.think("hm")
        view.say("**a**")
        view.say("\x1b[31m")
        view.finish()
        assert expected == out.getvalue()
