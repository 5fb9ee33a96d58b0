"""The code of README and docs runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmsession.types import errors

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}
BLOCKS = [
    (name, block) for name, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
REPLY = r"""ok chief\n"""
STREAM = r"""Rosalind\.\nend: \d+ tokens, \d+ a second\n"""
KEPT = (
    r"""Rosalind\. \d+ of \d+ tokens were cached\n\d+ / 2048 tokens\n\d+ % of context\n5 messages\nevent-1 complete\n"""
)
OFFLINE = r"""hf:Qwen/\S+ is not in the cache, and this is offline .*: fetch it once online\n"""
REMOTE = r"""llama-server river\n"""
OPTIONS = r"""options\.yaml, line 3: 'context_lenght' is not an option: did you mean 'context_length'\?\n"""
ERRORS = r"""\d{4,} tokens do not fit into 512\nthe session is closed: open another\n"""
EXPECTED = {
    "README.md": [REPLY, STREAM, KEPT, OFFLINE, REMOTE],
    "docs/models.md": [OFFLINE],
    "docs/servers.md": [REMOTE],
    "docs/conversations.md": [KEPT],
    "docs/command-line.md": [OPTIONS],
    "docs/errors.md": [ERRORS],
}
CASES = [
    pytest.param(block, expected, id=f"{name}-{number}")
    for name, outputs in EXPECTED.items()
    for number, (block, expected) in enumerate(zip([b for page, b in BLOCKS if page == name], outputs, strict=True))
]


def test_no_page_has_code_that_is_not_run() -> None:
    """STYLE 6: each page with Python code is named in EXPECTED."""
    assert set(EXPECTED) == {name for name, _ in BLOCKS}


def test_relative_links_lead_to_files() -> None:
    """STYLE 6: a reader can follow each relative link."""
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / name).parent / target).exists(), (name, target)


@pytest.mark.parametrize(("block", "expected"), CASES)
def test_each_block_of_code_prints_what_a_reader_expects(
    block: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STYLE 6: the code blocks of README and docs are run by a test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("LLMSESSION_THREADS", "1")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert ("", 0) == (done.stderr, done.returncode)
    assert re.fullmatch(expected, done.stdout), done.stdout


def test_the_errors_page_names_each_public_error() -> None:
    """STYLE 6: the table of docs/errors.md is the tree of llmsession.types.errors."""
    named = set(re.findall(r"^\|[ ·]*`(\w+)`", PAGES["docs/errors.md"], re.MULTILINE))
    public = {
        name
        for name in vars(errors)
        if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.LLMSessionError)
    }
    assert public - {"LLMSessionError"} == named


def test_both_commands_of_the_readme_exist() -> None:
    """STYLE 6: README's two commands are the first two scripts."""
    named = re.findall(r"^\./(scripts/\S+)", PAGES["README.md"], re.MULTILINE)
    assert ["scripts/quickstart", "scripts/test"] == named
    assert all((ROOT / name).stat().st_mode & 0o111 for name in named)
