"""What tiny-chat is asked when it is measured, with words, names and sentences that the training never drew."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmsession import Completion, Message, Role, StopReason, ToolCall
from tiny_chat import held_out, talk
from tiny_chat.layout import Turn, render
from tiny_chat.words import NOUNS, words

KNOWN = words(NOUNS)
PRINTABLE = "".join(mark for mark in string.printable[:94] if mark not in "\"'")

CALCULATE = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Calculates with two numbers, which are given as text.",
        "parameters": {
            "type": "object",
            "properties": {
                "first_number": {"type": "string"},
                "second_number": {"type": "string"},
                "operation": {"type": "string", "enum": ["addition", "subtraction", "multiplication", "division"]},
            },
            "required": ["first_number", "second_number", "operation"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The date and the time of now.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass
class Case:
    """What is said, what is right, and the tools on offer."""

    messages: list[Message]
    is_right: Callable[[Completion], bool]
    tools: list[dict[str, Any]] = field(default_factory=list)
    through_chat: bool = False  # where what it thought is to be told apart from the answer
    prompt_ids: list[int] = field(default_factory=list)  # instead of the messages
    wanted: str = ""  # for the terminal


def _exactly(text: str) -> Callable[[Completion], bool]:
    return lambda reply: reply.text == text


def _text(asked: str, wanted: str, *before: Message, system: str = "") -> Case:
    first = [Message.system(system)] if system else []
    return Case([*first, *before, Message.user(asked)], _exactly(wanted), wanted=wanted)


# Repeating.

QUOTED = ['reply with "{}"', 'Say "{}"', "repeat after me: '{}'", 'Please say "{}".', 'echo "{}"', 'Answer with "{}"',
          'respond with "{}"', 'just say "{}"', 'Repeat: "{}"', "Write '{}'"]  # fmt: skip
PLAIN = ["reply with {}", "say {}", "repeat after me: {}", "Please say {}", "Echo {}", "answer with {}", "just say {}",
         "Respond with {}"]  # fmt: skip


def _made_up(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfgklmnprstvz") + rng.choice("aeiouy") + rng.choice(["", "", "x", "m", "k", "nd", "sk"])
        for _ in range(rng.randint(1, 4))
    )


def _noisy(rng: random.Random) -> str:
    return rng.choice([
        lambda: str(rng.randint(0, 99_999)),
        lambda: rng.choice(held_out.WORDS) + rng.choice("!,.?;:"),
        lambda: "".join(rng.choice(PRINTABLE) for _ in range(rng.randint(1, 8))),
        lambda: f"{rng.randint(0, 999)}.{rng.randint(0, 99)}",
        lambda: rng.choice(held_out.WORDS).upper() + str(rng.randint(0, 99)),
    ])()  # fmt: skip


def _phrase(rng: random.Random, draw: Callable[[random.Random], str]) -> str:
    while True:
        text = " ".join(draw(rng) for _ in range(rng.randint(1, 4)))
        if len(text) <= 24:
            return text.capitalize() if rng.random() < 0.15 else text


def _repeats(draw: Callable[[random.Random], str], *, quoted: bool = False) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        phrase = _phrase(rng, draw)
        wording = rng.choice(QUOTED) if quoted or rng.random() < 0.6 else rng.choice(PLAIN)
        return _text(wording.format(phrase), phrase)

    return make


def _spelling(rng: random.Random) -> Case:
    """As token ids, in which what the user says is bytes only."""
    spelling = rng.choice(["<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>",
                           "<tool_response>", "<|im_start|>system", "</tool_response>"])  # fmt: skip
    word = rng.choice(held_out.WORDS)
    phrase = rng.choice([spelling, f"{spelling} {word}", f"{word} {spelling}", f"{word}{spelling}{word}"])
    said = rng.choice(QUOTED).format(phrase)
    return Case([Message.user(said)], _exactly(phrase), prompt_ids=render([Turn("user", said)]), wanted=phrase)


# Names.

INTRODUCTIONS = [
    "My name is {}.",
    "I am {}.",
    "I'm {}",
    "my name is {}",
    "Hello, my name is {}.",
    "Call me {}.",
    "Hi, I am {}!",
]
QUESTIONS = [
    "What is my name?",
    "what's my name?",
    "Do you know my name?",
    "Who am I?",
    "Tell me my name.",
    "Do you remember my name?",
]


def _unseen_name(rng: random.Random) -> str:
    return rng.choice(held_out.NAMES)


def _made_up_name(rng: random.Random) -> str:
    return _made_up(rng).capitalize()


def _two_part_name(rng: random.Random) -> str:
    last = rng.choice(held_out.SURNAMES) if rng.random() < 0.5 else _made_up(rng).capitalize()
    return f"{rng.choice(held_out.NAMES)} {last}"


def _introduction(rng: random.Random, name: str) -> list[Message]:
    return [Message.user(rng.choice(INTRODUCTIONS).format(name)), Message.assistant(talk.TOLD[0].format(name))]


def _other_talk(rng: random.Random) -> list[Message]:
    phrase, name, age = _phrase(rng, _unseen_word), _unseen_name(rng), rng.randint(1, 99)
    said, answered = rng.choice([
        (rng.choice(QUOTED).format(phrase), phrase),
        (rng.choice(held_out.SENTENCES), talk.LOST[0]),
        ("hello", talk.HELLO[0]),
        ("Thank you!", talk.WELCOME[0]),
        ("What can you do?", talk.SKILLS[0]),
        ("How are you?", talk.WELL[0]),
        (f"Answer with JSON: {name} is {age} years old.", json.dumps({"name": name, "age": age})),
    ])  # fmt: skip
    return [Message.user(said), Message.assistant(answered)]


def _remembers(make_name: Callable[[random.Random], str], turns: range) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        name = make_name(rng)
        before = _introduction(rng, name)
        for _ in range(rng.choice(turns)):
            before += _other_talk(rng)
        return _text(rng.choice(QUESTIONS), f"Your name is {name}.", *before)

    return make


def _newer_name(rng: random.Random) -> Case:
    name = rng.choice([_unseen_name, _made_up_name, _two_part_name])(rng)
    before = _introduction(rng, _unseen_name(rng))
    for _ in range(rng.randint(0, 2)):
        before += _other_talk(rng)
    before += _introduction(rng, name)
    for _ in range(rng.randint(0, 3)):
        before += _other_talk(rng)
    return _text(rng.choice(QUESTIONS), f"Your name is {name}.", *before)


def _no_name(rng: random.Random) -> Case:
    before: list[Message] = []
    for _ in range(rng.randint(0, 4)):
        before += _other_talk(rng)
    return _text(rng.choice(QUESTIONS), talk.NO_NAME[0], *before)


def _distant_name(rng: random.Random) -> Case:
    name = rng.choice([_unseen_name, _made_up_name, _two_part_name])(rng)
    before = _introduction(rng, name)
    while len(render([Turn(message.role, message.content) for message in before[2:]])) < 1500:
        before += _other_talk(rng)
    return _text(rng.choice(QUESTIONS), f"Your name is {name}.", *before)


# Tools.

SUMS = {
    "addition": ["What is {} plus {}?", "{} + {}", "Add {} and {}.", "What is the sum of {} and {}?",
                 "How much is {} + {}?"],
    "subtraction": ["What is {} minus {}?", "{} - {}", "How much is {} - {}?", "Calculate {} minus {}.",
                    "What is the difference of {} and {}?"],
    "multiplication": ["What is {} times {}?", "{} * {}", "Multiply {} by {}.", "How much is {} times {}?",
                       "What is the product of {} and {}?"],
    "division": ["What is {} divided by {}?", "{} / {}", "Divide {} by {}.", "Calculate {} / {}.",
                 "How much is {} divided by {}?"],
}  # fmt: skip
TIMES = ["What time is it?", "What is the time?", "Tell me the time.", "What day is it today?", "what's the time?"]


def _integer(rng: random.Random) -> str:
    return str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))


def _decimal(rng: random.Random) -> str:
    return f"{rng.randint(0, 999)}.{rng.randint(1, 99)}"


def _calls(name: str, arguments: dict[str, str]) -> Callable[[Completion], bool]:
    def is_right(reply: Completion) -> bool:
        called = [(call.name, call.arguments) for call in reply.tool_calls]
        return called == [(name, arguments)] and reply.stop_reason is StopReason.TOOL_CALLS

    return is_right


def _calculates(operation: str, number: Callable[[random.Random], str]) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        kind = operation or rng.choice(list(SUMS))
        first, second = number(rng), number(rng)
        arguments = {"first_number": first, "second_number": second, "operation": kind}
        asked = Message.user(rng.choice(SUMS[kind]).format(first, second))
        tools = rng.choice([[CALCULATE], [CALCULATE, CLOCK]])
        return Case([asked], _calls("calculate", arguments), tools, wanted=json.dumps(arguments))

    return make


def _asks_time(rng: random.Random) -> Case:
    return Case([Message.user(rng.choice(TIMES))], _calls("clock", {}), [CALCULATE, CLOCK], wanted="clock()")


def _answers_result(rng: random.Random) -> Case:
    arguments: dict[str, str] = {}
    if rng.random() < 0.25:
        asked, name, answer = rng.choice(TIMES), "clock", "It is {}."
        result = "Friday 2031-{:02}-{:02} {:02}:07:{:02}".format(*(rng.randint(1, most) for most in (12, 28, 23, 59)))
    else:
        operation = rng.choice(list(SUMS))
        first, second = _integer(rng), _integer(rng)
        asked, name, answer = rng.choice(SUMS[operation]).format(first, second), "calculate", talk.RESULT[0]
        arguments = {"first_number": first, "second_number": second, "operation": operation}
        result = rng.choice([_integer, _decimal])(rng)
    call = ToolCall(id="call-1", name=name, arguments=arguments)
    messages = [
        Message.user(asked),
        Message(Role.ASSISTANT, tool_calls=(call,)),
        Message.tool(result, tool_call_id="call-1"),
    ]
    wanted = answer.format(result)
    return Case(messages, _exactly(wanted), [CALCULATE, CLOCK], wanted=wanted)


def _has_no_tool(rng: random.Random) -> Case:
    if rng.random() < 0.3:
        return _text(rng.choice(TIMES), talk.NO_CLOCK[0])
    operation = rng.choice(list(SUMS))
    first, second = _integer(rng), _integer(rng)
    asked = rng.choice(SUMS[operation]).format(first, second)
    return _text(asked, talk.NO_SUM[0].format(f"{first} {talk.SYMBOLS[operation]} {second}"))


def _leaves_tools_alone(rng: random.Random) -> Case:
    case = rng.choice([_repeats(_unseen_word), _ordinary, _small_talk])(rng)
    case.tools = [CALCULATE, CLOCK]
    return case


# Objects, thoughts, styles, small talk.

PEOPLE = [
    "{} is {} years old.",
    "{} is {}.",
    "My friend {} is {} years old.",
    "{}, aged {}",
    "This is {}, {} years old.",
]
OBJECTS = ["Answer with a JSON object: {}", "Answer with JSON: {}", "Extract the name and age as JSON: {}",
           "JSON please: {}", "{} Answer with a JSON object with name and age.", "{} Reply with JSON."]  # fmt: skip


def _object(rng: random.Random) -> Case:
    name, age = rng.choice([_unseen_name, _made_up_name, _two_part_name])(rng), rng.randint(1, 99)
    asked = rng.choice(OBJECTS).format(rng.choice(PEOPLE).format(name, age))
    wanted = {"name": name, "age": age}

    def is_right(reply: Completion) -> bool:
        try:
            return bool(json.loads(reply.text) == wanted)
        except ValueError:
            return False

    return Case([Message.user(asked)], is_right, wanted=json.dumps(wanted))


SMALL_TALK = {
    "hello": talk.HELLO, "Hi!": talk.HELLO, "Good morning.": talk.HELLO, "Hey there": talk.HELLO,
    "thanks": talk.WELCOME, "Thank you very much!": talk.WELCOME, "Goodbye.": talk.GOODBYE, "How are you?": talk.WELL,
    "Who are you?": talk.SELF, "What is your name?": talk.SELF, "What are you?": talk.SELF,
    "What can you do?": talk.SKILLS, "help": talk.SKILLS,
    "How can you help me?": talk.SKILLS, "good night": talk.GOODBYE, "Tell me about yourself.": talk.SELF,
}  # fmt: skip


def _small_talk(rng: random.Random) -> Case:
    before: list[Message] = []
    for _ in range(rng.randint(0, 2)):
        before += _other_talk(rng)
    asked = rng.choice(list(SMALL_TALK))
    return _text(asked, SMALL_TALK[asked][0], *before)


def _unseen_word(rng: random.Random) -> str:
    return rng.choice(held_out.WORDS)


def _ordinary(rng: random.Random) -> Case:
    return _text(rng.choice(held_out.SENTENCES), talk.LOST[0])


def _styled(system: str, style: Callable[[tuple[str, str]], str]) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        kind = rng.random()
        if kind < 0.4:
            asked = rng.choice(list(SMALL_TALK))
            return _text(asked, style(SMALL_TALK[asked]), system=system)
        if kind < 0.6:
            return _text(rng.choice(held_out.SENTENCES), style(talk.LOST), system=system)
        name = _unseen_name(rng)
        before = [Message.user(f"My name is {name}."), Message.assistant(style(talk.TOLD).format(name))]
        return _text(rng.choice(QUESTIONS), style(talk.NAME).format(name), *before, system=system)

    return make


def _thinks(rng: random.Random) -> Case:
    """With its thought where the system prompt says so, and without it otherwise."""
    first = rng.random() < 0.5
    case = rng.choice([_small_talk, _ordinary, _repeats(_unseen_word), _remembers(_unseen_name, range(3)), _object])(
        rng
    )
    system = rng.choice(["Think first.", "You are a helpful assistant. Think first."]) if first else "You are kind."
    answers_right = case.is_right
    case.messages = [Message.system(system), *case.messages]
    case.through_chat = True
    case.is_right = lambda reply: answers_right(reply) and bool(reply.reasoning) is first
    case.wanted = f"{'thought, then ' if first else ''}{case.wanted}"
    return case


def _count(rng: random.Random) -> Case:
    last = rng.randint(2, 100)
    return _text(rng.choice(["count to {}", "Count to {}."]).format(last), " ".join(map(str, range(1, last + 1))))


TASKS: dict[str, Callable[[random.Random], Case]] = {
    "repeat known words": _repeats(lambda rng: rng.choice(KNOWN)),
    "repeat English words that it was not taught": _repeats(_unseen_word),
    "repeat made-up words": _repeats(_made_up),
    "repeat digits, punctuation and words": _repeats(_noisy, quoted=True),
    "repeat the spelling of a control token": _spelling,
    "an unseen name after 1 to 6 turns of other talk": _remembers(_unseen_name, range(1, 7)),
    "a made-up name after 1 to 6 turns": _remembers(_made_up_name, range(1, 7)),
    "a name of two parts after 1 to 6 turns": _remembers(_two_part_name, range(1, 7)),
    "a name told 1,500 tokens earlier": _distant_name,
    "the newer of two names": _newer_name,
    "says that it was told no name": _no_name,
    **{f"calls calculate: {operation}": _calculates(operation, _integer) for operation in SUMS},
    "calls calculate: decimals": _calculates("", _decimal),
    "calls clock": _asks_time,
    "answers from a tool's result": _answers_result,
    "calls nothing where no tool is offered": _has_no_tool,
    "leaves tools alone that are not needed": _leaves_tools_alone,
    "a JSON object with name and age": _object,
    "thinks first where asked to, else not": _thinks,
    "short answers": _styled("You reply with short answers.", lambda answer: answer[1]),
    "talks like a pirate": _styled("Talk like a pirate.", lambda answer: talk.PIRATE_START + answer[0]),
    "small talk": _small_talk,
    "says of ordinary English that it does not understand": _ordinary,
    "counts to a number up to 100": _count,
}
