"""The demonstration model does what its card says, in a form that every engine and both APIs understand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from llmsession import Message, Role, Session, StopReason, ToolCall
from tests.engines import EMBEDDED, Engine
from tiny_chat.cases import CALCULATE, CLOCK, TASKS
from tiny_chat.evaluation import BAR, ENDS, Doors, measure
from tiny_chat.layout import Turn, render

pytestmark = pytest.mark.anyio

CASES = 20
TOOLS = [CALCULATE, CLOCK]
SUM = Message.user("What is 12 plus 30?")
CALL = ToolCall(
    id="call-1",
    name="calculate",
    arguments={"first_number": "12", "second_number": "30", "operation": "addition"},
)


@pytest.fixture(scope="module")
def doors(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A session for each API, opened once for the module."""
    given = engine.options(cache_dir=tmp_path_factory.mktemp("cache"), parallel=4, context_length=2048)
    doors = Doors(native=Session(**given), chat=Session(**given, prompt_encoding="chat"))
    for session in (doors.native, doors.chat):
        anyio.run(session.__aenter__)
    yield doors
    for session in (doors.native, doors.chat):
        anyio.run(session.aclose)


@pytest.mark.parametrize("engine", [EMBEDDED], indirect=True, ids=["embedded"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("title", TASKS)
async def test_it_holds_the_bar_of_its_card(doors: Doors, title: str) -> None:
    """Issue 2: at least 95 of 100 on what it never saw, but for what BAR names; 20 cases here."""
    score = await measure(doors, title, CASES)
    assert CASES == score.cases
    # Two more than the bar's share may fail, twice the standard deviation: twenty cases say 95 of 100 only roughly.
    assert score.right >= CASES * BAR[title] // 100 - 2, "\n".join(map(str, score.misses))
    assert score.ended >= CASES * ENDS // 100


async def ask(session: Session, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request of the test's own."""
    key = {"Authorization": f"Bearer {session.api_key}"}
    async with httpx.AsyncClient(base_url=session.base_url, headers=key, timeout=60) as client:
        answer = await client.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


async def test_the_chat_endpoint_gives_its_tool_call(doors: Doors) -> None:
    """Issue 2: llama-server's parser recognises the call: `tool_calls`, and no text beside it."""
    reply = await doors.chat.prompt([SUM], temperature=0, extra={"tools": TOOLS})
    (call,) = reply.tool_calls
    assert (CALL.name, CALL.arguments) == (call.name, call.arguments)
    assert StopReason.TOOL_CALLS is reply.stop_reason
    assert "" == reply.text


async def test_both_apis_agree_on_the_call_and_on_what_is_said_of_its_result(doors: Doors) -> None:
    """Issue 2: the template's rendering through the native endpoint, and the chat endpoint, say the same."""
    said = [{"role": "user", "content": SUM.content}]
    rendered = await ask(doors.native, "/apply-template", {"messages": said, "tools": TOOLS})
    raw = await doors.native.generate(rendered["prompt"], temperature=0)
    body = raw.text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert {"name": CALL.name, "arguments": CALL.arguments} == json.loads(body)
    messages = [SUM, Message(Role.ASSISTANT, tool_calls=(CALL,)), Message.tool("42", tool_call_id=CALL.id)]
    answer = await doors.chat.prompt(messages, temperature=0, extra={"tools": TOOLS})
    assert "The result is 42." == answer.text
    assert () == answer.tool_calls


async def test_the_chat_endpoint_gives_its_thought_apart(doors: Doors) -> None:
    """Issue 2, E3: `reasoning_content`; by our own encoding the same, and no tags in the text."""
    messages = [Message.system("Think first."), Message.user('reply with "ok chief"')]
    chat = await doors.chat.prompt(messages, temperature=0)
    native = await doors.native.prompt(messages, temperature=0)
    assert chat.reasoning
    assert "ok chief" == chat.text
    assert ("ok chief", chat.reasoning.strip()) == (native.text, native.reasoning.strip())


async def test_the_template_is_what_the_training_saw(doors: Doors) -> None:
    """Issue 2: the GGUF's own Jinja template, byte for byte what `scripts/tiny_chat` trains on."""
    said = [Turn("system", "You are kind."), Turn("user", "hello"), Turn("assistant", "Hello!"), Turn("user", "bye")]
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    rendered = await ask(doors.chat, "/apply-template", {"messages": messages})
    assert render(said) == await doors.chat.tokenize(rendered["prompt"], special=True)
