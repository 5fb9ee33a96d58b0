"""Prometheus text and slots, of today's server and of yesterday's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsession.types.errors import UndecodableError
from llmsession.wire.metrics import Slot, parse_metrics, parse_samples, parse_slots

TODAY = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 27
llamacpp:prompt_tokens_cached_total 4
llamacpp:prompt_seconds_total 0.5
llamacpp:tokens_predicted_total 15
llamacpp:tokens_predicted_seconds_total 0.25
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 3
llamacpp:a_name_of_tomorrow 5
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""
YESTERDAY = "llamacpp:kv_cache_usage_ratio 0.5\nllamacpp:kv_cache_tokens 100\nllamacpp:prompt_tokens_total nan\n"


def test_todays_server() -> None:
    """LLAMA_SERVER 3.5, recorded; labels and new names are passed over."""
    metrics = parse_metrics(TODAY, [Slot(0, 100, False, 30), Slot(1, 100, True, 20)])
    assert (27, 54.0) == (metrics.prompt.count, metrics.prompt.rate)
    assert (15, 60.0) == (metrics.generated.count, metrics.generated.rate)
    assert (4, 2, 1) == (metrics.cached_prompt_tokens, metrics.requests_processing, metrics.requests_pending)
    assert (0.25, 50) == (metrics.kv_cache_usage, metrics.kv_cache_tokens)


def test_yesterdays_server_says_it_of_the_cache_itself() -> None:
    """LLAMA_SERVER 8: b4100 has kv_cache_*; NaN where nothing was done yet."""
    metrics = parse_metrics(YESTERDAY)
    assert (0.5, 100, 0) == (metrics.kv_cache_usage, metrics.kv_cache_tokens, metrics.prompt.count)


def test_a_rate_where_there_are_no_seconds() -> None:
    """LLAMA_SERVER 8: llamafile has eight names; NaN, infinity and nothing done are no rate."""
    text = "llamacpp:tokens_predicted_total 30\nllamacpp:predicted_tokens_seconds {}\n"
    rates = {"15.0": 15.0, "0": 0.0, "nan": 0.0, "-nan": 0.0, "inf": 0.0}
    assert list(rates.values()) == [parse_metrics(text.format(rate)).generated.rate for rate in rates]
    assert {30} == {parse_metrics(text.format(rate)).generated.count for rate in rates}
    both = text.format("99") + "llamacpp:tokens_predicted_seconds_total 2\n"
    assert 15.0 == parse_metrics(both).generated.rate


def test_slots_that_do_not_tell_what_they_hold() -> None:
    """Builds of 2025 have no figures of the KV cache anywhere: then it is not known, and not 0."""
    payload = b'[{"id":0,"n_ctx":256,"is_processing":true,"next_token":{"n_remain":1}},{"id":1,"n_ctx":256}]'
    slots = parse_slots(payload)
    assert [Slot(0, 256, True, None), Slot(1, 256, False, 0)] == slots
    metrics = parse_metrics(TODAY, slots)
    assert (None, None) == (metrics.kv_cache_usage, metrics.kv_cache_tokens)


def test_llamafiles_slots() -> None:
    """LLAMA_SERVER 8: `state` in the place of `is_processing`."""
    slots = parse_slots(
        b'[{"id":0,"n_ctx":64,"state":1,"next_token":{}},{"id":1,"n_ctx":64,"state":0,"next_token":{}}]'
    )
    assert [True, False] == [slot.is_processing for slot in slots]


def test_what_nobody_knows_is_none() -> None:
    """API 2: None where the server cannot say."""
    metrics = parse_metrics("")
    assert (None, None, None) == (metrics.kv_cache_usage, metrics.kv_cache_tokens, metrics.cached_prompt_tokens)
    assert 0.0 == metrics.prompt.rate


@pytest.mark.parametrize("text", ["llamacpp:x", "llamacpp:x abc", "<html>"])
def test_what_is_no_metric_is_undecodable(text: str) -> None:
    """API 5: ProtocolError."""
    with pytest.raises(UndecodableError):
        parse_samples(text)


@given(st.text())
def test_any_text_is_samples_or_our_error(text: str) -> None:
    """Nothing of Python's own gets out."""
    try:
        parse_metrics(text)
    except UndecodableError as error:
        assert error.payload  # noqa: PT017 - either outcome is right


def test_slots() -> None:
    """LLAMA_SERVER 3.4: one that was never used has fewer fields."""
    payload = (
        b'[{"id":0,"n_ctx":256,"speculative":false,"is_processing":false},{"id":1,"n_ctx":256,"n_prompt_tokens":9}]'
    )
    assert [Slot(0, 256), Slot(1, 256, False, 9)] == parse_slots(payload)
    with pytest.raises(UndecodableError):
        parse_slots(b'{"error":{}}')
