"""`!save`: a conversation as a file. Row D9."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsession.terminal.saving import write_conversation
from llmsession.types.errors import UsageError
from llmsession.types.messages import Message, Role, ToolCall

MESSAGES = [
    Message.system("Be brief."),
    Message.user("What is 1 + 1?\n", images=(b"\x89PNG",)),
    Message(Role.ASSISTANT, "", tool_calls=(ToolCall(id="c1", name="calculate", arguments={"a": "日本"}),)),
    Message.tool("2", tool_call_id="c1"),
    Message.assistant("**2**"),
]


@pytest.mark.parametrize("name", ["talk.md", "talk.MARKDOWN"])
def test_markdown(tmp_path: Path, name: str) -> None:
    """D9: by the end of its name."""
    path = tmp_path / name
    write_conversation(path, MESSAGES, model="tiny-chat")
    written = path.read_text(encoding="utf-8")
    assert written.startswith("# A conversation with tiny-chat\n\n2")
    assert '**tiny-chat:**\n\ncalculate({"a":"日本"})\n\n**Tool:**\n\n2\n\n**tiny-chat:**\n\n**2**\n' in written
    assert [path] == list(tmp_path.iterdir())


def test_json(tmp_path: Path) -> None:
    """D9: messages as OpenAI-style dicts have them."""
    path = tmp_path / "talk.json"
    write_conversation(path, MESSAGES, model="tiny-chat")
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert "tiny-chat" == whole["model"]
    assert {"role": "system", "content": "Be brief."} == whole["messages"][0]
    assert ["iVBORw=="] == whole["messages"][1]["images"]
    assert [{"id": "c1", "name": "calculate", "arguments": {"a": "日本"}}] == whole["messages"][2]["tool_calls"]


def test_text(tmp_path: Path) -> None:
    """D9: any other name."""
    path = tmp_path / "talk"
    write_conversation(path, MESSAGES[:2], model="tiny-chat")
    assert "System: Be brief.\n\nYou: What is 1 + 1?\n\n" == path.read_text(encoding="utf-8")


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """D9: atomically; one sentence."""
    target = tmp_path / "nowhere" / "talk.md"
    with pytest.raises(UsageError, match=r"cannot write .*talk\.md \(No such file"):
        write_conversation(target, MESSAGES, model="x")
    blocked = tmp_path / "blocked.md"
    blocked.mkdir()
    (blocked / "kept").touch()
    with pytest.raises(UsageError, match="nothing was changed"):
        write_conversation(blocked, MESSAGES, model="x")
    assert [blocked] == list(tmp_path.iterdir())
    assert [blocked / "kept"] == list(blocked.iterdir())
