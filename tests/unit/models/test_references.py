"""References to files and repositories: what they hold, and what never gets in."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsession import InvalidRefError, PackedFileRef, PackedRepoRef

FILE = "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/HEAD/qwen2.5-0.5b-instruct-q5_k_m.gguf"


def test_a_file_reference_has_its_parts() -> None:
    """CAPABILITIES A1: make, and the parts."""
    ref = PackedFileRef(FILE)
    assert ("Qwen", "Qwen2.5-0.5B-Instruct-GGUF", "HEAD") == (ref.author, ref.repo, ref.revision)
    assert "qwen2.5-0.5b-instruct-q5_k_m.gguf" == ref.basename
    assert "Qwen/Qwen2.5-0.5B-Instruct-GGUF" == ref.repo_id
    assert "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF" == ref.repo_url
    assert PackedRepoRef("hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF") == ref.repo_ref
    assert ref == PackedFileRef.make(ref.author, ref.repo, ref.revision, ref.basename) == FILE
    assert pickle.loads(pickle.dumps(ref)) == ref
    ref.validate()


def test_a_repository_reference_has_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """CAPABILITIES A2: the same; the URL for people is always the site's, whatever HF_ENDPOINT."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    ref = PackedRepoRef.make("THB", "r")
    assert ("hf:THB/r", "THB", "r", "THB/r") == (ref, ref.author, ref.repo, ref.repo_id)
    assert "https://huggingface.co/THB/r" == ref.repo_url
    ref.validate()


GOOD_FILES = [
    "hf:abc/r/HEAD/f",
    "hf:a/r/main/folder/deeper/model-00001-of-00003.gguf",
    "hf:a_b/r.2/9217f5db79a29953eb74d5343926648285ec7e67/f.gguf",
    "hf:a/r/v1.0+build/ünïcode modèl.gguf",
]
BAD_FILES = [
    "", "hf:", "hf:a", "hf:a/r", "hf:a/r/HEAD", "hf:a/r/HEAD/", "hf:/foo/repo/HEAD/file", "hf:a//HEAD/f",
    "hf:a/r//f", "hf:a/r/HEAD/../f", "hf:a/r/HEAD/f/..", "hf:a/r/HEAD/./f", "hf:a/r/HEAD//etc/passwd",
    "hf:a/r/HEAD/f/", "hf:a/r/HEAD/..\\f", "hf:a/r/HEAD/%2e%2e/f", "hf:a/r/HEAD/c:f", "hf:a/r/HEAD/f\x00",
    "hf:a/r/HEAD/f\n", "hf:a/r/HEAD/ f", "hf:a/r/HEAD/f.", "hf:a/r/HEAD/f?x=1", "hf:a/r/HEAD/f#x",
    "hf:a/r/../f", "hf:a/r/a..b/f", "hf:a/r/-x/f", "hf:a/r/ma in/f", "hf:../r/HEAD/f", "hf:a/../HEAD/f",
    "hf:a--b/r/HEAD/f", "hf:a/r-/HEAD/f", "hf:.a/r/HEAD/f", "hf:a b/r/HEAD/f", "hf:ä/r/HEAD/f",
    "hf:" + "a" * 97 + "/r/HEAD/f", "hf:a/r/HEAD/" + "f" * 501, "hf:a/r/HEAD/" + "x" * 10_000, "HF:a/r/HEAD/f",
    "a/r/HEAD/f", "https://huggingface.co/a/r", " hf:a/r/HEAD/f", "hf:a/r/HEAD/\u202egguf",
    "hf:a/r/HEAD/\u2028",
]  # fmt: skip
BAD_REPOS = [
    "",
    "hf:",
    "hf:a",
    "hf:a/",
    "hf:/r",
    "hf:a/r/x",
    "a/r",
    "hf:a/..",
    "hf:a/r?",
    "hf:a/r\n",
    "hf:a/r%20",
    "hf:a/é",
]


@pytest.mark.parametrize("text", GOOD_FILES)
def test_what_the_hub_allows_is_taken(text: str) -> None:
    """CAPABILITIES A1: three-letter authors are fine; HEAD, branch or commit; a basename with folders."""
    ref = PackedFileRef(text)
    assert text == ref == PackedFileRef.make(ref.author, ref.repo, ref.revision, ref.basename)


@pytest.mark.parametrize("text", BAD_FILES, ids=range(len(BAD_FILES)))
def test_what_is_no_file_is_refused(text: str) -> None:
    """CAPABILITIES A1: an empty part, `..`, absolute paths, control characters, percent-encoding, 10 kB."""
    with pytest.raises(InvalidRefError) as caught:
        PackedFileRef(text)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", BAD_REPOS, ids=range(len(BAD_REPOS)))
def test_what_is_no_repository_is_refused(text: str) -> None:
    """CAPABILITIES A2."""
    with pytest.raises(InvalidRefError):
        PackedRepoRef(text)


@given(
    st.lists(
        st.text(max_size=20) | st.sampled_from(["..", ".", "", "HEAD", "/", "\\", "%2f", "C:"]), min_size=4, max_size=7
    )
)
def test_whatever_is_taken_stays_in_its_folder(parts: list[str]) -> None:
    """Hostile text never reaches a path or URL."""
    text = "hf:" + "/".join(parts)
    try:
        ref = PackedFileRef(text)
    except InvalidRefError:
        return
    segments = ref.basename.split("/")
    assert not {"", ".", ".."} & {*segments, ref.author, ref.repo, ref.revision}
    assert not set('\\:%?#*"<>|') & set(ref.basename)
    assert ref.basename.isprintable()


def test_a_part_may_not_smuggle_a_slash() -> None:
    """CAPABILITIES A1: make takes parts."""
    with pytest.raises(InvalidRefError, match="slash"):
        PackedFileRef.make("a/b", "r", "HEAD", "f")
