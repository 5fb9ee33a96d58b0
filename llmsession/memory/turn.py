"""Turn: one message in the tree of a conversation, with its state."""

from __future__ import annotations

import enum
from datetime import datetime

import msgspec

from llmsession.types.completion import Completion
from llmsession.types.messages import Message


class TurnState(enum.StrEnum):
    """The state of a turn.

    A user's turn is pending, answered, or failed; a reply has the state in which it ended. `mark_delivered` makes both
    DELIVERED.
    """

    PENDING = "pending"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DELIVERED = "delivered"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message and its place. `id` is unique in its memory; `parent` is the turn before it, None for a first one.

    `created` is aware, in UTC. `key` is the event that brought a user's turn. `is_left_out`: the budget cut it, so it
    is on the path and no longer sent. `is_summary`: the model's own words in place of what was left out, up to its
    parent; never on the path. `tokens` is what it adds to the prompt, None if nobody counted. `completion` is all
    that is known about a reply of a model.
    """

    id: int
    parent: int | None
    message: Message
    state: TurnState
    created: datetime
    key: str | None = None
    is_pinned: bool = False
    is_left_out: bool = False
    is_summary: bool = False
    tokens: int | None = None
    completion: Completion | None = None
