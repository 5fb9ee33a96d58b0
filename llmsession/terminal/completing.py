"""Completion with Tab: of a command's name, and of the file that `!save` writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class CommandCompleter(Completer):
    """Words for the model are not completed. A command that takes something has a space at its end."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = sorted(commands)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What the line may become."""
        line = document.text_before_cursor
        if not line.startswith("!") or line.startswith("!!"):
            return
        name, space, path = line[1:].partition(" ")
        if space:
            if name.lower() == "save":
                yield from self._paths.get_completions(Document(path, len(path)), complete_event)
            return
        for command in self._commands:
            if command.startswith(name.lower()):
                yield Completion(command, start_position=-len(name))
