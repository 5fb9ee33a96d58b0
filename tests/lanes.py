"""Which tests run in which lane. The quick lane is the default; `--all` adds what is slow or covers a rarer pairing.

Where a test runs once for each engine, API and event loop, what is only repetition runs in no lane: trio meets one API,
and the stand-in for llamafile meets the tests of what differs there.
"""

from __future__ import annotations

import pytest

from tests.engines import ENGINES, Engine

# Whole files and single tests that take seconds each: kills again and again, random walks, evaluations, installations.
SLOW_FILES = frozenset({"test_release.py", "test_lifetime_walk.py", "test_kv_kills.py", "test_memory_crash.py"})
SLOW_TESTS = frozenset(
    {
        "test_it_holds_the_bar_of_its_card",
        "test_from_an_installation_to_a_reply",
        "test_an_archive_with_the_digest_that_the_user_gives",
        "test_ready_means_that_it_answers",
        "test_an_engine_that_a_signal_ends_while_it_loads",
        "test_a_hub_in_trouble_does_not_matter_where_the_file_is_there",
        "test_a_download_that_is_killed_again_and_again_is_whole_in_the_end",
        "test_concurrent_replies_are_those_of_an_idle_engine",
        "test_a_new_file_is_whole_or_new_whenever_its_maker_is_killed",
        "test_one_that_works_slowly_is_left_alone",
        "test_a_port_that_is_always_taken_by_another",
        "test_a_lock_holds",
        "test_it_goes_on_where_it_was_left",
        "test_more_conversations_than_slots_cost_their_new_tokens",
    }
)
# What is worth both event loops in the quick lane: the streams themselves, conversations, and how sessions end.
BOTH_LOOPS = frozenset({"test_replies.py", "test_chats.py", "test_session_lifetime.py", "test_child.py"})
# What llamafile does otherwise than llama-server shows in replies, their ends, and facts.
OF_LLAMAFILE = frozenset({"test_replies.py", "test_endings.py", "test_facts.py"})


def is_wanted(item: pytest.Item, *, everything: bool) -> bool:
    """Whether a test runs, in the quick lane or with `--all`."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    engine, loop, file = params.get("engine"), params.get("anyio_backend"), item.path.name
    is_trio, room = loop == "trio", item.path.parent.name
    if is_trio and params.get("api") == "chat":
        return False
    if isinstance(engine, Engine) and engine.backend == "llamafile" and room == "contract":
        return file in OF_LLAMAFILE and not is_trio and params.get("api") != "chat"
    if not _is_needed(engine, params, is_trio=is_trio):
        return False
    if everything:
        return True
    if file in SLOW_FILES or getattr(item, "originalname", "") in SLOW_TESTS:
        return False
    if isinstance(engine, Engine) and engine.backend == "llamafile":
        return file != "test_llamafile.py" or not is_trio
    return not is_trio or room not in ("contract", "integration", "process") or file in BOTH_LOOPS


def _is_needed(engine: object, params: dict[str, object], *, is_trio: bool) -> bool:
    """With both engines, each two of engine, API and event loop meet in each test, and not each three of them."""
    if len(ENGINES) < 2 or engine not in ENGINES or "anyio_backend" not in params:
        return True
    is_binary = engine is not ENGINES[0]
    if "api" in params:
        return (is_binary + is_trio + (params["api"] == "chat")) % 2 == 0
    return not (is_binary and is_trio)
