"""Takes a prompt apart: whose each part is, and which tokens belong to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmsession.models.encoding import Part, Piece, join_pieces
from llmsession.types.inspection import PromptPiece
from llmsession.types.messages import Control, Role, Text


def find_contents(
    text: str, skeleton: str, contents: Mapping[str, tuple[Role, str]], last: Role | None
) -> list[Part] | None:
    """Return the parts of a rendered chat, by comparing it with the same chat with a mark for each content.

    None if the two differ. Text between two contents belongs to the turn that it opens, text after the last content to
    `last`. Templates trim contents.
    """
    split = re.split(f"([{''.join(contents)}])", skeleton) if contents else [skeleton]
    parts: list[Part] = []
    at = 0
    for number in range(0, len(split), 2):
        control, mark = split[number], split[number + 1] if number + 1 < len(split) else None
        if not text.startswith(control, at):
            return None
        at += len(control)
        if mark is None:
            parts.append((last, [Control(control)]))
            break
        role, content = contents[mark]
        after = split[number + 2]
        forms = (content, content.strip(), content.rstrip(), content.lstrip())
        found = next((form for form in forms if text.startswith(form + after, at)), None)
        if found is None:
            return None
        parts.append((role, [Control(control), Text(found)]))
        at += len(found)
    return parts if at == len(text) else None


def read_pieces(parts: Sequence[Part], tokens: Sequence[tuple[int, bytes]]) -> list[PromptPiece]:
    """Return the parts with their tokens. A token that crosses a border belongs to the piece in which it starts."""
    joined: list[tuple[Role | None, Piece]] = []
    for role, pieces in parts:
        for piece in join_pieces(pieces):
            if joined and joined[-1][0] is role and type(joined[-1][1]) is type(piece):
                joined[-1] = (role, type(piece)(joined[-1][1].text + piece.text))
            else:
                joined.append((role, piece))
    shares = _share([piece.text for _, piece in joined], tokens)
    return [
        PromptPiece(role=role, is_control=isinstance(piece, Control), text=piece.text, token_ids=tuple(share))
        for (role, piece), share in zip(joined, shares, strict=True)
    ]


def _share(texts: Sequence[str], tokens: Sequence[tuple[int, bytes]]) -> list[list[int]]:
    """Assign tokens to texts.

    Some bytes are in no text: a first token that the engine adds, and SentencePiece's spaces.
    """
    written = "".join(texts).encode()
    ends: list[int] = []
    for text in texts:
        ends.append((ends[-1] if ends else 0) + len(text.encode()))
    shares: list[list[int]] = [[] for _ in texts]
    at = which = 0
    for id_, piece in tokens:
        begins = at
        if written.startswith(piece, at):
            at += len(piece)
        elif piece.startswith(b" ") and written.startswith(piece[1:], at):
            at += len(piece) - 1
        while which < len(ends) - 1 and begins >= ends[which]:
            which += 1
        shares[which].append(id_)
    return shares
