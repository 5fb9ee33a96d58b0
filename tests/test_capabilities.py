"""Each capability has tests, and each test of the real thing serves a capability."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.capabilities import CAPABILITIES

TESTS = Path(__file__).parent
# Suites that run the real engine, a real process or a real file: what they show is what a user can see.
OF_THE_REAL_THING = ("contract", "integration", "process")


def find_tests(folder: Path) -> dict[str, set[str]]:
    """The names of the tests in each file."""
    found = {}
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        found[str(path.relative_to(TESTS))] = {name for name in names if name.startswith("test_")}
    return found


def test_every_named_test_exists() -> None:
    """STYLE 5: a row that points nowhere proves nothing."""
    there = find_tests(TESTS)
    missing = [
        f"{row}: {test}"
        for row, capability in CAPABILITIES.items()
        for test in capability.tests
        if (parts := test.partition("::"))[0] not in there or (parts[2] and parts[2] not in there[parts[0]])
    ]
    assert [] == missing


def test_every_row_has_tests() -> None:
    """STYLE 5: a capability without a test is a claim."""
    assert [] == [row for row, capability in CAPABILITIES.items() if not capability.tests]


def test_every_test_of_the_real_thing_serves_a_row() -> None:
    """STYLE 5: both directions."""
    named = {test for capability in CAPABILITIES.values() for test in capability.tests}
    idle = [
        f"{path}::{name}"
        for folder in OF_THE_REAL_THING
        for path, names in find_tests(TESTS / folder).items()
        for name in names
        if path not in named and f"{path}::{name}" not in named
    ]
    assert [] == idle
