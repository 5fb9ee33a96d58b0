"""Draws words, phrases, names, numbers and sentences for the training."""

from __future__ import annotations

import random
import re
import string

from tiny_chat.words import ADJECTIVES, FILLINGS, NAMES, NOUNS, PATTERNS, UTF8_WORDS, VERBS, WORDS, words

LETTERS, DIGITS = string.ascii_lowercase, string.digits
PUNCTUATION = "!#$%&()*+,-./:;<=>?@[\\]^_`{|}~"
SPELLINGS = [
    "<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>",
    "</think>", "<|im_start|>system", "<|im_end|>\n", "<|endoftext|>", "<s>", "</s>", "[INST]", "<|user|>",
]  # fmt: skip
_KNOWN_NAMES, _UTF8, _NOUNS = words(NAMES), words(UTF8_WORDS), words(NOUNS)
_ENDINGS = ["s", "ed", "ing", "er", "ly", "ness", "ful", "able", "tion", "ment", "ish", "less"]


def syllables(rng: random.Random, most: int) -> str:
    """A made-up word that can be spoken."""
    return "".join(
        rng.choice(["", *"bcdfghjklmnprstvwyz", "sh", "ch", "th", "br", "st", "qu"])
        + rng.choice([*"aeiou", "ai", "ee", "ou"])
        + rng.choice(["", "", "n", "r", "st", "l", "m", "ck", "x"])
        for _ in range(rng.randint(1, most))
    )


def repetitive(rng: random.Random) -> str:
    """Where copying loses its place: `lalala`, `aaaa`, `1001001`."""
    part = rng.choice([syllables(rng, 1), rng.choice(LETTERS), rng.choice(DIGITS), f"{rng.randint(0, 99)}", "ha"])
    text = part * rng.randint(2, max(2, 9 // len(part)))
    return text + rng.choice(["", "", rng.choice(LETTERS), part[0]])


def make_word(rng: random.Random) -> str:
    """Known, with an ending, of syllables, of letters, of digits, of anything printable, or beyond ASCII."""
    kind = rng.random()
    if kind < 0.25:
        word = rng.choice(WORDS)
    elif kind < 0.33:
        word = rng.choice(WORDS) + rng.choice([*_ENDINGS, rng.choice(WORDS)])
    elif kind < 0.57:
        word = syllables(rng, 4)
    elif kind < 0.71:
        word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 10)))
    elif kind < 0.79:
        word = "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 8)))
        word += f".{rng.choice(DIGITS)}" if rng.random() < 0.2 else ""
    elif kind < 0.93:
        every = string.ascii_letters + DIGITS + PUNCTUATION * 2
        word = "".join(rng.choice(every) for _ in range(rng.randint(1, 9)))
    elif kind < 0.97:
        word = repetitive(rng)
    else:
        return rng.choice(_UTF8)
    if rng.random() < 0.12:
        word += rng.choice(["!", ",", ".", "?", ";", ":", str(rng.randint(0, 99))])
    case = rng.random()
    return word.capitalize() if case < 0.17 else word.upper() if case < 0.24 else word


def make_phrase(rng: random.Random) -> str:
    """One to five words, up to 24 characters and sometimes 40; now and then with the spelling of a control token."""
    most = 40 if rng.random() < 0.05 else 24
    while True:
        parts = [make_word(rng) for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 5]))]
        if rng.random() < 0.05:
            parts.insert(rng.randint(0, len(parts)), rng.choice(parts))
        if rng.random() < 0.06:
            parts.insert(rng.randint(0, len(parts)), rng.choice(SPELLINGS).strip())
            most = 40
        phrase = rng.choice(["", " ", " ", " ", " ", " "]).join(parts)
        if len(phrase) <= most:
            return phrase


def make_name(rng: random.Random) -> str:
    """A known or made-up name, sometimes of two parts."""

    def part() -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(_KNOWN_NAMES)
        if kind < 0.32:
            return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 9))).capitalize()
        if kind < 0.42:
            name = rng.choice(_KNOWN_NAMES)
            return name[: rng.randint(2, len(name))] + syllables(rng, 2)
        if kind < 0.5:  # of parts that are alike, where copying loses its place
            again = syllables(rng, 1)
            return (again + syllables(rng, 1) + again + rng.choice(["", again, rng.choice(LETTERS)])).capitalize()
        return syllables(rng, rng.choice([3, 3, 3, 4])).capitalize()

    kind = rng.random()
    if kind < 0.4:
        return f"{part()} {part()}"
    return f"{part()}-{part()}" if kind < 0.42 else f"O'{part()}" if kind < 0.43 else part()


def make_namesake(rng: random.Random, name: str) -> str:
    """Somebody else whose name begins alike: `Anna`, or `Anna Moss`, for `Anna Bree`."""
    first, *rest = name.split()
    others = [first, first, f"{first} {syllables(rng, 3).capitalize()}"]
    return rng.choice(others if rest else [f"{first} {syllables(rng, 3).capitalize()}", first + syllables(rng, 1)])


def make_number(rng: random.Random) -> str:
    """Up to four digits, sometimes with decimals, seldom negative."""
    number = str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))
    if rng.random() < 0.25:
        number += "." + rng.choice([str(rng.randint(1, 9)), f"{rng.randint(0, 99):02}", str(rng.randint(1, 999))])
    return f"-{number}" if rng.random() < 0.03 else number


def make_result(rng: random.Random) -> str:
    """What a calculation may give."""
    number = str(rng.randint(0, 10 ** rng.randint(1, 8) - 1))
    if rng.random() < 0.3:
        number += f".{rng.randint(1, 10 ** rng.randint(1, 6))}"
    return f"-{number}" if rng.random() < 0.12 else number


def make_time(rng: random.Random) -> str:
    """As `clock` says it: `Friday 2026-11-20 19:19:44`."""
    day = rng.choice(["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"])
    date = f"{rng.randint(1990, 2060)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return f"{day} {date} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"


def make_sentence(rng: random.Random) -> str:
    """Ordinary English that it was not taught an answer to."""

    def fill(match: re.Match[str]) -> str:
        kind = match[1]
        if kind == "d":
            return str(rng.randint(0, 10 ** rng.randint(1, 4)))
        if kind == "w":
            return make_word(rng) if rng.random() < 0.3 else rng.choice(WORDS)
        if kind == "N" and rng.random() < 0.5:
            return make_name(rng)
        if kind != "P" and rng.random() < 0.1:
            return syllables(rng, 3)
        word = rng.choice(FILLINGS[kind])
        if kind == "n" and rng.random() < 0.1:
            return f"{rng.choice(words(ADJECTIVES))} {word}"
        return word

    sentence = re.sub(r"\{(\w)\}", fill, rng.choice(PATTERNS))
    return _vary(rng, sentence)


def _vary(rng: random.Random, sentence: str) -> str:
    """Mostly as it is; sometimes with a tail, a stray word, or a second sentence."""
    chance = rng.random()
    if chance < 0.12:
        tail = [f"in the {rng.choice(_NOUNS)}", "today", "please", "again", "for my friend", "right now", "every day"]
        return f"{sentence} {rng.choice(tail)}"
    if chance < 0.2:
        parts = sentence.split()
        parts.insert(rng.randint(0, len(parts)), rng.choice(WORDS))
        return " ".join(parts)
    if chance < 0.26:
        joint = rng.choice(["and", "but", "or", "because", "when", "if", "while"])
        return f"{sentence} {joint} {make_sentence(rng)}"
    if chance < 0.32:
        return f"{finish(rng, sentence)} {finish(rng, make_sentence(rng))}"
    if chance < 0.36:
        verb, noun = rng.choice(words(VERBS)), rng.choice(_NOUNS)
        return f"{rng.choice(['well', 'so', 'and', 'but', 'then', 'listen'])}, {sentence} to {verb} {noun}"
    return sentence


def finish(rng: random.Random, text: str, marks: str = "?.!") -> str:
    """With or without an end mark, and in the case that people write."""
    text += rng.choice([*marks, marks[0], ""])
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text
