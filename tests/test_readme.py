"""README's code runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
EXPECTED = [
    r"ok chief\n",
    r"Rosalind\.\nend: \d+ tokens, \d+ a second\n",
    (
        r"Rosalind\. \d+ of \d+ tokens were cached\n"
        r"\d+ / 2048 tokens\n\d+ % of context\n5 messages\nevent-1 complete\n"
    ),
    r"hf:Qwen/\S+ is not in the cache, and this is offline .*: fetch it once online\n",
    r"llama-server river\n",
    r"options\.yaml, line 3: 'context_lenght' is no option: did you mean 'context_length'\?\n",
    r"\d{4,} tokens do not fit into 512\nthe session is closed: open another\n",
]


@pytest.mark.parametrize(("block", "expected"), list(zip(BLOCKS, EXPECTED, strict=True)), ids=range(len(BLOCKS)))
def test_each_block_of_code_prints_what_a_reader_expects(
    block: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STYLE 6: README's code blocks are run by a test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
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


def test_both_commands_of_the_readme_exist() -> None:
    """STYLE 6: README's two commands are the first two scripts."""
    root = Path(__file__).parents[1]
    named = re.findall(r"^\./(scripts/\S+)", README, re.MULTILINE)
    assert ["scripts/quickstart", "scripts/test"] == named
    assert all((root / name).stat().st_mode & 0o111 for name in named)
