"""Memory as a state machine, beside a plain model of what it should hold. STYLE 5; rows D1, D2, D5.

Two memories have one file open, as two processes would; either is closed and opened again at any time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmsession import Conversation, InvalidMessagesError, Memory, Message, TurnState, UsageError
from llmsession.memory.conversation import log_of
from tests.memories import reply

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
USERS = st.sampled_from(["ann", "bob", "ann\0", ""])
SIDES = st.sampled_from([0, 1])


@dataclass
class Said:
    """A turn of the model's."""

    parent: int | None
    role: str
    text: str
    state: TurnState = TurnState.COMPLETE
    key: str | None = None
    is_pinned: bool = False


@dataclass
class Talk:
    """A conversation of the model's."""

    turns: dict[int, Said] = field(default_factory=dict)
    head: int | None = None
    prompt: str | None = None

    def path(self) -> list[int]:
        """From the first to the last."""
        found, at = [], self.head
        while at is not None:
            found.append(at)
            at = self.turns[at].parent
        return found[::-1]

    def ends_with(self) -> str | None:
        """The role of the last."""
        return None if self.head is None else self.turns[self.head].role


class Memories(RuleBasedStateMachine):
    """Each rule does the same to a memory and to the model, through either of the two that have the file open."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.portal_manager = anyio.from_thread.start_blocking_portal()
        self.portal = self.portal_manager.__enter__()
        self.memories: list[Memory] = []
        self.talks: dict[str, Talk] = {}
        self.keys = 0

    def teardown(self) -> None:
        for memory in self.memories:
            self.portal.call(memory.aclose)
        self.portal_manager.__exit__(None, None, None)
        self.folder.cleanup()

    def do(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """In the event loop."""
        return self.portal.call(function)

    def open(self) -> Memory:
        """The file, once more."""

        async def open_it() -> Memory:
            return await Memory.open(Path(self.folder.name, "memory.db"))

        memory: Memory = self.do(open_it)
        return memory

    def get(self, side: int, user: str) -> tuple[Conversation, Talk]:
        """Both sides' idea of it."""
        return self.do(lambda: self.memories[side].get(user)), self.talks.setdefault(user, Talk())

    @initialize()
    def start(self) -> None:
        self.memories = [self.open(), self.open()]

    @rule(side=SIDES)
    def reopen(self, side: int) -> None:
        self.do(self.memories[side].aclose)
        self.memories[side] = self.open()

    @rule(side=SIDES, user=USERS, text=TEXTS, role=st.sampled_from(["user", "assistant"]))
    def add(self, side: int, user: str, text: str, role: str) -> None:
        conversation, talk = self.get(side, user)
        fits = role != ("user" if talk.ends_with() == "user" else "assistant" if talk.ends_with() != "user" else "")
        message = {"role": role, "content": text}
        if not fits:
            with pytest.raises(InvalidMessagesError) as caught:
                self.do(lambda: conversation.add(message))
            assert caught.value.index == len(talk.path()) + (talk.prompt is not None)
            return
        turn = self.do(lambda: conversation.add(message))
        assert turn.id not in talk.turns
        if role == "assistant":
            talk.turns[talk.head or 0].state = TurnState.COMPLETE
        talk.turns[turn.id] = Said(talk.head, role, text)
        talk.head = turn.id

    @rule(side=SIDES, user=USERS, text=TEXTS, keyed=st.booleans())
    def ask(self, side: int, user: str, text: str, keyed: bool) -> None:
        conversation, talk = self.get(side, user)
        self.keys += 1
        key = f"key {self.keys}" if keyed else None
        turn = self.do(lambda: log_of(conversation).ask(text, key=key))
        if talk.ends_with() == "user":
            left = talk.turns[talk.head or 0]
            if left.key is None or left.state is not TurnState.PENDING:
                left.state = TurnState.FAILED
            parent = left.parent
        else:
            parent = talk.head
        talk.turns[turn.id] = Said(parent, "user", text, TurnState.PENDING, key)
        talk.head = turn.id

    @rule(side=SIDES, user=USERS, text=TEXTS)
    def answer(self, side: int, user: str, text: str) -> None:
        conversation, talk = self.get(side, user)
        if talk.ends_with() != "user":
            return
        asked = talk.head or 0
        turn = self.do(lambda: log_of(conversation).save_reply(asked, reply(text), TurnState.COMPLETE))
        talk.turns[asked].state = TurnState.COMPLETE
        talk.turns[turn.id] = Said(asked, "assistant", text)
        talk.head = turn.id

    @rule(side=SIDES, user=USERS)
    def fail(self, side: int, user: str) -> None:
        conversation, talk = self.get(side, user)
        if talk.ends_with() != "user":
            return
        asked = talk.head or 0
        self.do(lambda: log_of(conversation).fail(asked))
        talk.turns[asked].state = TurnState.FAILED
        talk.head = talk.turns[asked].parent

    @rule(side=SIDES, user=USERS, back=st.integers(-1, 4))
    def rewind(self, side: int, user: str, back: int) -> None:
        conversation, talk = self.get(side, user)
        users = [at for at in talk.path() if talk.turns[at].role == "user"]
        try:
            self.do(lambda: conversation.rewind(back))
        except UsageError:
            assert not 0 <= back <= len(users)
        else:
            assert 0 <= back <= len(users)
            if back:
                talk.head = talk.turns[users[-back]].parent

    @rule(side=SIDES, user=USERS)
    def clear(self, side: int, user: str) -> None:
        conversation, talk = self.get(side, user)
        self.do(conversation.clear)
        talk.head = None

    @rule(side=SIDES, user=USERS, prompt=st.none() | TEXTS)
    def prompt(self, side: int, user: str, prompt: str | None) -> None:
        conversation, talk = self.get(side, user)
        self.do(lambda: conversation.set_system_prompt(prompt))
        talk.prompt = prompt

    @precondition(lambda self: any(talk.turns for talk in self.talks.values()))
    @rule(side=SIDES, user=USERS, data=st.data(), text=TEXTS, what=st.sampled_from(["branch", "edit", "pin"]))
    def change(self, side: int, user: str, data: st.DataObject, text: str, what: str) -> None:
        conversation, talk = self.get(side, user)
        if not talk.turns:
            return
        at = data.draw(st.sampled_from(sorted(talk.turns)))
        before = talk.turns[at]
        if what == "branch":
            self.do(lambda: conversation.branch(at))
            talk.head = at
        elif what == "edit":
            turn = self.do(lambda: conversation.edit(at, text))
            talk.turns[turn.id] = Said(before.parent, before.role, text, is_pinned=before.is_pinned)
            talk.head = turn.id
        else:
            self.do(lambda: conversation.pin(at, not before.is_pinned))
            before.is_pinned = not before.is_pinned

    @rule(side=SIDES, user=USERS)
    def forget(self, side: int, user: str) -> None:
        assert self.do(lambda: self.memories[side].forget_user(user)) == (user in self.talks)
        self.talks.pop(user, None)

    @invariant()
    def both_sides_know_all(self) -> None:
        for memory in self.memories:
            found = self.do(memory.conversations)
            assert {conversation.user for conversation in found} == set(self.talks)
            for conversation in found:
                self.check(conversation, self.talks[conversation.user])
            waiting = {
                at
                for talk in self.talks.values()
                for at, said in talk.turns.items()
                if said.role == "user"
                and (said.state is TurnState.PENDING or (said.key is not None and said.state is not TurnState.FAILED))
            }
            assert waiting == {one.turn.id for one in self.do(memory.unfinished)}

    def check(self, conversation: Conversation, talk: Talk) -> None:
        """The same turns, path and messages."""
        known = {
            turn.id: Said(
                turn.parent, turn.message.role.value, turn.message.content, turn.state, turn.key, turn.is_pinned
            )
            for turn in conversation.turns
        }
        assert talk.turns == known
        assert talk.path() == [turn.id for turn in conversation.path]
        prompt = [] if talk.prompt is None else [Message.system(talk.prompt)]
        path = [Message(talk.turns[at].role, talk.turns[at].text) for at in talk.path()]  # type: ignore[arg-type]
        assert [*prompt, *path] == conversation.messages
        for at, said in talk.turns.items():
            if said.key is not None:
                assert (found := log_of(conversation).find(said.key)) is not None
                assert found.id == at


TestMemories = Memories.TestCase
TestMemories.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
