"""PromptWriter: writes prompts for one server, in which no text is ever a special token.

A text that spells no special token is sent as text. Otherwise the whole prompt is tokenized at once, with a placeholder
for the spelling, and the placeholder's tokens are replaced with those of the spelling's letters.
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
    """The prompt to send. `neutralized`: how many spellings in texts were kept from being special tokens.

    `space`: the character that was put inside each of them, if there was no other way.
    """

    prompt: str | list[int]
    neutralized: int = 0
    space: str | None = None


class PromptWriter:
    """Writes prompts for one server. `exact`: its tokenizer reports the bytes of each token; old ones do not."""

    def __init__(self, client: HttpClient, vocabulary: Vocabulary | RemoteVocabulary, *, exact: bool = True) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._exact = exact
        self._spelt: dict[str, list[int]] = {}
        self._adds: dict[str, bool] = {}

    async def write(self, pieces: Sequence[Piece]) -> Prompt:
        """Return the prompt for the pieces of an encoding."""
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
        """Whether a thought starts with a token of the model, and not with letters that could be an answer."""
        return THINK in (await self.learn([])).special.values()

    async def tokenize_prefix(self, text: str, start: str = "") -> list[Piece] | None:
        """Return the pieces of a started reply, as tokens of the model; None if the model might have quoted them.

        `start` is the given beginning of the reply, which is text.
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
        """Return the prompt for the pieces of a template, unchanged if no text spells a special token."""
        vocabulary = await self.learn([])
        pieces = await self._without_second_bos(pieces, vocabulary)
        size = sum(len(piece.text) for piece in pieces)
        defused = await _apart(size, escape_pieces, pieces, vocabulary.find)
        if not defused.meant:
            return Prompt(prompt=defused.text)
        return Prompt(prompt=await self._tokenize(defused, vocabulary), neutralized=defused.count)

    async def go_on(self, prompt: list[int], text: str) -> Prompt:
        """Return a prompt of token ids, followed by a text in which nothing is special."""
        vocabulary = await self.learn([text])
        ids, at, count = list(prompt), 0, 0
        for start, end in merge_spans(vocabulary.find(text)):
            ids += [*await self._go_on(text[at:start], vocabulary), *await self._spell(text[start:end], vocabulary)]
            at, count = end, count + 1
        return Prompt(prompt=[*ids, *await self._go_on(text[at:], vocabulary)], neutralized=count)

    async def read_tokens(self, prompt: str | list[int]) -> list[tuple[int, bytes]]:
        """Return the ids and the bytes of a prompt's tokens, as the engine reads it."""
        body = completion_api.encode_tokenize_pieces(prompt)
        return completion_api.decode_pieces(await self._client.post("/tokenize", body))

    async def learn(self, texts: Iterable[str]) -> Vocabulary:
        """Return the vocabulary, as far as it matters for these texts."""
        if isinstance(self._vocabulary, RemoteVocabulary):
            return await self._vocabulary.learn(texts)
        return self._vocabulary

    async def _without_second_bos(self, pieces: Sequence[Piece], vocabulary: Vocabulary) -> Sequence[Piece]:
        """Remove the spelling of the first token if the server adds that token itself."""
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
        """Return the tokens of the prompt, with the tokens of its letters in place of each spelling."""
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
        """Tokenize the parts between the placeholders separately."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(defused.meant)}])", defused.text)):
            if part in spelt:
                ids += spelt[part]
            elif part or not number:
                ids += await self._ask(part, add_special=not number, parse_special=True)
        return ids

    async def _spell(self, part: str, vocabulary: Vocabulary) -> list[int]:
        """Return the tokens of a spelling's letters."""
        if part not in self._spelt:
            self._spelt[part] = await self._go_on(part, vocabulary)
        return self._spelt[part]

    async def _go_on(self, text: str, vocabulary: Vocabulary) -> list[int]:
        """Return the tokens of a text as in the middle of another text, without special tokens."""
        if not text:
            return []
        apart = await self._ask(_APART, add_special=False, parse_special=False)
        both = await self._ask(_APART + text, add_special=False, parse_special=False)
        ids = both[len(apart) :] if both[: len(apart)] == apart else []
        if not ids or any(id_ in vocabulary.special for id_ in ids):
            ids = await self._bytes(text.encode(), vocabulary)
        return ids

    async def _bytes(self, data: bytes, vocabulary: Vocabulary) -> list[int]:
        """Return a token for each byte; if the vocabulary lacks those, the tokens of each character."""
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
    """Whether the model may have generated a special token there, rather than quoted it."""
    return any(text[start:end] in vocabulary.shown for start, end in vocabulary.find(text))


async def _apart(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call the function; for a long text in a thread, so that the event loop stays responsive."""
    return function(*arguments) if size < LONG_TEXT else await run_in_thread(function, *arguments)


def _replace_marks(tokens: Sequence[tuple[int, bytes]], defused: Escaped) -> list[int | str | bytes] | None:
    """Return the tokens in order, with a mark for each placeholder, and bytes for the rest of its token.

    None if not all placeholders are found.
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
    """Return where the placeholders are in the bytes of the tokens."""
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
