"""PromptWriter: prompts in which no text is ever a special token, for one server.

A text without the spelling of one is sent as text, as always. With one, the whole prompt is tokenized at once, with a
stand-in where the spelling is, and the stand-in's tokens are then replaced by those of the spelling's letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from llmsession.backends.defusing import Defused, Marks, Piece, Span, defuse_pieces, replace_spans
from llmsession.backends.vocabulary import AskedVocabulary, Vocabulary
from llmsession.messages import Control, Message, Text, ToolCall
from llmsession.wire import completion_api, openai_api
from llmsession.wire.http import HttpClient
from llmsession.wire.rewriting import THINK, THINK_END

if TYPE_CHECKING:
    from llmsession.wire.continuing import Delivered

# A character that no tokenizer joins with a letter: what follows it is tokenized as in the middle of a text.
_APART = "\ue000"
# A space of no width, and another for texts that hold the first.
_SPACES = ("\u200b", "\u2060")


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `neutralized`: how many spellings in texts were kept from being special tokens.

    `space`: the character that was put inside of each for that, where there was no other way.
    """

    prompt: str | list[int]
    neutralized: int = 0
    space: str | None = None


class ChatPrompt(Prompt, frozen=True, kw_only=True):
    """`in_thought`: it ends inside of one. `think_token`: a thought begins with a token, and not with letters."""

    in_thought: bool
    think_token: bool


class PromptWriter:
    """For one server, whose tokenizer it asks. `exact`: that tells the bytes of each token; old ones do not."""

    def __init__(self, client: HttpClient, vocabulary: Vocabulary | AskedVocabulary, *, exact: bool = True) -> None:
        self._client = client
        self._vocabulary = vocabulary
        self._exact = exact
        self._spelt: dict[str, list[int]] = {}
        self._adds: dict[str, bool] = {}

    async def write(self, pieces: Sequence[Piece]) -> Prompt:
        """Of an encoding's pieces."""
        vocabulary = await self.learn(["".join(piece.text for piece in pieces)])
        pieces = await self._without_second_bos(pieces, vocabulary)
        defused = defuse_pieces(pieces, vocabulary.find)
        if not defused.meant:
            return Prompt(prompt=defused.text)
        if not self._exact:
            space = choose_space([defused.text, *defused.meant.values()])
            return Prompt(prompt=_write_spaced(defused, space), neutralized=defused.count, space=space)
        return Prompt(prompt=await self._tokenize(defused, vocabulary), neutralized=defused.count)

    async def is_plain(self, messages: Sequence[Message]) -> bool:
        """Whether no text of theirs spells a token, or a part of one at an edge."""
        return not any((await self._find(messages)).values())

    async def can_continue(
        self, messages: Sequence[Message], begun: Delivered, *, model: str, extra: dict[str, Any]
    ) -> bool:
        """Whether the server's template takes a begun reply as it is: some write what no model was trained on."""
        before, after = [
            openai_api.decode_template(
                await self._client.post(
                    openai_api.TEMPLATE_PATH,
                    openai_api.encode_template(messages, model=model, extra=extra, begun=reply),
                )
            )
            for reply in (None, begun)
        ]
        if not begun.reasoning:
            return after == before + begun.text
        return after.startswith(before) and after.endswith(begun.text or begun.reasoning)

    async def read_begun(self, text: str) -> list[Piece] | None:
        """A reply that has begun, by what the model said as tokens; None where it might have quoted them."""
        vocabulary = await self.learn([text])
        before, mark, after = text.partition(THINK)
        pieces: list[Piece] = [Text(text)]
        if mark and not before.strip():
            thought, end, answer = after.partition(THINK_END)
            pieces = [Text(before), Control(THINK), Text(thought), Control(end), Text(answer)]
        if any(says_token(piece.text, vocabulary) for piece in pieces if isinstance(piece, Text)):
            return None
        return [piece for piece in pieces if piece.text]

    async def write_chat(
        self, messages: Sequence[Message], *, model: str, extra: dict[str, Any], begun: Delivered | None = None
    ) -> ChatPrompt | None:
        """Of a chat, by the server's own template; None where no text spells a token: then it is sent as it is.

        With a `begun` reply, None where nobody knows how this model marks its thoughts, or what it quotes.
        """
        spans = await self._find(messages)
        if begun is None and not any(spans.values()):
            return None
        vocabulary = await self.learn([])
        marks = Marks(*spans)
        meant: dict[str, str] = {}

        def replace(text: str) -> str:
            replaced = replace_spans(text, spans.get(text, ()), marks)
            meant.update(replaced.meant)
            return replaced.text

        body = openai_api.encode_template(
            [map_texts(message, replace) for message in messages], model=model, extra=extra
        )
        rendered = openai_api.decode_template(await self._client.post(openai_api.TEMPLATE_PATH, body))
        # Only what the template's own words did not make harmless again stays replaced.
        split = re.split(f"([{''.join(meant)}])", rendered) if meant else [rendered]
        pieces: list[Piece] = [Text(meant[part]) if part in meant else Control(part) for part in split if part]
        in_thought = rendered.rstrip().endswith(THINK)
        think_token = THINK in vocabulary.special.values()
        if begun is not None:
            if begun.reasoning and not (in_thought or think_token):
                return None
            pieces += _go_on(begun, in_thought=in_thought)
            vocabulary = await self.learn([begun.text, begun.reasoning])
            if says_token(begun.text, vocabulary) or says_token(begun.reasoning, vocabulary):
                return None
        defused = defuse_pieces(await self._without_second_bos(pieces, vocabulary), vocabulary.find)
        if begun is None and not defused.meant:
            return None
        return ChatPrompt(
            prompt=await self._tokenize(defused, vocabulary) if defused.meant else defused.text,
            neutralized=defused.count,
            in_thought=in_thought,
            think_token=think_token,
        )

    async def _find(self, messages: Sequence[Message]) -> dict[str, list[Span]]:
        """Where each text spells a token, or a part of one at an edge."""
        texts = [*texts_of(messages)]
        vocabulary = await self.learn(texts)
        return {text: vocabulary.find(text) + vocabulary.find_edges(text) for text in texts}

    async def learn(self, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary, as far as it matters to these texts."""
        if isinstance(self._vocabulary, AskedVocabulary):
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

    async def _tokenize(self, defused: Defused, vocabulary: Vocabulary) -> list[int]:
        """The tokens of the prompt, with those of each spelling's letters in its place."""
        body = completion_api.encode_tokenize_pieces(defused.text)
        tokens = completion_api.decode_pieces(await self._client.post("/tokenize", body))
        written = b"".join(piece for _, piece in tokens)
        spelt = {mark: await self._spell(part, vocabulary) for mark, part in defused.meant.items()}
        places = _find_marks(written, defused)
        if len(places) != defused.count:  # this tokenizer changes characters that it does not know
            return await self._tokenize_parts(defused, spelt)
        ids: list[int] = []
        at = 0
        for id_, piece in tokens:
            end = at + len(piece)
            touching = [place for place in places if place[0] < end and at < place[1]]
            if not touching:
                ids.append(id_)
            else:  # what the token has besides the stand-in goes byte by byte
                place = at
                for start, stop, mark in touching:
                    if place < start:
                        ids += await self._bytes(written[place:start], vocabulary)
                    if at <= start:  # the token in which the stand-in begins
                        ids += spelt[mark]
                    place = min(stop, end)
                if place < end:
                    ids += await self._bytes(written[place:end], vocabulary)
            at = end
        return ids

    async def _tokenize_parts(self, defused: Defused, spelt: dict[str, list[int]]) -> list[int]:
        """The parts between the stand-ins each by itself."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"([{''.join(defused.meant)}])", defused.text)):
            if part in spelt:
                ids += spelt[part]
            elif part or not number:
                ids += await self._ask(part, add_special=not number, parse_special=True)
        return ids

    async def _spell(self, part: str, vocabulary: Vocabulary) -> list[int]:
        """The tokens of a spelling's letters, as in the middle of a text, none of them special."""
        if part not in self._spelt:
            apart = await self._ask(_APART, add_special=False, parse_special=False)
            both = await self._ask(_APART + part, add_special=False, parse_special=False)
            ids = both[len(apart) :] if both[: len(apart)] == apart else []
            if not ids or any(id_ in vocabulary.special for id_ in ids):
                ids = await self._bytes(part.encode(), vocabulary)
            self._spelt[part] = ids
        return self._spelt[part]

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


def says_token(text: str, vocabulary: Vocabulary) -> bool:
    """Whether it may be that the model said a special token there, and did not quote one."""
    return any(text[start:end] in vocabulary.shown for start, end in vocabulary.find(text))


def _go_on(begun: Delivered, *, in_thought: bool) -> list[Piece]:
    """A reply that has begun, as the model had written it."""
    pieces: list[Piece] = []
    if begun.reasoning:
        pieces += [] if in_thought else [Control(THINK)]
        pieces += [Text(begun.reasoning)]
        pieces += [Control(f"{THINK_END}\n\n")] if begun.text else []
    return [*pieces, Text(begun.text)]


def _find_marks(written: bytes, defused: Defused) -> list[tuple[int, int, str]]:
    """Where the stand-ins are among the bytes of the tokens."""
    found = []
    for mark in defused.meant:
        encoded = mark.encode()
        at = written.find(encoded)
        while at >= 0:
            found.append((at, at + len(encoded), mark))
            at = written.find(encoded, at + 1)
    return sorted(found)


def choose_space(texts: Sequence[str]) -> str:
    """One that is in none of the texts, if there is."""
    return next((space for space in _SPACES if not any(space in text for text in texts)), _SPACES[0])


def _write_spaced(defused: Defused, space: str) -> str:
    text = defused.text
    for mark, part in defused.meant.items():
        text = text.replace(mark, f"{part[0]}{space}{part[1:]}" if part[1:] else f"{space}{part}{space}")
    return text


def texts_of(messages: Sequence[Message]) -> Iterable[str]:
    """Everything in them that somebody wrote."""
    for message in messages:
        yield from (message.content, message.name or "", message.tool_call_id or "")
        for call in message.tool_calls:
            yield from (call.id, call.name)
            yield from strings_of(call.arguments)


def strings_of(value: Any) -> Iterable[str]:
    """Every string in what JSON holds, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings_of(key)
            yield from strings_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_of(item)


def map_texts(message: Message, change: Callable[[str], str]) -> Message:
    """With each of its texts changed."""
    return msgspec.structs.replace(
        message,
        content=change(message.content),
        name=change(message.name) if message.name is not None else None,
        tool_call_id=change(message.tool_call_id) if message.tool_call_id is not None else None,
        tool_calls=tuple(
            ToolCall(id=change(call.id), name=change(call.name), arguments=map_strings(call.arguments, change))
            for call in message.tool_calls
        ),
    )


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same with each string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
