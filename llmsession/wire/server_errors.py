"""A server's error, in whatever words its maker chose, as one of ours. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmsession.types.errors import (
    AuthError,
    BadRequestError,
    ContextOverflowError,
    OverloadedError,
    ServerError,
)
from llmsession.wire.lenient import parse_json

WEB_PAGE = "it sent a web page: this is not a server for language models"

# Codes and types by which servers call a prompt that is too long.
_OVERFLOW_CODES = re.compile(r"context_length_exceeded|exceed_context_size|context_?window_?exceeded", re.IGNORECASE)
# And their words: llama.cpp, llama-cpp-python, vLLM, LM Studio, LiteLLM, TGI, Mistral, OpenAI, Anthropic, Gemini.
_OVERFLOW_WORDS = re.compile(
    r"exceeds? the (?:available )?context|"
    r"(?:exceeds?|exceeding|exceeded|larger than|longer than|greater than|beyond|over(?:flow|flows)?)\b[^.]{0,80}"
    r"\b(?:context (?:length|window|size|limit)|context of|max_model_len|max_seq_len|n_ctx|maximum model length)|"
    r"(?:maximum|max) (?:context|model|input|sequence) length|maximum context\b|model's context (?:length|window)|"
    r"context (?:length|window) of only|context the overflows|"
    r"context (?:length|window|size) (?:was |is |has been )?exceeded|"
    r"prompt (?:is|was) too (?:long|large)|prompt contains \d+ tokens|input (?:is|was) too long|"
    r"input token count .{0,20}exceeds|reduce the length of (?:the|your) (?:messages|prompt|input)|"
    r"`inputs` tokens \+ `max_new_tokens` must be",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:context (?:length|window|size)(?: of| is| limit)?(?: only)?|context of|maximum context length(?: is| of)?|"
    r"model with|maximum(?: number of tokens)?(?: allowed)?(?: of| is)?|must be <=|max_model_len|>)\D{0,12}(\d[\d,]*)",
    re.IGNORECASE,
)
# The first pattern that fits: some name the prompt apart from all that was requested.
_PROMPTS = (
    re.compile(r"(\d[\d,]*)(?: tokens)? (?:in|from) the (?:messages|prompt|input)", re.IGNORECASE),
    re.compile(
        r"(?:requested tokens \(|resulted in|prompt contains|prompt has|your request has|has|requested|too long:|"
        r"given:|token count \(?|the first|request \()\D{0,4}(\d[\d,]*)",
        re.IGNORECASE,
    ),
)


def decode_error(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> ServerError:
    """Return the error that an answer stands for. It understands OpenAI's form, and anything else as text."""
    message, type_, details = _read_error(body)
    message = message or f"the server answered with status {status}"
    if (overflow := _find_overflow(message, type_, details, status)) is not None:
        return overflow
    if status in (401, 403) and type_ != "feature_disabled":
        return AuthError(
            f"the server refuses the key: {message} (give the right one with api_key=)",
            status=status,
            type=type_,
        )
    if status in (429, 503):
        after = (headers or {}).get("retry-after", "").strip()
        return OverloadedError(
            f"the server is not free: {message}",
            status=status,
            type=type_,
            retry_after=float(after) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", after) else None,
        )
    if 400 <= status < 500:
        return BadRequestError(f"the server refuses the request: {message}", status=status, type=type_)
    return ServerError(f"the server failed: {message}", status=status, type=type_)


def decode_error_frame(payload: bytes) -> ServerError:
    """Return the error that stands in the middle of a stream, where the status is a field."""
    code = _read_error(payload)[2].get("code")
    return decode_error(code if isinstance(code, int) and 400 <= code < 600 else 500, payload)


def _find_overflow(message: str, type_: str, details: Mapping[str, Any], status: int) -> ContextOverflowError | None:
    prompt, length = _as_count(details.get("n_prompt_tokens")), _as_count(details.get("n_ctx"))
    if prompt and length:
        return ContextOverflowError(
            f"the prompt has {prompt} tokens, and a conversation may use {length}: "
            "shorten it, or open the session with a larger context_length=",
            prompt_tokens=prompt,
            context_length=length,
            status=status,
            type=type_,
        )
    named = f"{type_} {details.get('code')} {message}"
    if not _OVERFLOW_CODES.search(named) and not _OVERFLOW_WORDS.search(message):
        return None
    found = next((found for pattern in _PROMPTS if (found := pattern.search(message))), None)
    prompt = _as_count(found[1].replace(",", "")) if found is not None else 0
    limit = _LIMIT.search(message)
    length = _as_count(limit[1].replace(",", "")) if limit is not None else 0
    if prompt <= length:  # other numbers than these, or those of the prompt and its reply together
        prompt = length = 0
    return ContextOverflowError(
        f"the prompt has more tokens than a conversation may use ({message}): "
        "shorten it, or open the session with a larger context_length=",
        prompt_tokens=prompt,
        context_length=length,
        status=status,
        type=type_ or "exceed_context_size_error",
    )


def _as_count(value: Any) -> int:
    """A number that counts tokens; 0 for anything else."""
    try:
        return max(0, int(value)) if not isinstance(value, bool) else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _read_error(body: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """Message, type, and the object they came from."""
    try:
        decoded = parse_json(body)
    except ValueError:
        text = body.decode(errors="replace").strip()
        if text.lower().startswith(("<!doctype", "<html")):
            text = WEB_PAGE
        return text[:300], "", {}
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else decoded
    if isinstance(error, dict):
        # llamafile has its words under `content`, FastAPI under `detail`; some wrap the error once more.
        said = error.get("message") or error.get("content") or error.get("detail") or error.get("error") or ""
        return _as_words(said)[:1000], str(error.get("type") or ""), error
    return _as_words(error)[:1000], "", {}


def _as_words(said: Any) -> str:
    if isinstance(said, dict) and isinstance(said.get("message"), str):
        return str(said["message"])
    if isinstance(said, list):  # FastAPI's faults, one for each field
        return "; ".join(_as_words(each.get("msg") if isinstance(each, dict) else each) for each in said)
    return "" if said is None else str(said)
