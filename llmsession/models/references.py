"""References to Hugging Face: a file, `hf:author/repo/revision/file`, and a repository, `hf:author/repo`.

Each is a `str` that was checked when it was built: nothing in it can leave a folder or change a URL's meaning.
https://huggingface.co/docs/hub/repositories
"""

from __future__ import annotations

import re
from typing import Self

from llmsession.types.errors import InvalidRefError

SCHEME = "hf:"
SITE = "https://huggingface.co"
# The default branch, whatever it is called.
HEAD = "HEAD"

# As the hub checks them: letters, digits, dots, dashes and underscores, not at either end, and neither `--` nor `..`.
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")
# What no file name may hold: some systems, or a URL, would read more into them.
_FORBIDDEN = frozenset('<>:"|?*\\%#')
LONGEST_FILE = 500
LONGEST_SHOWN = 120
# The one that is meant where none is named.
USUAL_QUANTIZATION = "Q4_K_M"
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)


class _Ref(str):
    """The base of both: an author and a repository."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check and return the reference."""
        ref = super().__new__(cls, text)
        ref.validate()
        return ref

    def validate(self) -> None:
        """Check the form; the constructor did so already. Raises InvalidRefError."""
        raise NotImplementedError

    @property
    def author(self) -> str:
        """The user or organization."""
        return self._parts[0]

    @property
    def repo(self) -> str:
        """The repository's name without its author."""
        return self._parts[1]

    @property
    def repo_id(self) -> str:
        """`author/repo`."""
        return f"{self.author}/{self.repo}"

    @property
    def repo_url(self) -> str:
        """The repository's web page."""
        return f"{SITE}/{self.repo_id}"

    @property
    def _parts(self) -> list[str]:
        return self.removeprefix(SCHEME).split("/", 3)


class PackedRepoRef(_Ref):
    """A repository: `hf:author/repo`. Raises InvalidRefError."""

    __slots__ = ()

    @classmethod
    def make(cls, author: str, repo: str) -> Self:
        """Make a reference from its parts. Raises InvalidRefError."""
        return cls(f"{SCHEME}{author}/{repo}")

    def validate(self) -> None:
        """Check the form; the constructor did so already. Raises InvalidRefError."""
        parts = _split(self, "it has the form hf:author/repo")
        if len(parts) != 2:
            raise _invalid(self, "it has the form hf:author/repo")
        _check_repo(self, *parts)


class PackedFileRef(_Ref):
    """A file of a repository: `hf:author/repo/revision/file`. Raises InvalidRefError.

    `revision` is a branch, a tag, a commit, or HEAD for the default branch. The file may lie in folders.
    """

    __slots__ = ()

    @classmethod
    def make(cls, author: str, repo: str, revision: str, file: str) -> Self:
        """Make a reference from its parts. Raises InvalidRefError."""
        for part in (author, repo, revision):
            if "/" in part:
                raise _invalid(f"{SCHEME}{author}/{repo}/{revision}/{file}", f"{part!r} holds a slash")
        return cls(f"{SCHEME}{author}/{repo}/{revision}/{file}")

    def validate(self) -> None:
        """Check the form; the constructor did so already. Raises InvalidRefError."""
        form = "it has the form hf:author/repo/revision/file, where HEAD is the default revision"
        parts = _split(self, form)
        if len(parts) < 4:
            raise _invalid(self, form)
        author, repo, revision, *file = parts
        _check_repo(self, author, repo)
        if not _REVISION.fullmatch(revision):
            raise _invalid(self, f"{_shown(revision)} is not a revision: a branch, a tag, a commit, or HEAD")
        _check_file(self, file)

    @property
    def revision(self) -> str:
        """A branch, a tag, a commit, or HEAD."""
        return self._parts[2]

    @property
    def basename(self) -> str:
        """The file, with its folders."""
        return self._parts[3]

    @property
    def repo_ref(self) -> PackedRepoRef:
        """The file's repository."""
        return PackedRepoRef.make(self.author, self.repo)


def understand(text: str) -> str:
    """Return the reference that an address of the hub, `author/repo` or `author/repo:QUANTIZATION` stands for.

    Any other text is returned as it is.
    """
    text = text.strip()
    if found := _ADDRESS.match(text):
        return _of_address(text[found.end() :].partition("?")[0].partition("#")[0].strip("/")) or text
    if text.startswith(SCHEME):
        rest = text.removeprefix(SCHEME)
        return _of_repo(rest) or text if ":" in rest else text
    return _of_repo(text) or text


def _of_address(path: str) -> str | None:
    """Parse the path of a hub URL: a page, a file to view, or a download."""
    author, _, rest = path.partition("/")
    repo, _, rest = rest.partition("/")
    view, _, rest = rest.partition("/")
    revision, _, file = rest.partition("/")
    if view in ("blob", "resolve", "raw") and file:
        return f"{SCHEME}{author}/{repo}/{HEAD if revision == 'main' else revision}/{file}"
    return _of_repo(f"{author}/{repo}")


def _of_repo(text: str) -> str | None:
    """Parse a repository with an optional quantization, as other programs write it. None if it is something else."""
    named, colon, quantization = text.partition(":")
    author, slash, repo = named.partition("/")
    if not slash or not _NAME.fullmatch(author) or not _NAME.fullmatch(repo) or repo.lower().endswith(".gguf"):
        return None
    if colon:
        return f"{SCHEME}{named}/{HEAD}/{quantization}" if quantization else None
    # A repository of GGUF files has its kind in its name; any other has the original weights.
    return f"{SCHEME}{named}/{HEAD}/{USUAL_QUANTIZATION}" if "gguf" in repo.lower() else f"{SCHEME}{named}"


def _split(text: str, form: str) -> list[str]:
    if not text.startswith(SCHEME):
        raise _invalid(text, f"it does not begin with {SCHEME!r}; {form}")
    return text.removeprefix(SCHEME).split("/")


def _check_repo(text: str, author: str, repo: str) -> None:
    for what, name in (("author", author), ("repository", repo)):
        if not _NAME.fullmatch(name):
            raise _invalid(text, f"{_shown(name)} is not a name of {'an' if what[0] == 'a' else 'a'} {what}")


def _check_file(text: str, segments: list[str]) -> None:
    if len("/".join(segments)) > LONGEST_FILE:
        raise _invalid(text, f"the file's name is longer than {LONGEST_FILE} characters")
    for segment in segments:
        if segment in ("", ".", "..") or segment != segment.strip() or segment.endswith("."):
            raise _invalid(text, f"{_shown(segment)} is not part of a file's name")
        if not segment.isprintable() or not _FORBIDDEN.isdisjoint(segment):
            raise _invalid(text, f"{_shown(segment)} holds a character that no file's name may have")


def _shown(text: str) -> str:
    shown = ascii(text[:LONGEST_SHOWN])
    return shown if len(text) <= LONGEST_SHOWN else f"{shown}…"


def _invalid(text: str, why: str) -> InvalidRefError:
    return InvalidRefError(f"{_shown(text)} is not a reference: {why}")
