"""PromptWriter: prompts in which no text is ever a special token, for one server.

A text without the spelling of one is sent as text, as always. With one, the whole prompt is tokenized at once, with a
stand-in where the spelling is, and the stand-in's tokens are then replaced by those of the spelling's letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from llmsession.models.encoding import Piece
from llmsession.prompts.message_texts import choose_space
from llmsession.prompts.placeholders import Escaped, escape_pieces, merge_spans
from llmsession.prompts.vocabulary import RemoteVocabulary, Vocabulary
from llmsession.system.service_thread import run_in_thread
from llmsession.types.messages import Control, Text
from llmsession.wire import completion_api
from llmsession.wire.http import HttpClient
from llmsession.wire.resume import Delivered
from llmsession.wire.stream_filters import THINK, THINK_END

# A character that no tokenizer joins with a letter: what follows it is tokenized as in the middle of a text.
_APART = "\ue000"
# Letters from which on a prompt is looked through in a thread: below, that takes a few milliseconds.
LONG_TEXT = 30_000

T = TypeVar("T")


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `neutralized`: how many spellings in texts were kept from being special tokens.

    `space`: the character that was put inside of each for that, where there was no other way.
    """

    prompt: str | list[int]
    neutralized: int = 0
    space: str | None = None


class PromptWriter:
    """For one server, whose tokenizer it asks. `exact`: that tells the bytes of each token; old ones do not."""

    def __init__(self, client: HttpClient, vocabulary: Vocabulary | RemoteVocabulary, *, exact: bool = True) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._exact = exact
        self._spelt: dict[str, list[int]] = {}
        self._adds: dict[str, bool] = {}

    async def write(self, pieces: Sequence[Piece]) -> Prompt:
        """Of an encoding's pieces."""
        vocabulary = await self.learn(["".join(piece.text for piece in pieces)])
        pieces = await self._without_second_bos(pieces, vocabulary)
        text = "".join(piece.text for piece in pieces)
        if not await _apart(len(text), _may_spell, pieces, vocabulary):
            return Prompt(prompt=text)
        defused = await _apart(len(text), escape_pieces, pieces, vocabulary.find)
        if not defused.meant:
            return Prompt(prompt=defused.text)
        if not self._exact:
            space = choose_space([defused.text, *defused.meant.values()])
            return Prompt(prompt=_write_spaced(defused, space), neutralized=defused.count, space=space)
        return Prompt(prompt=await self._tokenize(defused, vocabulary), neutralized=defused.count)

    async def thinks_by_token(self) -> bool:
        """Whether a thought begins with a token of the model, and not with letters that could be an answer."""
        return THINK in (await self.learn([])).special.values()

    async def tokenize_prefix(self, text: str, start: str = "") -> list[Piece] | None:
        """A reply that has begun, by what the model said as tokens; None if it might have quoted them.

        `start` stands before it: that the model was given, and it is text.
        """
        vocabulary = await self.learn([start, text])
        before, mark, after = text.partition(THINK)
        pieces: list[Piece] = [Text(text)]
        if mark and not before.strip() and not start:
            thought, end, answer = after.partition(THINK_END)
            pieces = [Text(before), Control(THINK), Text(thought), Control(end), Text(answer)]
        if any(says_token(piece.text, vocabulary) for piece in pieces if isinstance(piece, Text)):
            return None
        return [piece for piece in [Text(start), *pieces] if piece.text]

    async def write_marked(self, pieces: Sequence[Piece]) -> Prompt:
        """Of a template's pieces, which are sent as they are where no text spells a token."""
        vocabulary = await self.learn([])
        pieces = await self._without_second_bos(pieces, vocabulary)
        size = sum(len(piece.text) for piece in pieces)
        defused = await _apart(size, escape_pieces, pieces, vocabulary.find)
        if not defused.meant:
            return Prompt(prompt=defused.text)
        return Prompt(prompt=await self._tokenize(defused, vocabulary), neutralized=defused.count)

    async def go_on(self, prompt: list[int], text: str) -> Prompt:
        """Token ids, and a text behind them of which nothing is special."""
        vocabulary = await self.learn([text])
        ids, at, count = list(prompt), 0, 0
        for start, end in merge_spans(vocabulary.find(text)):
            ids += [*await self._go_on(text[at:start], vocabulary), *await self._spell(text[start:end], vocabulary)]
            at, count = end, count + 1
        return Prompt(prompt=[*ids, *await self._go_on(text[at:], vocabulary)], neutralized=count)

    async def read_tokens(self, prompt: str | list[int]) -> list[tuple[int, bytes]]:
        """What the engine makes of a prompt: the ids, and the bytes of each."""
        body = completion_api.encode_tokenize_pieces(prompt)
        return completion_api.decode_pieces(await self._client.post("/tokenize", body))

    async def learn(self, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary, as far as it matters to these texts."""
        if isinstance(self._vocabulary, RemoteVocabulary):
            return await self._vocabulary.learn(texts)
        return self._vocabulary

    async def _without_second_bos(self, pieces: Sequence[Piece], vocabulary: Vocabulary) -> Sequence[Piece]:
        """Without the first token's spelling where the server puts that token in front by itself."""
        text = "".join(piece.text for piece in pieces)
        starts = [end for start, end in vocabulary.find(text[:200]) if start == 0]
        if not starts or isinstance(pieces[0], Text):
            return pieces
        first = text[: starts[0]]
        if first not in self._adds:
            ids = await self._ask(first, add_special=True, parse_special=True)
            self._adds[first] = len(ids) > 1 and ids[0] == ids[1]
        if not self._adds[first]:
            return pieces
        left, kept = len(first), list[Piece]()
        for piece in pieces:
            cut = min(left, len(piece.text))
            left -= cut
            kept.append(type(piece)(piece.text[cut:]))
        return kept

    async def _tokenize(self, defused: Escaped, vocabulary: Vocabulary) -> list[int]:
        """The tokens of the prompt, with those of each spelling's letters in its place."""
        tokens = await self.read_tokens(defused.text)
        spelt = {mark: await self._spell(part, vocabulary) for mark, part in defused.meant.items()}
        parts = await _apart(len(defused.text), _replace_marks, tokens, defused)
        if parts is None:  # this tokenizer changes characters that it does not know
            return await self._tokenize_parts(defused, spelt)
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif isinstance(part, str):
                ids += spelt[part]
            else:
                ids += await self._bytes(part, vocabulary)
        return ids

    async def _tokenize_parts(self, defused: Escaped, spelt: dict[str, list[int]]) -> list[int]:
        """The parts between the stand-ins each by itself."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(defused.meant)}])", defused.text)):
            if part in spelt:
                ids += spelt[part]
            elif part or not number:
                ids += await self._ask(part, add_special=not number, parse_special=True)
        return ids

    async def _spell(self, part: str, vocabulary: Vocabulary) -> list[int]:
        """The tokens of a spelling's letters."""
        if part not in self._spelt:
            self._spelt[part] = await self._go_on(part, vocabulary)
        return self._spelt[part]

    async def _go_on(self, text: str, vocabulary: Vocabulary) -> list[int]:
        """The tokens of a text, as in the middle of another, none of them special."""
        if not text:
            return []
        apart = await self._ask(_APART, add_special=False, parse_special=False)
        both = await self._ask(_APART + text, add_special=False, parse_special=False)
        ids = both[len(apart) :] if both[: len(apart)] == apart else []
        if not ids or any(id_ in vocabulary.special for id_ in ids):
            ids = await self._bytes(text.encode(), vocabulary)
        return ids

    async def _bytes(self, data: bytes, vocabulary: Vocabulary) -> list[int]:
        """A token each; where the vocabulary has none, the tokens of each character, as in the middle of a text."""
        if vocabulary.byte_tokens is not None:
            return [vocabulary.byte_tokens[byte] for byte in data]
        apart = await self._ask(_APART, add_special=False, parse_special=False)
        ids: list[int] = []
        for letter in data.decode(errors="replace"):
            both = await self._ask(_APART + letter, add_special=False, parse_special=False)
            joined = both[: len(apart)] != apart
            ids += await self._ask(letter, add_special=False, parse_special=False) if joined else both[len(apart) :]
        return ids

    async def _ask(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = completion_api.encode_tokenize(text, add_special=add_special, parse_special=parse_special)
        return completion_api.decode_tokens(await self._client.post("/tokenize", body))


def _may_spell(pieces: Sequence[Piece], vocabulary: Vocabulary) -> bool:
    return any(vocabulary.may_spell(piece.text) for piece in pieces if isinstance(piece, Text))


def says_token(text: str, vocabulary: Vocabulary) -> bool:
    """Whether it may be that the model said a special token there, and did not quote one."""
    return any(text[start:end] in vocabulary.shown for start, end in vocabulary.find(text))


async def _apart(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call it; for a long text in a thread, so that others have their turn meanwhile."""
    return function(*arguments) if size < LONG_TEXT else await run_in_thread(function, *arguments)


def _replace_marks(tokens: Sequence[tuple[int, bytes]], defused: Escaped) -> list[int | str | bytes] | None:
    """The tokens in order, with the mark in the place of each stand-in, and bytes for what else its token held.

    None if not all stand-ins are found.
    """
    written = b"".join(piece for _, piece in tokens)
    places = _find_marks(written, defused)
    if len(places) != defused.count:
        return None
    parts: list[int | str | bytes] = []
    at, number = 0, 0  # of the next byte, and of the first stand-in that has not ended before it
    for id_, piece in tokens:
        end = at + len(piece)
        if number == len(places) or places[number][0] >= end:
            parts.append(id_)
        else:  # what the token has besides stand-ins goes byte by byte
            place = at
            while number < len(places) and places[number][0] < end:
                start, stop, mark = places[number]
                if place < start:
                    parts.append(written[place:start])
                if at <= start:  # the token in which the stand-in begins
                    parts.append(mark)
                place = min(stop, end)
                if stop > end:
                    break
                number += 1
            if place < end:
                parts.append(written[place:end])
        at = end
    return parts


def _find_marks(written: bytes, defused: Escaped) -> list[tuple[int, int, str]]:
    """Where the stand-ins are among the bytes of the tokens."""
    if not defused.meant:
        return []
    pattern = re.compile(b"|".join(re.escape(mark.encode()) for mark in defused.meant))
    return [(found.start(), found.end(), found[0].decode()) for found in pattern.finditer(written)]


def write_begun(begun: Delivered, *, in_thought: bool) -> list[Piece]:
    """Return the pieces of a reply that was cut, as the model had written it."""
    pieces: list[Piece] = []
    if begun.reasoning:
        pieces += [] if in_thought else [Control(THINK)]
        pieces += [Text(begun.reasoning)]
    if begun.text:
        pieces += [Control(f"{THINK_END}\n\n")] if begun.reasoning or in_thought else []
    return [*pieces, Text(begun.text)]


def _write_spaced(defused: Escaped, space: str) -> str:
    text = defused.text
    for mark, part in defused.meant.items():
        text = text.replace(mark, f"{part[0]}{space}{part[1:]}" if part[1:] else f"{space}{part}{space}")
    return text
