"""Where a remote server is, from what a user writes."""

from __future__ import annotations

import pytest

from llmsession import ConfigError
from llmsession.backends.remote import parse_remote

GOOD = {
    "localhost:8080": "http://localhost:8080",
    "127.0.0.1:1": "http://127.0.0.1:1",
    "bot.example": "http://bot.example",
    "bot.example:80/llm": "http://bot.example:80/llm",
    "[::1]:8080": "http://[::1]:8080",
    "http://localhost:8080/": "http://localhost:8080",
    "http://localhost:8080/v1": "http://localhost:8080",
    "https://bot.example/llm/v1/": "https://bot.example/llm",
    " https://bot.example:8443 ": "https://bot.example:8443",
    "HTTPS://Bot.Example": "https://bot.example",
}
BAD = [
    "", " ", ":", ":8080", "host:port", "host:", "host:99999", "host:-1", "host:0", "ftp://host", "http://", "http:///v1",
    "host name:80", "http://[::1:80", "http://[nonsense]:80", "http://host?x=1", "http://host#x", "http://u:p@host",
    "u@host:80", "http://host:80:80", "//host", "a\nb:80", "host:8 0",
]  # fmt: skip


@pytest.mark.parametrize(("given", "wanted"), GOOD.items())
def test_an_address_becomes_a_base_url(given: str, wanted: str) -> None:
    """API.md 3: `host:port` or a URL; a path prefix stays, the /v1 that every request has is ours to add."""
    assert wanted == parse_remote(given)


@pytest.mark.parametrize("given", BAD)
def test_what_is_no_address_is_a_config_error(given: str) -> None:
    """Issue 3: a port that is no port, and what else people write. A password never gets into a message."""
    with pytest.raises(ConfigError, match="remote=") as caught:
        parse_remote(given)
    assert "u:p" not in str(caught.value)
