"""SlotLock: many through at a time, or one alone; in order. DESIGN 6: one lock over all slots."""

from __future__ import annotations

from llmsession.session.kv.slot_lock import Hold, SlotLock


def enter(gate: SlotLock, passed: list[str], name: str, *, alone: bool = False) -> Hold:
    """Somebody who tells when he is let in."""
    return gate.acquire(lambda: passed.append(name), alone=alone)


def test_many_pass_together_and_one_alone_waits_for_all_of_them() -> None:
    """And those who come after him wait for him: nobody waits for ever."""
    gate, passed = SlotLock(), list[str]()
    one, two = enter(gate, passed, "one"), enter(gate, passed, "two")
    alone, three = enter(gate, passed, "alone", alone=True), enter(gate, passed, "three")
    assert ["one", "two"] == passed
    gate.release(one)
    assert ["one", "two"] == passed
    gate.release(two)
    assert ["one", "two", "alone"] == passed
    gate.release(alone)
    assert ["one", "two", "alone", "three"] == passed
    gate.release(three)
    assert 3 == gate.launches


def test_who_gives_up_stands_in_nobodys_way() -> None:
    """Before it was let in, as a cancelled reply does."""
    gate, passed = SlotLock(), list[str]()
    one = enter(gate, passed, "one")
    alone, two = enter(gate, passed, "alone", alone=True), enter(gate, passed, "two")
    gate.release(alone)
    assert ["one", "two"] == passed
    gate.release(one)
    gate.release(two)
    enter(gate, passed, "last", alone=True)
    assert ["one", "two", "last"] == passed
