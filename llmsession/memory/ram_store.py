"""A conversation that no memory keeps: it is its own store."""

from __future__ import annotations

import contextlib
import threading
from copy import copy
from datetime import datetime
from pathlib import Path

from llmsession.memory.rows import ConversationRow
from llmsession.memory.store import Applied
from llmsession.memory.tree import Change, Tree
from llmsession.memory.turn import Turn
from llmsession.memory.turn_lock import Queues


class RamStore:
    """Of one conversation."""

    def __init__(self, row: ConversationRow) -> None:
        self.path = None
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

    async def apply(self, row: ConversationRow, change: Change, last_update: datetime) -> Applied | None:
        """Number the new turn."""
        with self.guard:
            mine, tree = self._row, self._tree
            if row.version != mine.version:
                return None
            new_id = None if change.new is None else len(tree.turns) + 1
            tree.take(change, new_id)
            mine.version += 1
            mine.last_update = last_update
            mine.head, mine.system_prompt, mine.rendered = tree.head, tree.system_prompt, tree.rendered
            return Applied(mine.version, last_update, new_id)

    async def cache_key(self, conversation: int, folder: Path) -> str | None:
        """Nothing of it is kept."""
        del conversation, folder
        return None

    def answering(self, conversation: int) -> contextlib.AbstractAsyncContextManager[None]:
        """One at a time."""
        return self._queues.turn(conversation)
