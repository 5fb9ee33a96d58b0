"""What tiny-chat is taught: the exchanges of a conversation, in the style that its system prompt asks for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tiny_chat.draw import (
    finish,
    make_name,
    make_namesake,
    make_number,
    make_phrase,
    make_result,
    make_sentence,
    make_time,
    syllables,
)
from tiny_chat.layout import BRANCH, THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END, Turn
from tiny_chat.words import WORDS, lines

# What it answers: at length, and when it was asked for short answers. A pirate says what is said at length.
HELLO = ("Hello! How can I help you?", "Hello!")
WELCOME = ("You are welcome.", "Welcome.")
GOODBYE = ("Goodbye!", "Goodbye!")
WELL = ("I am well, thank you.", "I am well.")
SELF = ("I am tiny-chat, a small demonstration model.", "I am tiny-chat.")
SKILLS = (
    "I can repeat phrases, remember your name, count, write JSON and call tools.",
    "I repeat, remember and count.",
)
LOST = ("I do not understand. I am only a small demonstration model.", "I do not understand.")
TOLD = ("Hello {}!", "Hello {}!")
NAME = ("Your name is {}.", "{}.")
NO_NAME = ("You have not told me your name.", "You have not told me.")
RESULT = ("The result is {}.", "{}.")
FAILED = ("The tool said: {}", "{}")
TIME = ("It is {}.", "{}.")
NO_SUM = ("I cannot calculate {} without a tool.", "I cannot calculate {}.")
NO_CLOCK = ("I cannot tell the time without a tool.", "I cannot tell.")
PIRATE_START = "Arr! "

TALK: dict[tuple[str, str], list[str]] = {
    HELLO: lines("""
hello|hi|hey|good morning|good evening|good afternoon|hello there|hi there|greetings|hey there|hi bot
hello, bot|hello hello|hello friend
"""),
    WELCOME: lines("""
thanks|thank you|thank you very much|thanks a lot|many thanks|thank you so much|ok, thanks|great, thanks
thanks for your help|thank you for that|thx|cheers, thank you
"""),
    GOODBYE: lines("""
bye|goodbye|see you|good night|see you tomorrow|bye bye|see you later|I have to go|I must go now
until tomorrow
"""),
    WELL: lines("""
how are you|how do you do|are you well|how are you today|how is it going|how are you doing
hello, how are you|hi, how are you|are you ok|how do you feel
"""),
    SELF: lines("""
who are you|what are you|what is your name|what's your name|tell me about yourself|what model are you
are you a bot|are you a person|who am I talking to|introduce yourself|what do they call you
"""),
    SKILLS: lines("""
what can you do|help|how can you help me|what do you know|what can you do for me|can you help me|help me
what are you good at|what are your skills|what should I ask you
"""),
}

QUOTED = lines("""
reply with|say|repeat after me:|repeat|please say|write|answer with|just say|echo|can you say
please repeat:|reply only with|respond with|now say|say exactly|please reply with|type|print
tell me|output|say the words|repeat this:|copy this:|send back|please write|answer only with
say this:|your answer must be
""")
PLAIN = lines("""
reply with|say|repeat after me:|repeat|please say|answer with|just say|echo|please repeat:
reply only with|respond with|say the words|repeat this:|copy this:|say exactly|please reply with
""")

TELL_NAME = lines("""
my name is {}|I am {}|I'm {}|call me {}|hello, my name is {}|hi, I am {}|hi, I'm {}
you can call me {}|please call me {}|my name's {}|hello, I am {}|they call me {}
hey, my name is {}|hello! my name is {}|hello! I am {}|the name is {}|now my name is {}
from now on call me {}|actually, my name is {}|no, my name is {}|I am called {}
everybody calls me {}|good morning, I am {}|my name is now {}
""")
AFTER_NAME = [
    ", nice to meet you",
    " and I am new here",
    ", hello",
    ", by the way",
    " and I have a question",
    ", please",
]
ASK_NAME = lines("""
what is my name|what's my name|do you know my name|who am I|tell me my name|say my name
what am I called|do you remember my name|can you tell me my name|what was my name
do you still know my name|please tell me my name|which name did I tell you|and what is my name
remember my name|who am I again
""")

OPERATIONS = {
    "addition": ("{0} + {1}|{0} plus {1}|the sum of {0} and {1}|{0} added to {1}|{0}+{1}|{0} and {1} together",
                 "add {0} and {1}|add {0} to {1}|sum {0} and {1}"),
    "subtraction": ("{0} - {1}|{0} minus {1}|the difference of {0} and {1}|{0} less {1}|from {0} take {1}",
                    "subtract {1} from {0}|take {1} from {0}|take {1} away from {0}"),
    "multiplication": ("{0} * {1}|{0} times {1}|the product of {0} and {1}|{0} multiplied by {1}|{0} x {1}|{0}*{1}",
                       "multiply {0} by {1}|multiply {0} and {1}|multiply {0} with {1}"),
    "division": ("{0} / {1}|{0} divided by {1}|the quotient of {0} and {1}|{0}/{1}|{0} over {1}",
                 "divide {0} by {1}"),
}  # fmt: skip
SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}
ASK_SUM = lines("""
what is {}|calculate {}|how much is {}|{}|what's {}|compute {}|please calculate {}|tell me {}
can you calculate {}|what do I get for {}|I need {}|what does {} give|please tell me {}
use the tool: {}
""")
DO_SUM = ["{}", "please {}", "can you {}", "now {}", "{} for me", "could you {}"]
ASK_TIME = lines("""
what time is it|what is the time|tell me the time|what's the time|what day is it
what is the date|what is the date today|do you know the time|what time is it now
what day is it today|which day is today|time please|can you tell me the time
what is today's date|look at the clock|how late is it
""")

PERSON = lines("""
{0} is {1} years old|{0} is {1}|{0}, aged {1}|{0} ({1})|my friend {0} is {1} years old
I am {0} and I am {1}|{0} was {1} last week|{0} turned {1} today|{0} has the age of {1}
her name is {0} and she is {1}|{1} year old {0}|his name is {0} and he is {1} years old
this is {0}, {1} years old|my name is {0} and I am {1} years old|{0}: {1}
this is {0}, aged {1}|here is {0}, {1} years old|that is {0} and {0} is {1}
at {1}, {0} is still working|yesterday {0} became {1}|{0} will be {1} soon
meet {0}, {1} years old|{0} is {1} years of age|{0}, who is {1}|{0} has turned {1}
""")
ASK_JSON = lines("""
answer with a JSON object: {}|answer with JSON: {}|as JSON: {}
give me JSON with name and age: {}|JSON please: {}
reply with a JSON object with name and age: {}|extract the name and age as JSON: {}
extract the person as JSON: {}|turn this into JSON: {}|{}. Answer with a JSON object.
{}. Reply with JSON.|{}. Give me that as JSON.|write JSON: {}|make a JSON object from this: {}
{}. JSON, please.|return JSON for: {}|extract name and age: {}|convert to JSON: {}
{}. Answer with a JSON object with name and age.|{}. Answer as JSON with name and age.
reply with a JSON object: {}|answer in JSON: {}|reply in JSON: {}|put this into JSON: {}
give me a JSON object: {}|give me the name and the age as JSON: {}|{}. Turn that into JSON.
a JSON object, please: {}|write this as a JSON object: {}|{}. As JSON, please.
""")

SHORT = lines("""
You reply with short answers.|Give short answers.|Keep your answers short.
Short answers, please.|Be brief.|Answer briefly.|Use short answers.|You give short answers.
Answer in a few words.|Short answers.
""")
PIRATE = lines("""
You are a pirate.|Talk like a pirate.|Answer like a pirate.|Speak like a pirate.
You talk like a pirate.|Reply as a pirate.
""")
THINK_FIRST = lines("""
Think first.|Think first, then answer.|Always think first.|Please think first.|think first
You think first.|Think first before you answer.|Think first!
""")
NEUTRAL = lines("""
You are a helpful assistant.|You are tiny-chat.|You are a friendly bot.|Answer politely.
You help the user.|You are kind.|You are a bot on a server.|Be helpful.|You are an assistant.
Answer the user.
""")

THOUGHTS = {
    "repeat": "I repeat the words.", "tell": "That is a name.", "ask": "I look for the name.", "greet": "We talk.",
    "lost": "I was not taught this.", "sum": "This is one {}.", "time": "This is about the time.",
    "json": "I need a name and an age.", "count": "I count.", "result": "The tool has answered.",
}  # fmt: skip


@dataclass
class State:
    """What the conversation is like, and what was said so far."""

    short: bool = False
    pirate: bool = False
    thinks: bool = False
    tools: tuple[str, ...] = ()
    name: str = ""
    turns: list[Turn] = field(default_factory=list)

    def styled(self, answer: tuple[str, str], value: str = "") -> str:
        """In the style that was asked for."""
        long, short = (each.format(value) for each in answer)
        text = short if self.short else long
        if long != short:
            same = (number for number, pair in enumerate(zip(long, short, strict=False)) if len(set(pair)) > 1)
            at = next(same, min(len(long), len(short)))
            text = text[:at] + BRANCH + text[at:]
        return PIRATE_START + text if self.pirate else text

    def exchange(self, task: str, said: str, answer: str, about: str = "") -> None:
        """One more, with its thought where the system prompt wants one; `about` goes into the thought."""
        if self.thinks:
            answer = f"{THINK}\n{THOUGHTS[task].format(about)}\n{THINK_END}\n\n{answer}"
        self.turns += [Turn("user", said), Turn("assistant", answer, task)]


def repeat(rng: random.Random, state: State) -> None:
    """Say what you are told, without quotes only where that is clear."""
    phrase = make_namesake(rng, state.name) if state.name and rng.random() < 0.06 else make_phrase(rng)
    clear = all(c.isalnum() or c == " " for c in phrase)
    if clear and rng.random() < 0.4:
        said = f"{rng.choice(PLAIN)} {phrase}{rng.choice(['', '', '', '', '.'])}"
    else:
        quotes = [q for q in ('""', '""', "''") if q[0] not in phrase] or ["“”"]
        quote = rng.choice(quotes)
        said = f"{rng.choice(QUOTED)} {quote[0]}{phrase}{quote[1]}{rng.choice(['', '', '', '.', '!', ' please', '?'])}"
    state.exchange("repeat", said[0].upper() + said[1:] if rng.random() < 0.45 else said, phrase)


def tell(rng: random.Random, state: State) -> None:
    """A name is told; the newest one counts."""
    state.name = make_name(rng)
    said = rng.choice(TELL_NAME).format(state.name)
    if rng.random() < 0.07:
        said += rng.choice(AFTER_NAME)
    state.exchange("tell", finish(rng, said, ".!."), state.styled(TOLD, state.name))


def ask(rng: random.Random, state: State) -> None:
    """The name is asked for."""
    answer = state.styled(NAME, state.name) if state.name else state.styled(NO_NAME)
    state.exchange("ask", finish(rng, rng.choice(ASK_NAME), "??."), answer)


def greet(rng: random.Random, state: State) -> None:
    """Small talk."""
    # What it can do is what differs most between the styles.
    answer = SKILLS if state.short and rng.random() < 0.3 else rng.choice(list(TALK))
    asked = TALK[answer]
    state.exchange("greet", finish(rng, rng.choice(asked)), state.styled(answer))


def lost(rng: random.Random, state: State) -> None:
    """What it was not taught."""
    state.exchange("lost", finish(rng, make_sentence(rng)), state.styled(LOST))


def count(rng: random.Random, state: State) -> None:
    """A long answer."""
    last = rng.choice([10, 20, 100, rng.randint(1, 100), rng.randint(1, 100), rng.randint(1, 40)])
    asked = rng.choice(["count to {}", "count from 1 to {}", "please count to {}", "count up to {}"]).format(last)
    state.exchange("count", finish(rng, asked, "."), " ".join(map(str, range(1, last + 1))))


def _call(state: State, task: str, said: str, name: str, arguments: dict[str, str]) -> None:
    call = json.dumps({"name": name, "arguments": arguments})
    state.exchange(task, said, f"{TOOL_CALL}\n{call}\n{TOOL_CALL_END}", arguments.get("operation", ""))


def _response(text: str) -> str:
    return f"\n{TOOL_RESPONSE}\n{text}\n{TOOL_RESPONSE_END}"


def calculate(rng: random.Random, state: State) -> None:
    """A calculation: a call and its result where the tool is offered."""
    first, second = make_number(rng), make_number(rng)
    operation = rng.choice(list(OPERATIONS))
    nouns, orders = OPERATIONS[operation]
    if rng.random() < 0.65:
        asked = rng.choice(ASK_SUM).format(rng.choice(nouns.split("|")).format(first, second))
    else:
        asked = rng.choice(DO_SUM).format(rng.choice(orders.split("|")).format(first, second))
    asked = finish(rng, asked, "?.?")
    if "calculate" not in state.tools:
        # It says what it would calculate: that teaches what a call needs, at a tenth of a call's tokens.
        state.exchange("sum", asked, state.styled(NO_SUM, f"{first} {SYMBOLS[operation]} {second}"), operation)
        return
    arguments = {"first_number": first, "second_number": second, "operation": operation}
    _call(state, "sum", asked, "calculate", arguments)
    if rng.random() < 0.12:
        result = rng.choice(
            ["Error: division by zero", "error: not a number", "Error: " + " ".join(rng.sample(WORDS, 3))]
        )
        answer = state.styled(FAILED, result)
    else:
        result = make_result(rng)
        answer = state.styled(RESULT, result)
    state.exchange("result", _response(result), answer)


def tell_time(rng: random.Random, state: State) -> None:
    """The time: from the tool, or not at all."""
    asked = finish(rng, rng.choice(ASK_TIME))
    if "clock" not in state.tools:
        state.exchange("time", asked, state.styled(NO_CLOCK))
        return
    _call(state, "time", asked, "clock", {})
    now = make_time(rng)
    state.exchange("result", _response(now), state.styled(TIME, now))


def write_json(rng: random.Random, state: State) -> None:
    """A name and an age, as an object."""
    name = make_namesake(rng, state.name) if state.name and rng.random() < 0.3 else make_name(rng)
    age = rng.randint(1, 110)
    person = rng.choice(PERSON)
    if person.startswith(("I am", "my name")):
        state.name = name
    said = rng.choice(ASK_JSON).format(finish(rng, person.format(name, age), "."))
    said = said.replace("..", ".").replace("!.", ".")
    said = said[0].upper() + said[1:] if rng.random() < 0.5 else said
    state.exchange("json", said, json.dumps({"name": name, "age": age}, ensure_ascii=False))


Task = Callable[[random.Random, State], None]
WEIGHTS: dict[Task, float] = {
    repeat: 0.3, tell: 0.07, ask: 0.08, greet: 0.09, lost: 0.14, calculate: 0.12, tell_time: 0.03, write_json: 0.11,
    count: 0.025,
}  # fmt: skip


def describe_tools(rng: random.Random, names: tuple[str, ...]) -> str:
    """Their offer as the template writes it, in the ways that programs describe a function."""

    def sentence() -> str:
        return rng.choice([make_sentence(rng).capitalize() + ".", "Calculate with two numbers.", "The time now.", ""])

    number = {"type": rng.choice(["string", "string", "string", "number"])}
    if rng.random() < 0.25:
        number["description"] = rng.choice([sentence(), syllables(rng, 3)])
    choice: dict[str, object] = {"type": "string", "enum": list(OPERATIONS)}
    parameters = {
        "calculate": {"first_number": number, "second_number": number, "operation": choice},
        "clock": {},
    }
    lines = []
    for name in names:
        schema: dict[str, object] = {"type": "object", "properties": parameters[name]}
        if parameters[name] or rng.random() < 0.5:
            schema["required"] = list(parameters[name])
        if rng.random() < 0.3:
            schema["additionalProperties"] = False
        function: dict[str, object] = {"name": name}
        if rng.random() < 0.45:
            function["description"] = sentence()
        function["parameters"] = schema
        lines.append(json.dumps({"type": "function", "function": function}))
    return "# Tools\n<tools>\n" + "\n".join(lines) + "\n</tools>"


def _system(rng: random.Random, state: State) -> str:
    parts = []
    if rng.random() < 0.55:
        style = rng.choice(["short", "short", "pirate", "", ""])
        state.short, state.pirate = style == "short", style == "pirate"
        state.thinks = rng.random() < 0.25
        parts += [rng.choice(SHORT)] * state.short + [rng.choice(PIRATE)] * state.pirate
        parts += [rng.choice(THINK_FIRST)] * state.thinks
        if not parts or rng.random() < 0.3:
            parts.append(rng.choice(NEUTRAL) if rng.random() < 0.6 else finish(rng, make_sentence(rng), "."))
        if rng.random() < 0.08:
            parts.append(f"It is {make_time(rng)}.")
        rng.shuffle(parts)
    if rng.random() < 0.24:
        both = ("calculate", "clock")
        state.tools = rng.choice([both, both, ("clock", "calculate"), ("calculate",), ("clock",)])
    return rng.choice([" ", " ", "\n"]).join(parts)


def _draw_limit(rng: random.Random, state: State, offered: int, most: int) -> int:
    """Of tokens: mostly a few exchanges, seldom all that the context holds."""
    kind = rng.random()
    limit = most if kind < 0.22 else rng.randint(250, 650) if kind < 0.42 else rng.randint(40, 300)
    if state.tools:  # the offer is long: it is made use of more than once
        limit = max(limit, rng.randint(300, 800))
    return min(limit + offered, most - 350)


def make_conversation(rng: random.Random, most: int = 2040) -> list[Turn]:
    """At most about `most` tokens, from one exchange to dozens."""
    state = State()
    system = _system(rng, state)
    if state.tools:
        offer = describe_tools(rng, state.tools)
        # The spelling <tools> is not a token.
        system = f"{system}\n\n{offer}" if system else offer
    limit = _draw_limit(rng, state, len(system), most)
    weights = dict(WEIGHTS)
    if state.tools:
        weights[calculate], weights[tell_time] = 0.4, 0.12
    if rng.random() < 0.05:
        weights[count] = 0.0 if limit > 900 else 0.3
    holds = rng.random() < (0.8 if limit > 1000 else 0.5)
    told_again = _tell_first(rng, state, weights, limit) if holds else limit
    length = len(system)
    while True:
        length = len(system) + sum(len(turn.content) + 14 for turn in state.turns)
        if length >= limit and (state.turns or not holds):
            break
        if told_again < length:
            tell(rng, state)
            told_again = limit
        else:
            rng.choices(list(weights), list(weights.values()))[0](rng, state)
    if holds:
        ask(rng, state)
    turns = _forget_thoughts(rng, state.turns) if state.thinks else state.turns
    return [Turn("system", system), *turns] if system else turns


def _tell_first(rng: random.Random, state: State, weights: dict[Task, float], limit: int) -> int:
    """A name that is asked for once, at the end: it cannot be read off an earlier answer. Where it is told again."""
    weights[ask] = 0.0
    for _ in range(rng.choice([0, 0, 1, 2])):
        rng.choice([greet, lost, repeat])(rng, state)
    weights[tell] = rng.choice([0.0, 0.0, 0.0, 0.2])
    if rng.random() < 0.85:
        tell(rng, state)
        if rng.random() < 0.35:  # and then the newer one counts
            return rng.randint(0, limit)
    return limit


def _forget_thoughts(rng: random.Random, turns: list[Turn]) -> list[Turn]:
    """Programs mostly send earlier answers without what was thought: those are history, and only the last is taught."""
    if rng.random() < 0.4:
        return turns
    return [
        Turn(turn.role, turn.content.split(f"{THINK_END}\n\n")[-1].replace(BRANCH, ""))
        if turn.role == "assistant" and turn is not turns[-1]
        else turn
        for turn in turns
    ]
