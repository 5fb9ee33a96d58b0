"""What a model returns: Completion and the values inside it. Plain data."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from llmsession.types.messages import Message, ToolCall


class StopReason(enum.StrEnum):
    """Why a reply ended."""

    END = "end"
    STOP_PHRASE = "stop_phrase"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    INTERRUPTED = "interrupted"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of one reply. `cached_tokens`: the part of the prompt that did not have to be evaluated.

    A `reply_start` is a part of the prompt.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together: the tokens that the conversation now takes of its context."""
        return self.prompt_tokens + self.completion_tokens


class TokenPerformance(msgspec.Struct, frozen=True, kw_only=True):
    """A number of tokens, and the seconds they took."""

    count: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second; 0.0 if no time was measured."""
        return self.count / self.seconds if self.seconds > 0 else 0.0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """How long the engine worked.

    `first_token_seconds`: the caller's wait, from sending the request to the first token.

    `generated` does not include the first token, as in the engine's own figures: it comes with the evaluation of the
    prompt.
    """

    prompt: TokenPerformance = TokenPerformance()
    generated: TokenPerformance = TokenPerformance()
    first_token_seconds: float | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token with its natural-log probability. `top`: the likeliest tokens at that place, if they were requested.

    `text` may be a part of a character, which is then U+FFFD.
    """

    id: int
    text: str
    logprob: float
    top: tuple[Token, ...] = ()


# Of a text in a repr.
LONGEST_SHOWN = 80


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A reply, and everything that is known about it.

    `stop_phrase`: the phrase that ended it, with `STOP_PHRASE`. `context_full`: it was cut because the context was
    full. `tokens`: empty unless `top_logprobs` was given. `neutralized`: how many spellings of special tokens in texts
    were kept as text. `restarts`: how often the server exited and was restarted during the reply; then `timings` are
    those of the last part. `dropped`: the messages that a chat leaves out from this turn on, because the context was
    full.
    """

    id: str
    text: str
    stop_reason: StopReason
    stop_phrase: str | None = None
    context_full: bool = False
    usage: Usage = Usage()
    timings: Timings = Timings()
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    seed: int
    model: str
    neutralized: int = 0
    restarts: int = 0
    dropped: tuple[Message, ...] = ()

    def __repr__(self) -> str:
        """One line: a long text is cut, and tokens are counted."""
        text = repr(self.text if len(self.text) <= LONGEST_SHOWN else f"{self.text[:LONGEST_SHOWN]}…")
        more = [f"{len(self.tokens)} tokens with log-probabilities"] if self.tokens else []
        more += [f"{len(self.tool_calls)} tool calls"] if self.tool_calls else []
        more += [f"{self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens", f"model={self.model!r}"]
        return f"<Completion {self.id}: {text}, {self.stop_reason}, {', '.join(more)}>"

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The completion as dicts and lists for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return plain

    def to_json(self) -> str:
        """The completion as one line of JSON."""
        return msgspec.json.encode(self, enc_hook=str).decode()
