"""The commands of the chat, by name. Each says what it did; none raises for what a user can cause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmsession.terminal.chat_loop import ChatLoop, Command
from llmsession.terminal.printable import printable_line
from llmsession.types.errors import UsageError
from llmsession.types.messages import Role

if TYPE_CHECKING:
    from llmsession.memory.turn import Turn


async def show_help(loop: ChatLoop, argument: str = "") -> None:
    """Show what can be typed."""
    del argument
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, command in COMMANDS.items():
        table.add_row(Text(f"!{name} {command.usage}"), Text(command.description))
    for keys, words in _KEYS:
        table.add_row(Text(keys), Text(words))
    loop.console.print(table)


_KEYS = (
    ("!! TEXT", "set the system prompt; !! alone edits it"),
    ("< TEXT", "begin the next reply with TEXT"),
    ("\\ then Enter", "go on in another line, as Alt+Enter does"),
    ("Ctrl-C", "stop a reply; at the prompt leave, as Ctrl-D does"),
)


async def _stats(loop: ChatLoop, argument: str) -> None:
    del argument
    from llmsession.terminal.facts import describe_last

    loop.console.print(str(await loop.chat.stats()), markup=False)
    if loop.chat.last is not None:
        loop.note(describe_last(loop.chat.last))


async def _retry(loop: ChatLoop, argument: str) -> None:
    del argument
    await loop.reroll()


async def _rewind(loop: ChatLoop, argument: str) -> None:
    count = _read_number(argument, "!rewind takes how many exchanges to take back, such as !rewind 2")
    said = user_turns(loop)
    if not said:
        raise UsageError("there is nothing to take back: nothing was said yet")
    if count > len(said):
        raise UsageError(f"there are {len(said)} exchanges, and {count} cannot be taken back")
    await loop.chat.conversation.rewind(count)
    loop.can_reroll = False
    taken = "the last exchange was" if count == 1 else f"the last {count} exchanges were"
    loop.note(f"({taken} taken back)")
    loop.show_last_exchange()


async def _edit(loop: ChatLoop, argument: str) -> None:
    said = user_turns(loop)
    if not said:
        raise UsageError("there is nothing to edit: nothing was said yet")
    words = f"!edit takes the number of something that you said, 1 to {len(said)}; without it, the last"
    number = _read_number(argument, words) if argument else len(said)
    if number > len(said):
        raise UsageError(words)
    turn = said[number - 1]
    text = await loop.reader.ask("edit> ", given=turn.message.content)
    if text is None or not text.strip() or text == turn.message.content:
        loop.note("(nothing was changed)")
        return
    await loop.chat.conversation.edit(turn.id, text.strip())
    await loop.answer_last()


async def _forget(loop: ChatLoop, argument: str) -> None:
    del argument
    what = f"Delete all that is remembered of {loop.whose}, for good" if loop.is_remembered else "Start over"
    if not await _agrees(loop, f"{what}, and delete the lines that you typed?"):
        loop.note("(nothing was deleted)")
        return
    await loop.forget()
    loop.note("(forgotten)" if loop.is_remembered else "(started over)")


async def _agrees(loop: ChatLoop, question: str) -> bool:
    loop.console.print(question, markup=False)
    return (await loop.reader.ask("yes or no> ") or "").strip().lower() in ("y", "yes")


async def _save(loop: ChatLoop, argument: str) -> None:
    from llmsession.terminal.saving import write_conversation

    if not argument:
        raise UsageError("!save takes the name of a file; .md gives Markdown, .json JSON, anything else plain text")
    path = Path(argument).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it")
    if path.exists() and not await _agrees(loop, f"{path} is there already. Overwrite it?"):
        loop.note("(nothing was written)")
        return
    messages = loop.chat.conversation.messages
    write_conversation(path, messages, model=loop.chat.session.model)
    loop.note(f"(saved {len(messages)} messages to {printable_line(str(path))})")


async def _model(loop: ChatLoop, argument: str) -> None:
    del argument
    from llmsession.terminal.facts import model_facts

    loop.console.print(model_facts(loop.chat.session))


async def _metrics(loop: ChatLoop, argument: str) -> None:
    del argument
    from llmsession.terminal.facts import metrics_table

    loop.console.print(metrics_table(await loop.chat.session.get_metrics()))


async def _inspect(loop: ChatLoop, argument: str) -> None:
    del argument
    from llmsession.terminal.facts import pieces_shown

    inspection = await loop.chat.inspect()
    loop.console.print(pieces_shown(inspection, width=loop.console.width))
    if inspection.missed is not None:
        loop.note(f"The last turn missed the cache: {inspection.missed}")


async def _exit(loop: ChatLoop, argument: str) -> None:
    del argument
    loop.is_over = True


COMMANDS = {
    "help": Command("", "show this", show_help),
    "stats": Command("", "tokens of context used, messages, the last reply", _stats),
    "retry": Command("", "answer the last thing you said again", _retry),
    "rewind": Command("[N]", "take back the last N exchanges (1)", _rewind),
    "edit": Command("[N]", "change the Nth thing that you said (the last), and have it answered", _edit),
    "forget": Command("", "delete for good what is remembered of you", _forget),
    "save": Command("FILE", "write the conversation: .md, .json or text", _save),
    "model": Command("", "facts about the model and its server", _model),
    "metrics": Command("", "what the server has counted", _metrics),
    "inspect": Command("", "each piece of the prompt, its tokens, and whether it is cached", _inspect),
    "exit": Command("", "leave", _exit),
}


def user_turns(loop: ChatLoop) -> list[Turn]:
    """Return the user's turns that are on the active path."""
    return [turn for turn in loop.chat.conversation.path if turn.message.role is Role.USER]


def _read_number(argument: str, words: str) -> int:
    if not argument:
        return 1
    if not argument.isascii() or not argument.isdecimal() or int(argument[:9]) < 1:
        raise UsageError(words)
    return int(argument[:9])
