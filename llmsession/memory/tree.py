"""The tree of a conversation, and the change that each step makes to it. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from llmsession.memory.turn import Turn, TurnState
from llmsession.types.completion import Completion
from llmsession.types.errors import DuplicateKeyError, InvalidMessagesError, UsageError
from llmsession.types.message_input import find_fault
from llmsession.types.messages import Message, Role

# The id of a turn that the store has not numbered yet.
NEW: Final = 0
_SAID = (TurnState.COMPLETE, TurnState.INTERRUPTED, TurnState.DELIVERED)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The changes of one step, applied together. `head` may be NEW, the new turn. `is_use`: a message was exchanged."""

    new: Turn | None = None
    changed: tuple[Turn, ...] = ()
    head: int | UnsetType | None = UNSET
    system_prompt: str | UnsetType | None = UNSET
    rendered: tuple[str, str] | UnsetType | None = UNSET
    is_use: bool = True

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to store."""
        values = (self.head, self.system_prompt, self.rendered)
        return self.new is None and not self.changed and all(value is UNSET for value in values)


class Tree:
    """The turns, the end of the active path, and the system prompt, as of the last look."""

    __slots__ = ("_children", "_keys", "head", "rendered", "system_prompt", "turns")

    def __init__(self, turns: Iterable[Turn] = (), *, head: int | None = None) -> None:
        self.turns: dict[int, Turn] = {}
        self.head = head
        self.system_prompt: str | None = None
        self.rendered: tuple[str, str] | None = None
        self._children: dict[int | None, list[int]] = {}
        self._keys: dict[str, int] = {}
        for turn in turns:
            self.put(turn)

    # What is there.

    def put(self, turn: Turn) -> None:
        """Add or replace a turn."""
        if turn.id not in self.turns:
            self._children.setdefault(turn.parent, []).append(turn.id)
        if turn.key is not None:
            self._keys[turn.key] = turn.id
        self.turns[turn.id] = turn

    def take(self, change: Change, new_id: int | None) -> None:
        """Apply a change that was stored."""
        if change.new is not None and new_id is not None:
            self.put(replace(change.new, id=new_id))
        for turn in change.changed:
            self.put(turn)
        if change.head is not UNSET:
            self.head = new_id if change.head == NEW else change.head
        if change.system_prompt is not UNSET:
            self.system_prompt = change.system_prompt
        if change.rendered is not UNSET:
            self.rendered = change.rendered

    def missing(self, turns: Iterable[Turn]) -> int | None:
        """Return a parent of these turns, or the path's end, that this tree lacks. Parents are older."""
        if self.head is not None and self.head not in self.turns:
            return self.head
        for turn in turns:
            if turn.parent is not None and not (turn.parent < turn.id and turn.parent in self.turns):
                return turn.parent
        return None

    def turn(self, turn_id: int) -> Turn:
        """Return the turn. Raises UsageError if there is none."""
        if (turn := self.turns.get(turn_id)) is None:
            raise UsageError(f"there is no turn {turn_id!r} in this conversation: `turns` has them all")
        return turn

    def path(self, end: int | None) -> list[Turn]:
        """Return the turns from the first one to this one."""
        found: list[Turn] = []
        while end is not None:
            turn = self.turns[end]
            found.append(turn)
            end = turn.parent
        found.reverse()
        return found

    def messages(self, end: int | None) -> list[Message]:
        """Return the messages of the path, after the system prompt."""
        first = [Message.system(self.system_prompt)] if self.system_prompt is not None else []
        return [*first, *(turn.message for turn in self.path(end))]

    def find(self, key: str) -> Turn | None:
        """Return the user's turn with that key."""
        found = self._keys.get(key)
        return None if found is None else self.turns[found]

    def replies(self, turn_id: int) -> list[Turn]:
        """Return all replies to a turn, oldest first."""
        children = [self.turns[child] for child in self._children.get(turn_id, ())]
        return [turn for turn in children if turn.message.role is Role.ASSISTANT and not turn.is_summary]

    def reply_to(self, turn_id: int) -> Turn | None:
        """Return the reply on the active path, else the newest."""
        replies = self.replies(self.turn(turn_id).id)
        if len(replies) > 1:
            on_path = {turn.id for turn in self.path(self.head)}
            replies = [turn for turn in replies if turn.id in on_path] or replies
        return replies[-1] if replies else None

    def asked(self, turn_id: int) -> Turn:
        """Return the user's turn that this one is or belongs to. Raises UsageError if there is none."""
        turn: Turn | None = self.turn(turn_id)
        while turn is not None and turn.message.role is not Role.USER:
            turn = None if turn.parent is None else self.turns[turn.parent]
        if turn is None:
            raise UsageError(f"turn {turn_id} answers nobody: it has no user's turn before it")
        return turn

    def summary(self) -> Turn | None:
        """Return the newest summary on the active path."""
        on_path = {turn.id for turn in self.path(self.head)}
        found = [turn for turn in self.turns.values() if turn.is_summary and turn.parent in on_path]
        return found[-1] if found else None

    # What a step would change.

    def plan_add(self, message: Message, created: datetime) -> Change:
        """Plan to add the next message of the active path."""
        self._check_next(message, self.head)
        new = Turn(id=NEW, parent=self.head, message=message, state=TurnState.COMPLETE, created=created)
        settled: dict[int, Turn] = {}
        if self.head is not None and message.role is Role.ASSISTANT and not message.tool_calls:
            settled = self._with_state(self.asked(self.head), TurnState.COMPLETE)
        return Change(new=new, changed=tuple(settled.values()), head=NEW)

    def plan_ask(
        self, message: Message, created: datetime, *, key: str | None, parent: int | UnsetType | None
    ) -> Change:
        """Plan to add a user's turn that will be sent to a model. An unanswered one becomes its sibling."""
        if message.role is not Role.USER:
            raise InvalidMessagesError(f"a user's message is asked, not one of the role {message.role}")
        if key is not None and key in self._keys:
            raise DuplicateKeyError(
                f"the key {key!r} was used in this conversation before, for turn {self._keys[key]}: "
                "give each event a key of its own",
                key=key,
            )
        changed: tuple[Turn, ...] = ()
        if parent is UNSET:
            parent, changed = self._leave_unanswered()
        elif parent is not None:
            parent = self.turn(parent).id
        self._check_next(message, parent)
        new = Turn(id=NEW, parent=parent, message=message, state=TurnState.PENDING, created=created, key=key)
        return Change(new=new, changed=changed, head=NEW)

    def plan_ask_again(self, turn_id: int) -> Change:
        """Plan to make a user's turn pending again; the path ends in it unless it continued without it."""
        turn = self.turn(turn_id)
        if turn.message.role is not Role.USER:
            raise UsageError(f"turn {turn_id} is the {turn.message.role}'s: only a user's turn can be asked again")
        last = self.reply_to(turn_id)
        end = last.id if last is not None and last.state is TurnState.PENDING else turn_id
        changed = () if turn.state is TurnState.PENDING else (replace(turn, state=TurnState.PENDING),)
        goes = self.head == turn.parent and self.head != end
        return Change(changed=changed, head=end if goes else UNSET)

    def plan_reply(
        self,
        asked_id: int,
        completion: Completion,
        state: TurnState,
        created: datetime,
        *,
        reply_id: int | None,
        tokens: int | None,
        asked_tokens: int | None,
    ) -> Change:
        """Plan to store the text so far and its state. The path ends in the reply unless it continued elsewhere."""
        if state is TurnState.DELIVERED:
            raise UsageError("a reply is saved first, then mark_delivered() says that it was delivered")
        asked = self.turn(asked_id)
        if asked.message.role not in (Role.USER, Role.TOOL):
            raise UsageError(f"turn {asked_id} is the {asked.message.role}'s: there is nothing to reply to")
        message = Message(Role.ASSISTANT, completion.text, tool_calls=completion.tool_calls)
        if reply_id is None:
            reply = Turn(id=NEW, parent=asked_id, message=message, state=state, created=created)
        else:
            reply = self.turn(reply_id)
            if reply.parent != asked_id or reply.message.role is not Role.ASSISTANT:
                raise UsageError(f"turn {reply_id} is not a reply to turn {asked_id}")
        reply = replace(reply, message=message, state=state, completion=completion)
        if tokens is not None:
            reply = replace(reply, tokens=tokens)
        settled = TurnState.PENDING if completion.tool_calls and state in _SAID else state
        settled = TurnState.COMPLETE if settled is TurnState.INTERRUPTED else settled
        changed = self._with_state(self.asked(asked_id), settled)
        if asked_tokens is not None and asked.tokens != asked_tokens:
            current = changed.pop(asked_id, asked)
            changed[asked_id] = replace(current, tokens=asked_tokens)
        if reply_id is not None:
            changed[reply_id] = reply
        return Change(
            new=reply if reply_id is None else None,
            changed=tuple(changed.values()),
            head=reply.id if self._ends_in(asked) and self.head != reply.id else UNSET,
        )

    def plan_fail(self, asked_id: int) -> Change:
        """Plan to mark a turn as failed; a path that ends in it ends before it."""
        asked = self.turn(asked_id)
        changed = self._with_state(self.asked(asked_id), TurnState.FAILED)
        head = asked.parent if self._ends_in(asked) else UNSET
        return Change(changed=tuple(changed.values()), head=head)

    def plan_edit(self, turn_id: int, text: str, created: datetime) -> Change:
        """Plan to add another version of a turn as its sibling, and end the path there."""
        turn = self.turn(turn_id)
        if turn.is_summary:
            raise UsageError(f"turn {turn_id} is a summary, which is not on any path: it cannot be edited")
        message = replace(turn.message, content=text)
        self._check_next(message, turn.parent)
        new = Turn(
            id=NEW,
            parent=turn.parent,
            message=message,
            state=TurnState.COMPLETE,
            created=created,
            is_pinned=turn.is_pinned,
        )
        return Change(new=new, head=NEW)

    def plan_pin(self, turn_id: int, *, pinned: bool) -> Change:
        """Plan to keep the turn in the prompt, or to allow leaving it out."""
        turn = self.turn(turn_id)
        changed = () if turn.is_pinned == pinned else (replace(turn, is_pinned=pinned),)
        return Change(changed=changed, is_use=False)

    def plan_delivered(self, turn_id: int) -> Change:
        """Plan to mark a reply and its user's turn as delivered; either may be named."""
        turn = self.turn(turn_id)
        reply = turn if turn.message.role is Role.ASSISTANT else self.reply_to(turn_id)
        if reply is None or reply.is_summary or reply.state not in _SAID:
            raise UsageError(f"turn {turn_id} has no whole reply that could have been delivered")
        changed = self._with_state(reply, TurnState.DELIVERED)
        changed |= self._with_state(self.asked(reply.id), TurnState.DELIVERED)
        return Change(changed=tuple(changed.values()), is_use=False)

    def plan_branch(self, turn_id: int) -> Change:
        """Plan to end the path at the turn."""
        turn = self.turn(turn_id)
        if turn.is_summary:
            raise UsageError(f"turn {turn_id} is a summary, which is not on any path: name the turn before or after it")
        return Change(head=turn_id if turn_id != self.head else UNSET)

    def plan_rewind(self, exchanges: int) -> Change:
        """Plan to end the path before the last `exchanges` user's turns."""
        users = [turn for turn in self.path(self.head) if turn.message.role is Role.USER]
        if not 0 <= exchanges <= len(users):
            raise UsageError(f"rewind({exchanges}): the conversation has {len(users)} exchanges to go back")
        return Change(head=users[-exchanges].parent if exchanges else UNSET)

    def plan_clear(self) -> Change:
        """Plan to empty the path."""
        return Change(head=None if self.head is not None else UNSET)

    def plan_leave_out(self, turn_ids: Iterable[int], summary: Completion | str | None, created: datetime) -> Change:
        """Plan to stop sending turns; their summary, if any, becomes a child of the last one."""
        turns = [self.turn(turn_id) for turn_id in turn_ids]
        changed = tuple(replace(turn, is_left_out=True) for turn in turns if not turn.is_left_out)
        if not turns or summary is None:
            return Change(changed=changed, is_use=False)
        new = Turn(
            id=NEW,
            parent=max(turn.id for turn in turns),
            message=Message.assistant(summary if isinstance(summary, str) else summary.text),
            state=TurnState.COMPLETE,
            created=created,
            is_summary=True,
            completion=None if isinstance(summary, str) else summary,
        )
        return Change(new=new, changed=changed, is_use=False)

    def plan_tokens(self, counts: Mapping[int, int]) -> Change:
        """Plan to store how many tokens each turn adds to the prompt."""
        counted = [(self.turn(turn_id), tokens) for turn_id, tokens in counts.items()]
        changed = tuple(replace(turn, tokens=tokens) for turn, tokens in counted if turn.tokens != tokens)
        return Change(changed=changed, is_use=False)

    def plan_system_prompt(self, text: str | None) -> Change:
        """Plan to replace the system prompt, which is then rendered again."""
        if text == self.system_prompt:
            return Change()
        return Change(system_prompt=text, rendered=None)

    # Parts of the plans.

    def _check_next(self, message: Message, parent: int | None) -> None:
        """Check that the message may follow the parent."""
        before = None if parent is None else self.turns[parent].message
        fault: str | None
        if message.role is Role.SYSTEM:
            fault = "the system prompt of a conversation is given by set_system_prompt()"
        elif message.role is Role.USER and not message.content and not message.images:
            fault = "the message is empty"
        else:
            fault = find_fault(message, before)
        if fault is not None:
            index = len(self.messages(parent))
            raise InvalidMessagesError(f"message {index} ({message.role}): {fault}", index=index)

    def _leave_unanswered(self) -> tuple[int | None, tuple[Turn, ...]]:
        """Return the parent of the next question, and the change to one without a whole answer."""
        if self.head is None:
            return None, ()
        head = self.turns[self.head]
        if head.message.role is Role.ASSISTANT and not head.message.tool_calls and head.state is not TurnState.PENDING:
            return head.id, ()
        asked = self.asked(head.id)
        if asked.key is not None and asked.state is TurnState.PENDING:
            return asked.parent, ()  # whoever comes with its key again finishes it there
        if head.message.role is Role.ASSISTANT and not head.message.tool_calls:
            changed = self._with_state(head, TurnState.INTERRUPTED) | self._with_state(asked, TurnState.COMPLETE)
            return head.id, tuple(changed.values())
        return asked.parent, tuple(self._with_state(asked, TurnState.FAILED).values())

    def _ends_in(self, asked: Turn) -> bool:
        """Return whether the active path ends in this turn or in a reply to it."""
        return self.head == asked.id or (self.head is not None and self.turns[self.head].parent == asked.id)

    @staticmethod
    def _with_state(turn: Turn, state: TurnState) -> dict[int, Turn]:
        return {} if turn.state is state else {turn.id: replace(turn, state=state)}
