"""Messages, sampling, admission: the values and the rules that need nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsession.session.requests.scheduler import Scheduler, Ticket
from llmsession.types.completion import Completion, StopReason, TokenPerformance, Usage
from llmsession.types.errors import InvalidMessagesError, UsageError
from llmsession.types.message_input import as_messages
from llmsession.types.messages import Message, Role, ToolCall
from llmsession.types.sampling import Sampling


@pytest.mark.parametrize("spelling", ["assistant", "ASSISTANT", "Assistant", "bot", "BOT"])
def test_a_role_is_made_from_any_case(spelling: str) -> None:
    """API 2; easy-llama: 'bot' is the assistant."""
    assert Role.ASSISTANT is Role(spelling)
    assert Role.ASSISTANT is Message(spelling, "x").role  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given_form",
    [
        "hi",
        Message.user("hi"),
        {"role": "user", "content": "hi"},
        {"role": "USER", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        ["hi"],
        [Message.user("hi")],
        ({"role": "user", "content": "hi"},),
    ],
    ids=repr,
)
def test_a_message_in_any_form(given_form: Any) -> None:
    """API 2: a str, a Message or an OpenAI-style dict will do."""
    assert [Message(Role.USER, "hi")] == as_messages(given_form)


def test_openais_tool_calls_are_read() -> None:
    """OpenAI's reference: arguments are a JSON text."""
    messages = as_messages(
        [
            "time?",
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "clock", "arguments": '{"x":1}'}}],
            },
            {"role": "tool", "content": "12:00", "tool_call_id": "a"},
        ]
    )
    assert (ToolCall(id="a", name="clock", arguments={"x": 1}),) == messages[1].tool_calls
    assert "a" == messages[2].tool_call_id


@pytest.mark.parametrize("call", [5, {}, {"function": {"name": "x", "arguments": "{"}}, {"function": {"name": 1}}])
def test_a_tool_call_that_is_none(call: Any) -> None:
    """API 5: an error of ours with the index."""
    with pytest.raises(InvalidMessagesError) as caught:
        as_messages(["a", {"role": "assistant", "tool_calls": [call]}])
    assert 1 == caught.value.index


def test_a_user_may_not_go_on_before_a_tool_has_answered() -> None:
    """Row A5: role order checked."""
    call = ToolCall(id="a", name="clock", arguments={})
    with pytest.raises(InvalidMessagesError, match="no result yet") as caught:
        as_messages(["a", Message(Role.ASSISTANT, tool_calls=(call,)), "b"])
    assert 2 == caught.value.index


PRESETS: dict[str, dict[str, Any]] = {
    "GREEDY": {"temperature": 0},
    "DEFAULT": {},
    "CLASSIC": {"min_p": 0, "repeat_penalty": 1.1},
    "SIMPLE": {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1},
    "SEMI": {"top_k": 80, "top_p": 0.975, "min_p": 0.025, "temperature": 0.9},
    "TIKTOKEN": {"temperature": 0.65},
    "LOW_MIN_P": {"top_k": 0, "top_p": 1, "min_p": 0.025, "temperature": 1},
    "MIN_P": {"top_k": 0, "top_p": 1, "min_p": 0.05, "temperature": 1},
    "STRICT_MIN_P": {"top_k": 0, "top_p": 1, "min_p": 0.1, "temperature": 1},
    "CONTRASTIVE": {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 0, "presence_penalty": 0.6},
    "WARM_CONTRASTIVE": {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 0, "presence_penalty": 1.0},
    "RANDOM": {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1e9},
    "LOW_TEMP": {"temperature": 0.4},
    "HIGH_TEMP": {"temperature": 1.2},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_interface_says(name: str) -> None:
    """API 2: presets, as class attributes."""
    assert Sampling(**PRESETS[name]) == getattr(Sampling, name)


def test_what_is_set_over_it_counts() -> None:
    """API 2: what counts, first to last; a falsy value is a value."""
    assert Sampling(temperature=0, top_k=5) == Sampling(temperature=1, top_k=5).merge(Sampling(temperature=0))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("samplers", "temperature", "a tuple of texts"),
        ("samplers", ["top_k", 5], "a tuple of texts"),
        ("dry_sequence_breakers", b"ab", "a tuple of texts"),
        ("top_k", 1.5, "a whole number"),
        ("top_k", True, "a whole number"),
        ("mirostat", "2", "a whole number"),
        ("repeat_last_n", 10**30, "a whole number"),
        ("temperature", True, "a finite number"),
        ("temperature", "hot", "a finite number"),
        ("min_p", 10**400, "a finite number"),
        ("ignore_eos", 1, "True or False"),
        ("logit_bias", {"5": 1.0}, "a dict of token ids and finite numbers"),
        ("logit_bias", {5: float("inf")}, "a dict of token ids and finite numbers"),
        ("logit_bias", [5], "a dict of token ids and finite numbers"),
    ],
)
def test_a_setting_of_another_type_is_refused(name: str, value: Any, wanted: str) -> None:
    """FAULTS F3: an engine would take it for something else, or answer 400 to each request."""
    with pytest.raises(UsageError, match=f"{name} is {wanted}, not "):
        Sampling(**{name: value})
    with pytest.raises(UsageError, match=f"{name} is {wanted}, not "):
        Sampling.DEFAULT.merge(msgspec.structs.replace(Sampling.GREEDY, **{name: value}))


def test_a_list_of_texts_is_as_good_as_a_tuple() -> None:
    """API 2: what JSON and YAML hold are lists."""
    assert ["top_k"] == list(Sampling(samplers=["top_k"]).samplers or ())  # type: ignore[arg-type]


def test_a_completion_is_its_text_and_can_be_written_down() -> None:
    """API 2: str, to_dict, to_json."""
    reply = Completion(id="r", text="ok", stop_reason=StopReason.END, seed=5, model="m", usage=Usage(prompt_tokens=2))
    assert "ok" == str(reply)
    assert ("end", 2) == (reply.to_dict()["stop_reason"], reply.to_dict()["usage"]["prompt_tokens"])
    assert '"stop_reason":"end"' in reply.to_json()
    assert 2 == reply.usage.total_tokens


def test_a_rate_without_time_is_zero() -> None:
    """API 2: 0.0 where seconds is 0."""
    assert (0.0, 5.0) == (TokenPerformance(count=5).rate, TokenPerformance(count=5, seconds=1.0).rate)


@given(limit=st.integers(1, 4), steps=st.lists(st.integers(0, 20), max_size=60))
def test_no_more_than_the_limit_and_first_come_first_served(limit: int, steps: list[int]) -> None:
    """DESIGN 3: admission: even steps enter, odd ones leave, in any order."""
    admission = Scheduler(limit)
    granted: list[int] = []
    tickets: dict[int, Ticket] = {}
    model: list[int] = []  # who is in or waits, in the order of coming
    for number, step in enumerate(steps):
        if step % 2 == 0 or not model:
            tickets[number] = admission.acquire(lambda number=number: granted.append(number))  # type: ignore[misc]
            model.append(number)
        else:
            admission.release(tickets[model.pop(step % len(model))])
        inside = [who for who in model if tickets[who].is_granted]
        assert min(limit, len(model)) == len(inside)
        waiting = [who for who in model if not tickets[who].is_granted]
        assert list(range(len(waiting))) == [admission.position(tickets[who]) for who in waiting]
        assert [None] * len(inside) == [admission.position(tickets[who]) for who in inside]
    assert sorted(granted) == granted
    assert len(set(granted)) == len(granted)
