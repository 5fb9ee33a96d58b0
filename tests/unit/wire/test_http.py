"""The one map from foreign errors to ours."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llmsession.types import errors
from llmsession.wire.http import HttpClient
from llmsession.wire.server_errors import decode_error, decode_error_frame

pytestmark = pytest.mark.anyio


def openai_error(status: int, type_: str, **more: Any) -> bytes:
    """As llama-server writes it."""
    return json.dumps({"error": {"code": status, "message": "words", "type": type_, **more}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, openai_error(400, "invalid_request_error"), errors.BadRequestError),
        (
            400,
            openai_error(400, "exceed_context_size_error", n_prompt_tokens=9, n_ctx=5),
            errors.ContextOverflowError,
        ),
        (401, openai_error(401, "authentication_error"), errors.AuthError),
        (403, openai_error(403, "feature_disabled"), errors.BadRequestError),
        (403, b"forbidden", errors.AuthError),
        (404, openai_error(404, "not_found_error"), errors.BadRequestError),
        (429, openai_error(429, "rate_limit"), errors.OverloadedError),
        (500, openai_error(500, "server_error"), errors.ServerError),
        (501, openai_error(501, "not_supported_error"), errors.ServerError),
        (503, openai_error(503, "unavailable_error"), errors.OverloadedError),
        (500, b"plain text", errors.ServerError),
        (500, b"\xff\xfe", errors.ServerError),
        (500, b"", errors.ServerError),
        (500, b"[]", errors.ServerError),
        (400, b'{"error":"a sentence"}', errors.BadRequestError),
    ],
)
async def test_each_status_has_its_error(status: int, body: bytes, expected: type[errors.ServerError]) -> None:
    """LLAMA_SERVER 5, and what other servers send."""
    client = HttpClient("http://x", transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body)))
    with pytest.raises(errors.ServerError) as caught:
        await client.post("/completion", b"{}")
    assert expected is type(caught.value)
    assert status == caught.value.status
    with pytest.raises(errors.ServerError):
        await client.open_stream("/completion", b"{}")


async def test_an_overflow_has_both_numbers() -> None:
    """LLAMA_SERVER F11; API 5."""
    error = decode_error(400, openai_error(400, "exceed_context_size_error", n_prompt_tokens=9000, n_ctx=2048))
    assert isinstance(error, errors.ContextOverflowError)
    assert (9000, 2048) == (error.prompt_tokens, error.context_length)
    assert "9000" in str(error)
    assert "2048" in str(error)
    assert "context_length=" in str(error)


async def test_an_overloaded_server_may_say_how_long() -> None:
    """RFC 9110: Retry-After in seconds."""
    error = decode_error(429, b"", {"retry-after": "7"})
    assert isinstance(error, errors.OverloadedError)
    assert 7.0 == error.retry_after


async def test_an_error_frame_brings_its_own_status() -> None:
    """LLAMA_SERVER 3.7: errors after the first result come as a frame."""
    assert 500 == decode_error_frame(openai_error(500, "server_error")).status
    assert isinstance(decode_error_frame(openai_error(401, "x")), errors.AuthError)
    assert 500 == decode_error_frame(b'{"error":"no code"}').status


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (httpx.ConnectError("x"), errors.ConnectionLostError),
        (httpx.ReadError("x"), errors.ConnectionLostError),
        (httpx.WriteError("x"), errors.ConnectionLostError),
        (httpx.RemoteProtocolError("x"), errors.ConnectionLostError),
        (httpx.ReadTimeout("x"), errors.ReplyTimeoutError),
        (httpx.ConnectTimeout("x"), errors.ConnectionLostError),
        (httpx.DecodingError("x"), errors.ProtocolError),
        (httpx.TooManyRedirects("x"), errors.ConnectionLostError),
    ],
)
async def test_no_error_of_httpx_gets_out(foreign: Exception, ours: type[errors.LLMSessionError]) -> None:
    """STYLE 1, httpx: one table, most specific first."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise foreign

    client = HttpClient("http://x", transport=httpx.MockTransport(fail))
    with pytest.raises(ours) as caught:
        await client.get("/health")
    assert foreign is caught.value.__cause__


async def test_an_address_that_is_none_is_a_config_error() -> None:
    """API 5: wrong use is told as such."""
    with pytest.raises(errors.ConfigError):
        HttpClient("http://[::bad")
    with pytest.raises(errors.ConfigError):
        await HttpClient("ftp://x").get("/")


async def test_the_key_goes_as_a_bearer_token() -> None:
    """LLAMA_SERVER 3.2: capital B."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200)

    await HttpClient("http://x", api_key="k", transport=httpx.MockTransport(answer)).get("/")
    assert ["Bearer k"] == seen
