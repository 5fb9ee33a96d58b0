"""RamStore: the store of a conversation without a memory."""

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
    """Stores one conversation in RAM."""

    def __init__(self, row: ConversationRow) -> None:
        self.path = None
        self.guard = threading.RLock()
        self._row = row
        self._tree = Tree()
        self._queues = Queues()

    def look(self, conversation: int) -> int | None:
        """Return the number of changes."""
        del conversation
        return self._row.version

    def load(self, conversation: int, *, since: int) -> tuple[ConversationRow, list[Turn]] | None:
        """Return the whole conversation."""
        del conversation, since
        with self.guard:
            return copy(self._row), list(self._tree.turns.values())

    async def apply(self, row: ConversationRow, change: Change, last_update: datetime) -> Applied | None:
        """Number the new turn and store the change."""
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
        """Return None: nothing of it is written to a disk."""
        del conversation, folder
        return None

    def answering(self, conversation: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold the conversation: one task at a time."""
        return self._queues.turn(conversation)
