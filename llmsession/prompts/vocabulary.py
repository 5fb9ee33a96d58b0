"""Vocabulary: the spellings that a tokenizer would read as special tokens, and the tokens of single bytes.

They come from the model's file; for a server whose file is elsewhere, its tokenizer is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmsession.models.gguf import TokenTable, read_token_table
from llmsession.models.safetensors import read_added_tokens
from llmsession.system.latch import Latch
from llmsession.system.service_thread import start_thread
from llmsession.wire import completion_api
from llmsession.wire.http import HttpClient

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

# What special tokens look like, for a server that cannot be asked for all of them.
_LOOKS_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Za-z_]{2,40}\]|>>[A-Z]{3,20}<<")
# Those that are no HTML and no Markdown, for a server that cannot be asked at all.
_SURELY_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]{1,60}[|｜]>|</?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]"
)


# So many spellings are asked for one by one, at most, where a server cannot answer for all; and kept in mind.
MOST_ASKED = 64
MOST_KNOWN = 4096


class Vocabulary:
    """The special tokens of one model. `special`: the ids whose spelling must not come from a text, with that spelling.

    `shown`: the spellings that appear in a reply when the model generates the token; the others never do.
    """

    def __init__(
        self, special: dict[int, str], byte_tokens: list[int] | None, shown: frozenset[str] = frozenset()
    ) -> None:
        self.special = special
        self.shown = shown
        self.byte_tokens = byte_tokens
        spellings = set(special.values())
        self._pattern = _compile(spellings)
        self._starts = {spelling[:length] for spelling in spellings for length in range(1, len(spelling))}
        self._ends = {spelling[length:] for spelling in spellings for length in range(1, len(spelling))}
        self._longest = max(map(len, spellings), default=0)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return where special tokens are spelled, even overlapping ones: the longest at each place, in order."""
        if self._pattern is None:
            return []
        return [(found.start(), found.end(1)) for found in self._pattern.finditer(text)]

    def may_spell(self, text: str) -> bool:
        """Whether a special token is spelled in the text, or may be together with the text around it."""
        return bool(self.find(text) or self.find_edges(text))

    def find_edges(self, text: str) -> list[tuple[int, int]]:
        """Return the start and the end of a text that could form a spelling with the text around it."""
        lengths = range(min(self._longest - 1, len(text)), 0, -1)
        first = next((length for length in lengths if text[:length] in self._ends), 0)
        last = next((length for length in lengths if text[-length:] in self._starts), 0)
        return [(0, first)] * bool(first) + [(len(text) - last, len(text))] * bool(last)


def read_vocabulary_of(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF file, or of a folder of safetensors. Raises InvalidModelError.

    A folder of safetensors names only the added tokens.
    """
    if path.is_dir():
        added = read_added_tokens(path)
        return Vocabulary({id_: spelling for id_, spelling in added.items() if _is_marker(spelling)}, None)
    table = read_token_table(path)
    special = {
        id_: spelling
        for id_, (spelling, kind) in enumerate(zip(table.spellings, table.types, strict=True))
        if spelling and (kind in (_UNKNOWN, _CONTROL) or (kind == _USER_DEFINED and _is_marker(spelling)))
    }
    shown = frozenset(spelling for id_, spelling in special.items() if table.types[id_] == _USER_DEFINED)
    return Vocabulary(special, _find_byte_tokens(table), shown)


def _is_marker(spelling: str) -> bool:
    """Whether a user-defined token is a marker: runs of spaces, and letters, are ordinary text."""
    return len(spelling) > 1 and not spelling.isspace() and not spelling.isalnum()


def _find_byte_tokens(table: TokenTable) -> list[int] | None:
    ids = {spelling: id_ for id_, spelling in reversed(list(enumerate(table.spellings)))}
    if _BYTE in table.types:
        names: Iterable[str] = (f"<0x{byte:02X}>" for byte in range(256))
    else:
        names = _byte_letters()
    found = [ids.get(name) for name in names]
    return [id_ for id_ in found if id_ is not None] if None not in found else None


def _byte_letters() -> list[str]:
    """Return GPT-2's letters for bytes: printable ones stand for themselves, the others are letters from U+0100 on.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _compile(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Return one expression for all spellings, as a tree of letters: thousands of them cost no more than a few."""
    tree: dict[str, dict] = {}  # type: ignore[type-arg]
    for spelling in spellings:
        node = tree
        for letter in spelling:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(f"(?=({_write(tree)}))", re.DOTALL) if tree else None


def _write(node: dict[str, dict]) -> str:  # type: ignore[type-arg]
    """Return the expression of a node.

    Longer spellings are tried before their prefixes. A chain of letters is no group.
    """
    prefix = ""
    while len(node) == 1 and "" not in node:
        letter, node = next(iter(node.items()))
        prefix += re.escape(letter)
    branches = [re.escape(letter) + _write(rest) for letter, rest in node.items() if letter]
    if not branches:
        return prefix
    group = f"(?:{'|'.join(branches)})"
    return f"{prefix}{group}?" if "" in node else prefix + group


class RemoteVocabulary:
    """The vocabulary of a server whose file is elsewhere: its tokenizer is asked what looks special in a text.

    `exact`: the tokenizer reports the bytes of each token, so that one request is enough for all; otherwise each
    candidate is a request.
    """

    def __init__(self, client: HttpClient, *, exact: bool) -> None:
        self._client = client
        self._exact = exact
        self._special: dict[str, int] = {}
        self._ordinary: dict[str, None] = {}  # the last ones that were asked for

    async def learn(self, texts: Iterable[str]) -> Vocabulary:
        """Look through these texts, and return what is known then."""
        looked = {candidate: None for text in texts for candidate in find_candidates(text)}
        fresh = [text for text in looked if text not in self._special and text not in self._ordinary]
        if len(fresh) > 1 and self._exact:
            await self._ask_at_once(fresh)
        else:
            for candidate in fresh[:MOST_ASKED]:
                self._note(candidate, await self._ask(candidate))
            for candidate in fresh[MOST_ASKED:]:  # nobody knows: it is kept from being one
                self._special.setdefault(candidate, -1)
        special = {id_: text for text, id_ in self._special.items() if id_ >= 0}
        unknown = {-number: text for number, (text, id_) in enumerate(self._special.items(), 1) if id_ < 0}
        while len(self._ordinary) > MOST_KNOWN:
            del self._ordinary[next(iter(self._ordinary))]
        if len(self._special) > MOST_KNOWN:
            self._special = {text: id_ for text, id_ in self._special.items() if id_ >= 0}
        return Vocabulary(special | unknown, None)

    async def _ask_at_once(self, candidates: list[str]) -> None:
        # A line each: a spelling that is a token is one token wherever it stands.
        body = completion_api.encode_tokenize_pieces("\n".join(candidates))
        tokens = completion_api.decode_pieces(await self._client.post("/tokenize", body))
        found = {piece.decode(errors="replace"): id_ for id_, piece in tokens}
        for candidate in candidates:
            self._note(candidate, found.get(candidate))

    async def _ask(self, candidate: str) -> int | None:
        body = completion_api.encode_tokenize(candidate, add_special=False, parse_special=True)
        ids = completion_api.decode_tokens(await self._client.post("/tokenize", body))
        return ids[0] if len(ids) == 1 else None

    def _note(self, candidate: str, id_: int | None) -> None:
        if id_ is not None:
            self._special[candidate] = id_
        else:
            self._ordinary[candidate] = None


def find_candidates(text: str) -> Iterator[str]:
    """Yield everything that looks like a special token, even if one is inside another."""
    at = 0
    while (found := _LOOKS_SPECIAL.search(text, at)) is not None:
        yield found[0]
        at = found.start() + 1


def look_special(text: str) -> list[tuple[int, int]]:
    """Return where something looks like a special token, for a server that cannot be asked. HTML does not count."""
    return [found.span() for found in _SURELY_SPECIAL.finditer(text)]


class VocabularyLoader:
    """Reads a vocabulary while the engine loads: a large one takes half a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = Latch()
        self._found: Vocabulary | Exception | None = None
        start_thread(self._work, "llmsession-vocabulary")

    def _work(self) -> None:

        try:
            self._found = read_vocabulary_of(self._path)
        except Exception as error:  # noqa: BLE001 - the thread's end: whoever waits gets it
            self._found = error
        self._read.set()

    async def wait(self) -> Vocabulary:
        """Return the vocabulary once it is read. Raises InvalidModelError if the file has changed meanwhile."""
        await self._read.wait()
        if isinstance(self._found, Exception):
            raise self._found
        assert self._found is not None  # noqa: S101 - the thread has set it
        return self._found
