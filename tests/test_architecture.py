"""The house keeps its floors: who may import whom, and which third party lives where. A page of `ast`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmsession"

# Lower floors know nothing of higher ones; rooms of floor 1 and 5 know nothing of each other.
FLOORS: dict[str, int] = {
    "errors": 0,
    "messages": 0,
    "sampling": 0,
    "completion": 0,
    "paths": 0,
    "latch": 0,
    "engine_copies": 0,
    "progress": 0,
    "device": 0,
    "images": 0,
    "lora": 0,
    "models": 1,
    "processes": 1,
    "wire": 1,
    "memory": 1,
    "options": 1,
    "written_options": 1,
    "engine_options": 1,
    "system_prompt": 0,
    "backends": 2,
    "admission": 2,
    "chosen_model": 3,
    "engine_files": 3,
    "preparation": 3,
    "asking": 3,
    "asking_chat": 3,
    "restarts": 2,
    "hang_watch": 3,
    "server": 3,
    "remote_server": 3,
    "server_facts": 3,
    "token_facts": 3,
    "reply_source": 3,
    "slot_gate": 2,
    "kv_cache": 3,
    "session": 3,
    "answering": 4,
    "chat": 4,
    "terminal": 5,
    "cli": 6,
    "__init__": 7,
    "__main__": 7,
}
# Not siblings in the sense of the rule: options carry encodings and are one room with the written ones, and the
# session's nine files are another.
ALLOWED_SIDEWAYS = {("options", "models"), ("options", "written_options"), ("written_options", "options")}
ALLOWED_SIDEWAYS |= {("options", "engine_options"), ("engine_options", "options")}
ALLOWED_SIDEWAYS |= {("engine_files", "engine_options"), ("preparation", "engine_files"), ("server", "preparation")}
ALLOWED_SIDEWAYS |= {("server", "chosen_model")}
ALLOWED_SIDEWAYS |= {("asking", "server"), ("asking", "remote_server")}
ALLOWED_SIDEWAYS |= {("asking_chat", "asking"), ("asking_chat", "server"), ("asking_chat", "remote_server")}
ALLOWED_SIDEWAYS |= {("session", "asking_chat")}
ALLOWED_SIDEWAYS |= {("session", "asking"), ("preparation", "chosen_model"), ("remote_server", "chosen_model")}
ALLOWED_SIDEWAYS |= {("reply_source", "server"), ("reply_source", "remote_server"), ("reply_source", "asking")}
ALLOWED_SIDEWAYS |= {("server", "hang_watch")}
ALLOWED_SIDEWAYS |= {("reply_source", "kv_cache"), ("session", "kv_cache")}
ALLOWED_SIDEWAYS |= {("server_facts", "server"), ("server_facts", "remote_server"), ("session", "token_facts")}
ALLOWED_SIDEWAYS |= {("token_facts", "server_facts"), ("token_facts", "asking")}
ALLOWED_SIDEWAYS |= {("session", "server"), ("session", "remote_server"), ("session", "reply_source")}

ALLOWED_SIDEWAYS |= {("chat", "answering"), ("chat", "terminal")}  # Chat.interact: the one arrow up

HOMES = {
    "httpx": ("wire",),
    "huggingface_hub": ("models.hub_fetch", "models.hub_errors"),
    "yaml": ("models.registry_file", "written_options"),
    "psutil": ("processes", "backends.devices"),
    "xllamacpp": ("backends.embedded_server",),
    "typer": ("cli",),
    "rich": ("cli", "terminal"),
    "markdown_it": ("terminal.markdown_lines",),
    "prompt_toolkit": ("terminal",),
    "platformdirs": ("paths",),
    "anyio": (
        "answering",
        "hang_watch",
        "kv_cache",
        "latch",
        "models.hub",
        "preparation",
        "processes",
        "memory.memory",
        "memory.store",
        "memory.turn_lock",
        "memory.writer",
        "wire",
        "backends",
        "engine_files",
        "server",
        "server_facts",
        "session",
        "terminal",
        "cli",
    ),
    "msgspec": ("",),
}
# Rooms that only transform values: an import of anyio or httpx there would be I/O.
NO_IO = (
    "wire.sse",
    "wire.events",
    "wire.request",
    "wire.completion_api",
    "wire.openai_api",
    "wire.metrics",
    "wire.assembly",
    "admission",
    "slot_gate",
    "models.encoding",
    "models.quantization",
    "memory.tree",
    "memory.rows",
    "wire.rewriting",
    "backends.defusing",
    "backends.inspection",
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package, by its name without the package's."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """The full name of every module that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def room(name: str) -> str:
    """The first part of a module's name: the file or folder at the top."""
    return name.partition(".")[0]


def test_every_room_stands_on_a_floor() -> None:
    """DESIGN 2: a new file or folder has to be put somewhere on purpose."""
    assert set(FLOORS) == {room(name) for name, _ in modules()}


def test_imports_go_down() -> None:
    """DESIGN 2: a floor may import only from lower floors, never a sibling room (floor 0 may import its own)."""
    wrong = []
    for name, tree in modules():
        for imported in imports(tree):
            if not imported.startswith("llmsession.") or room(name) in ("__init__", "__main__"):
                continue
            here, there = room(name), room(imported.removeprefix("llmsession."))
            ours, theirs = FLOORS[here], FLOORS[there]
            fine = theirs < ours or here == there or ours == theirs == 0 or (here, there) in ALLOWED_SIDEWAYS
            if not fine:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_third_parties_stay_at_home() -> None:
    """DESIGN 2: each library is known in one place, so that it can be replaced there."""
    wrong = []
    for name, tree in modules():
        for imported in imports(tree):
            top = imported.partition(".")[0]
            if top in sys.stdlib_module_names or top == "llmsession":
                continue
            if not any(home == "" or f"{name}.".startswith(f"{home}.") for home in HOMES.get(top, ())):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_rooms_without_io_import_none() -> None:
    """DESIGN 2: a room marked "no I/O" can be tested by calling it."""
    banned = {"anyio", "httpx", "socket", "subprocess"}
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if name in NO_IO
        for imported in imports(tree)
        if imported.partition(".")[0] in banned
    ]
    assert wrong == []


def test_nothing_imports_the_command() -> None:
    """DESIGN 2: nobody imports cli, except the entry point."""
    importers = {
        name
        for name, tree in modules()
        for imported in imports(tree)
        if imported.startswith("llmsession.cli") and room(name) != "cli"
    }
    assert importers == {"__main__"}
