"""The house keeps its floors: who may import whom, and which third party lives where. A page of `ast`."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmsession"

# A room is a folder of the package, or a file at its top. It imports rooms of lower floors only.
FLOORS: dict[str, int] = {
    "types": 1,
    "system": 2,
    "processes": 3,
    "models": 3,
    "wire": 3,
    "memory": 3,
    "prompts": 4,
    "backends": 4,
    "terminal": 4,
    "session": 5,
    "chat": 6,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}
HOMES = {
    "httpx": ("wire",),
    "huggingface_hub": ("models.hub",),
    "yaml": ("system.yaml_file", "models.registry_file", "session.config.options_file"),
    "psutil": ("processes", "backends"),
    "xllamacpp": ("backends.embedded_child",),
    "typer": ("cli",),
    "rich": ("cli", "terminal"),
    "markdown_it": ("terminal.markdown_lines",),
    "prompt_toolkit": ("terminal",),
    "platformdirs": ("system.paths",),
    "anyio": ("system", "processes", "models.hub", "wire", "memory", "backends", "terminal", "session", "chat", "cli"),
    "msgspec": ("",),
}
# Files and rooms that only transform values: an import of anyio or httpx there would be I/O.
NO_IO = (
    "types",
    "models.encoding",
    "models.quantization",
    "wire.accumulator",
    "wire.completion_api",
    "wire.lenient",
    "wire.metrics",
    "wire.openai_api",
    "wire.request",
    "wire.server_errors",
    "wire.sse",
    "wire.stream_filters",
    "memory.rows",
    "memory.tree",
    "prompts.message_texts",
    "prompts.next_turn",
    "prompts.pieces",
    "prompts.placeholders",
    "session.kv.slot_lock",
    "session.requests.scheduler",
    "session.server.restart_policy",
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package, by its name without the package's."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, *, typing_too: bool = True) -> Iterator[str]:
    """The full name of every module that is imported, wherever it stands; perhaps without what only types need."""
    for node in ast.walk(tree) if typing_too else walk_run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package = PACKAGE.parent / str(node.module).replace(".", "/")
            modules = {alias.name for alias in node.names if (package / f"{alias.name}.py").exists()}
            yield from (f"{node.module}.{name}" for name in modules)
            if len(modules) < len(node.names):
                yield node.module or ""


def walk_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return
    yield tree
    for node in ast.iter_child_nodes(tree):
        yield from walk_run(node)


def room(name: str) -> str:
    """The first part of a module's name: the file or folder at the top."""
    return name.partition(".")[0]


def test_every_room_stands_on_a_floor() -> None:
    """DESIGN 2: a new file or folder has to be put somewhere on purpose."""
    assert set(FLOORS) == {room(name) for name, _ in modules()}


def test_imports_go_down() -> None:
    """DESIGN 2: a room imports rooms of lower floors only; rooms of one floor know nothing of each other."""
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules()
        for imported in imports(tree)
        if imported.startswith("llmsession.")
        and room(name) != (there := room(imported.removeprefix("llmsession.")))
        and FLOORS[room(name)] <= FLOORS[there]
    ]
    assert wrong == []


def test_no_imports_go_round() -> None:
    """DESIGN 2: inside a room there are no circles; an annotation may name what imports its module."""
    graph = {f"llmsession.{name}": {*imports(tree, typing_too=False)} for name, tree in modules() if name != "__init__"}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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
        if f"{name}.".startswith(tuple(f"{room}." for room in NO_IO))
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
