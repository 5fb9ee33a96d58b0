"""Back-off and breaker, on a clock of the test's own."""

from __future__ import annotations

import math

from llmsession.session.server.restart_policy import LONGEST_PAUSE, SETTLED, RestartPolicy


class Clock:
    """Goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_restart_comes_at_once_and_the_next_ones_later_and_later() -> None:
    """Row B10: back-off."""
    clock, pauses = Clock(), []
    restarts = RestartPolicy(100, clock=clock)
    for _ in range(10):
        restarts.note_end()
        pauses.append(restarts.pause)
    assert [0.0, 0.2, 0.4, 0.8] == pauses[:4]
    assert sorted(pauses) == pauses
    assert LONGEST_PAUSE == pauses[-1]
    clock.now += LONGEST_PAUSE / 2
    assert LONGEST_PAUSE / 2 == restarts.pause
    restarts.note_ready()
    clock.now += SETTLED
    restarts.note_end()
    assert 0 == restarts.pause


def test_too_many_in_the_window_are_the_end_until_the_window_has_moved_on() -> None:
    """Row B10: the breaker opens after restart_limit, and closes again."""
    clock = Clock()
    restarts = RestartPolicy(2, window=100, clock=clock)
    for number in range(3):
        assert not restarts.is_exhausted
        clock.now += 10
        restarts.note_end()
        assert number + 1 == restarts.count
    assert restarts.is_exhausted
    assert 80 == restarts.next_in
    clock.now += 79
    assert restarts.is_exhausted
    clock.now += 1
    assert not restarts.is_exhausted
    assert 0 == restarts.next_in


def test_a_limit_of_nothing_never_starts_it_again() -> None:
    """Options.restart_limit=0."""
    restarts = RestartPolicy(0, clock=Clock())
    assert not restarts.is_exhausted
    restarts.note_end()
    assert restarts.is_exhausted
    assert math.inf == restarts.next_in
