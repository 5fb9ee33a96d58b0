"""Renders Markdown as terminal lines, and finds the end of the last finished block.

The text is the model's: links show their target, and HTML and line breaks stay as written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.text import Text

from llmsession.terminal.live_lines import Line
from llmsession.terminal.printable import printable_line

# The terminal's own colours, those that can be read on black and on white.
_CODE_THEME = ANSISyntaxTheme(
    {
        ("Comment",): Style(dim=True, italic=True),
        ("Keyword",): Style(color="magenta"),
        ("Literal", "Number"): Style(color="cyan"),
        ("Literal", "String"): Style(color="green"),
        ("Name", "Builtin"): Style(color="cyan"),
        ("Name", "Class"): Style(bold=True),
        ("Name", "Decorator"): Style(color="magenta"),
        ("Name", "Function"): Style(bold=True),
        ("Name", "Tag"): Style(color="magenta"),
        ("Operator", "Word"): Style(color="magenta"),
        ("Generic", "Deleted"): Style(color="red"),
        ("Generic", "Inserted"): Style(color="green"),
    }
)
# A last line of these alone may yet become a list, a rule, a fence or the underline of a heading.
_UNDECIDED = re.compile(r"(?:\A|\n)[ \t]*(?:[-=*_#>+`~|:.) \t]|\d)+\Z")
_PARSER = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["strikethrough", "table"])
    .disable(["image", "autolink", "html_block", "html_inline"])
)


class _Heading(Heading):
    """A heading, left-aligned and without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _CodeBlock(CodeBlock):
    """A code block between two rules, so that its lines can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        known = self.lexer_name if self.lexer_name != "text" else ""
        dash = "-" if options.ascii_only else "─"
        yield Rule(Text(known, style="dim"), characters=dash, align="left", style="dim")
        yield Syntax(
            str(self.text).rstrip(), self.lexer_name, theme=_CODE_THEME, word_wrap=True, background_color="default"
        )
        yield Rule(characters=dash, style="dim")


class _ListItem(ListItem):
    """A list item with its number as written: `1.`"""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        width = len(f"{last_number}. ") + 1
        style = console.get_style("markdown.item.number", default="none")
        lines = console.render_lines(self.elements, options.update(width=options.max_width - width), style=self.style)
        for index, line in enumerate(lines):
            yield Segment(("" if index else f"{number}. ").rjust(width), style)
            yield from line
            yield Segment.line()


class _ModelsMarkdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "list_item_open": _ListItem,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def to_lines(console: Console, renderable: RenderableType, width: int) -> list[Line]:
    """Render to lines of that width."""
    options = console.options.update(width=width, height=None)
    lines = console.render_lines(renderable, options, pad=False)
    return [_shown(line) for line in lines]


def _shown(line: Line) -> Line:
    """Return the line without trailing spaces. Markdown can spell characters that the text did not hold: `&#13;`."""
    parts = [Segment(printable_line(part.text), part.style) for part in line if not part.control]
    while parts and not parts[-1].text.strip(" "):
        parts.pop()
    if parts:
        parts[-1] = Segment(parts[-1].text.rstrip(" "), parts[-1].style)
    return parts


def markdown_lines(console: Console, source: str, width: int) -> list[Line]:
    """Render with an empty line between two blocks, and none at either end."""
    lines: list[Line] = []
    for block in _split_blocks(source):
        rendered = to_lines(console, _ModelsMarkdown(block), width)
        if filled := [index for index, line in enumerate(rendered) if line]:
            lines += [*([[]] if lines else []), *rendered[filled[0] : filled[-1] + 1]]
    return lines


def split_finished(source: str) -> tuple[str, str]:
    """Return the blocks that further text cannot change, and the rest.

    A last line that is undecided belongs to the rest with the block before it: `*` after a list looks like another
    list, and is the list's next words as soon as it is `**bold**`.
    """
    blocks = _split_blocks(without_undecided(source))
    finished = "\n".join(blocks[:-1])
    return finished, source[len(finished) + 1 :] if len(blocks) > 1 else source


def _split_blocks(source: str) -> list[str]:
    """Return paragraphs, lists, tables and so on, each with the empty lines after it.

    Joined by line feeds they are the source.
    """
    starts = [token.map[0] for token in _top_level(source) if token.map is not None]
    lines = source.split("\n")
    return ["\n".join(lines[start:end]) for start, end in pairwise([0, *starts[1:], len(lines)])]


def is_table(source: str) -> bool:
    """Return whether the block is a table: its columns move while it grows."""
    return any(token.type == "table_open" for token in _top_level(source))


def without_undecided(source: str) -> str:
    """Return the source without a last line whose meaning is still open."""
    return _UNDECIDED.sub("", source)


def _top_level(source: str) -> Iterator[Token]:
    return (token for token in _PARSER.parse(source) if token.level == 0 and token.nesting >= 0)
