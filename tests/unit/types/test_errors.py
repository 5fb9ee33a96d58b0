"""Every error of ours goes through a pipe and comes out as it was: process pools, Ray and Celery send them so."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

import llmsession
from llmsession.types import errors
from llmsession.types.completion import Completion, StopReason

VALUES: dict[str, Any] = {
    "path": Path("/a"), "line": 3, "key": "k", "index": 1, "reason": "cut", "candidates": ("a", "b"), "feature": "f",
    "backend": "b", "url": "u", "needed_bytes": 5, "free_bytes": 4, "hint": "h", "suggestion": "s", "returncode": -9,
    "log_tail": "t", "restarts": 2, "status": 418, "type": "x", "prompt_tokens": 7, "context_length": 6,
    "retry_after": 1.5, "payload": b"\xff",
}  # fmt: skip
KINDS = sorted(
    (kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.LLMSessionError)),
    key=lambda kind: kind.__name__,
)


def make(kind: type[errors.LLMSessionError]) -> errors.LLMSessionError:
    """With a value for each of its keywords, and a reply that it cut."""
    parameters = inspect.signature(vars(kind).get("__init__", kind.__init__)).parameters
    keywords = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    error = kind("what went wrong", **{name: VALUES[name] for name in keywords})
    error.partial = Completion(id="1", text="so far", stop_reason=StopReason.INTERRUPTED, model="m", seed=1)
    return error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_pickle_and_copy(kind: type[errors.LLMSessionError], way: Any) -> None:
    """F1: 11 of 15 failed, and took the pool with them."""
    error = make(kind)
    again = way(error)
    assert type(error) is type(again)
    assert (str(error), error.args, vars(error)) == (str(again), again.args, vars(again))


def test_all_of_them_are_public() -> None:
    """So that none is left out of the test above by name."""
    public = {kind.__name__ for kind in KINDS} - {"TokenLimitReachedError"}
    assert public <= set(llmsession.__all__)
    assert len(public) > 25
