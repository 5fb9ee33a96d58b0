"""Vocabularies for model files that tests write: of bytes, byte-pair encoding, SentencePiece; or a real file's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = (
    gguf.TokenType.NORMAL,
    gguf.TokenType.UNKNOWN,
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.BYTE,
)

# What the two small ones learn their words from.
TEXT = Path(__file__).parents[1].joinpath("LICENSE").read_text(encoding="utf-8")

CHATML = ["<|im_start|>", "<|im_end|>"]
# Of two kinds, one inside of another, one that others begin with, one with letters alone.
SPECIAL = {
    **dict.fromkeys([*CHATML, "[INST]", "[/INST]", "<eos>", "<|eos|>"], CONTROL),
    **dict.fromkeys(["<tool_call>", "</tool_call>", "<think>", "</think>", "<|im", "<||>"], USER_DEFINED),
}


@dataclass
class Vocabulary:
    """What a GGUF file says of its tokenizer."""

    tokens: list[str]
    types: Sequence[int]
    model: str = "gpt2"
    pre: str = "gpt-2"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bos: int | None = None
    eos: int | None = None
    adds_bos: bool = False

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Into a file."""
        writer.add_vocab_size(len(self.tokens))
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.bos is not None:
            writer.add_bos_token_id(self.bos)
        if self.eos is not None:
            writer.add_eos_token_id(self.eos)
        writer.add_add_bos_token(self.adds_bos)

    def spellings(self) -> list[str]:
        """Those of control and user-defined tokens that look like more than text."""
        pairs = zip(self.tokens, self.types, strict=True)
        return [
            token
            for token, kind in pairs
            if kind in (UNKNOWN, CONTROL) or (kind == USER_DEFINED and len(token) > 1 and not token.isspace())
        ]


def of_bytes(more_tokens: int = 0) -> Vocabulary:
    """A token for each byte; `more_tokens` never occur."""
    tokens = _byte_letters() + CHATML + [f"filler{number}" for number in range(more_tokens)]
    types = [NORMAL] * 256 + [CONTROL] * len(CHATML) + [NORMAL] * more_tokens
    # The engine wants a merge; letters and digits are never in one word.
    return Vocabulary(tokens, types, merges=["a 0"], eos=257)


def of_byte_pairs() -> Vocabulary:
    """As GPT-2's, with a few hundred merges."""
    learnt = tokenizers.ByteLevelBPETokenizer()
    learnt.train_from_iterator([TEXT], vocab_size=900, show_progress=False)
    words = sorted(learnt.get_vocab().items(), key=lambda item: item[1])
    tokens = [word for word, _ in words]
    pairs = json.loads(learnt.to_str())["model"]["merges"]
    return Vocabulary(
        tokens + list(SPECIAL),
        [NORMAL] * len(tokens) + list(SPECIAL.values()),
        merges=[" ".join(pair) for pair in pairs],
        eos=len(tokens) + 1,
    )


def of_sentencepiece() -> Vocabulary:
    """As Llama 2's: pieces with scores, spaces as ▁, a space in front, the other bytes as tokens; BOS is added."""
    text = TEXT.replace(" ", "▁")
    pieces = Counter({letter: 10**6 for letter in sorted(set(text)) if letter.isprintable()})
    for length in range(2, 7):
        found = Counter(text[at : at + length] for at in range(len(text) - length))
        pieces.update({piece: n for piece, n in found.most_common(150) if "\n" not in piece})
    ranked = [piece for piece, _ in pieces.most_common()]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ranked, *SPECIAL]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(ranked), *SPECIAL.values()]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(ranked))] + [0.0] * len(SPECIAL)
    return Vocabulary(tokens, types, model="llama", pre="default", scores=scores, bos=1, eos=2, adds_bos=True)


def of_file(path: Path) -> Vocabulary:
    """A real one."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> object:
        found = reader.get_field(f"tokenizer.ggml.{key}")
        return found.contents() if found is not None else None

    tokens = list(value("tokens") or [])  # type: ignore[call-overload]
    return Vocabulary(
        tokens,
        list(value("token_type") or [NORMAL] * len(tokens)),  # type: ignore[call-overload]
        model=str(value("model")),
        pre=str(value("pre") or "default"),
        merges=list(value("merges") or []),  # type: ignore[call-overload]
        scores=list(value("scores") or []),  # type: ignore[call-overload]
        bos=value("bos_token_id"),  # type: ignore[arg-type]
        eos=value("eos_token_id"),  # type: ignore[arg-type]
        adds_bos=bool(value("add_bos_token")),
    )


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
