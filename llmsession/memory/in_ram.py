"""A conversation that no memory keeps: it is its own store."""

from __future__ import annotations

import contextlib
import threading
from copy import copy
from datetime import datetime

from llmsession.memory.rows import ConversationRow
from llmsession.memory.store import Applied
from llmsession.memory.tree import Change, Tree
from llmsession.memory.turn import Turn
from llmsession.memory.turn_lock import Queues


class InRam:
    """Of one conversation."""

    def __init__(self, row: ConversationRow) -> None:
        self.guard = threading.RLock()
        self._row = row
        self._tree = Tree()
        self._queues = Queues()

    def look(self, conversation: int) -> int | None:
        """How often it was changed."""
        del conversation
        return self._row.version

    def load(self, conversation: int, *, since: int) -> tuple[ConversationRow, list[Turn]] | None:
        """All of it."""
        del conversation, since
        with self.guard:
            return copy(self._row), list(self._tree.turns.values())

    async def apply(self, conversation: int, version: int, change: Change, moment: datetime) -> Applied | None:
        """Number the new turn."""
        del conversation
        with self.guard:
            row, tree = self._row, self._tree
            if version != row.version:
                return None
            new_id = None if change.new is None else len(tree.turns) + 1
            tree.take(change, new_id)
            row.version += 1
            row.head, row.system_prompt, row.rendered = tree.head, tree.system_prompt, tree.rendered
            if change.is_use:
                row.last_update = max(row.last_update, moment)
            return Applied(row.version, row.last_update, new_id)

    def answering(self, conversation: int) -> contextlib.AbstractAsyncContextManager[None]:
        """One at a time."""
        return self._queues.turn(conversation)
