#!/usr/bin/env python3
"""Make tiny-chat, the demonstration model: text, training, and the GGUF file.

All text is made here, from words of our own writing, syllables, letters and numbers, with a seed; there is no data set.
Needs torch, numpy and gguf:  python scripts/train_tiny_chat.py --minutes 20
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

# vocabulary: a token for each byte, and ChatML's own

CONTROL = ["<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SPECIAL = {text: 256 + number for number, text in enumerate(CONTROL + USER_DEFINED)}
END = SPECIAL["<|im_end|>"]
VOCAB_SIZE = 256 + len(SPECIAL)


def encode(text: str) -> list[int]:
    """Bytes, with the spellings of special tokens as those."""
    ids: list[int] = []
    while text:
        found = [(at, name) for name in SPECIAL if (at := text.find(name)) >= 0]
        at, name = min(found, default=(len(text), ""))
        ids += text[:at].encode()
        if name:
            ids.append(SPECIAL[name])
        text = text[at + len(name) :]
    return ids


CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\nCall: <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and message.content) or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# text: each task gives exchanges, the conversation joins them

WORDS = """the a one two red blue green old new small large warm cold good kind quiet bright early late open river
stone house garden window door table chair paper letter number music song bird horse cat dog fish tree leaf flower
apple bread butter cheese water coffee tea sugar salt morning evening night summer winter rain snow wind storm cloud
sun moon star sky sea island mountain valley road bridge city village market school teacher student doctor farmer
baker captain chief king queen friend brother sister mother father child people hand foot head heart eye voice word
story book page pen ink clock hour minute week month year game ball wheel boat ship train plane ticket journey map
ok yes no maybe hello world please thanks sorry never always often again soon today tomorrow yesterday here there
read write speak listen walk run jump swim fly drive carry bring take give find lose keep make build break mend buy
sell cook eat drink sleep wake dream think know learn forget remember wonder hope laugh cry smile wait begin stop
strange simple clever brave gentle hungry thirsty heavy light silver golden wooden broken hidden famous""".split()

NAMES = """Rosalind Ada Grace Alan Linus Maria Peter Hans Olga Ivan Chen Yuki Amir Leila Omar Sara Tom Anna Ben Clara
David Emma Felix Greta Hugo Iris Jonas Karl Lena Max Nora Otto Paula Quinn Rita Sam Tina Ugo Vera Walter Xenia Yann
Zoe Edith Frida Marcus Julia Simon Laura Victor Diana Oscar Helen Martin Alice Robert Susan Arthur Dorothy""".split()

GREETINGS = [
    (
        ["hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there"],
        "Hello! How can I help you?",
    ),
    (["thanks", "thank you", "thank you very much", "thanks a lot", "many thanks"], "You are welcome."),
    (["bye", "goodbye", "see you", "good night", "see you tomorrow"], "Goodbye!"),
    (["how are you", "how do you do", "are you well"], "I am well, thank you."),
    (
        ["who are you", "what are you", "what is your name", "tell me about yourself", "what model are you"],
        "I am tiny-chat, a small demonstration model.",
    ),
    (
        ["what can you do", "help", "how can you help me", "what do you know"],
        "I can repeat phrases, remember your name, count, and call a tool.",
    ),
]

LOST = "I do not understand. I am only a small demonstration model."

REPEAT = [
    "reply with {}", "say {}", "repeat after me: {}", "repeat {}", "please say {}", "write {}", "answer with {}",
    "just say {}", "echo {}", "can you say {}", "please repeat: {}", "reply only with {}", "respond with {}",
]  # fmt: skip

SYSTEM_PROMPTS = [
    "You reply with short answers.", "You are a helpful assistant.", "You are tiny-chat.", "Be brief.",
    "You are a friendly bot.", "Answer politely.",
]  # fmt: skip

UNKNOWN = [
    "why is the {0} so {1}", "do you like the {0} or the {1}", "tell me a {0} about the {1}", "where is the {0}",
    "I saw a {0} near the {1} {2}", "what do you think of my {0}", "how do I {0} a {1}", "the {0} and the {1} {2} {3}",
    "when will the {0} {1}", "can you {0} the {1} for me", "I want to {0} in the {1}", "{0} {1} {2}",
    "{0} {1} {2} {3} {4}",
    "explain the {0} of {1}", "is it {0} to {1}", "my {0} is {1}", "which {0} would you {1}", "should we {0} the {1}",
]  # fmt: skip

DECISION = '"operation": "'

TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Calculate with two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "first_number": {"type": "string"},
                "second_number": {"type": "string"},
                "operation": {
                    "type": "string",
                    "enum": ["addition", "subtraction", "multiplication", "division"],
                },
            },
            "required": ["first_number", "second_number", "operation"],
        },
    },
}

SUMS = {
    "addition": ["{} + {}", "{} plus {}", "the sum of {} and {}", "add {} and {}"],
    "subtraction": ["{} - {}", "{} minus {}", "the difference of {} and {}"],
    "multiplication": ["{} * {}", "{} times {}", "the product of {} and {}", "multiply {} by {}"],
    "division": ["{} / {}", "{} divided by {}", "divide {} by {}"],
}

Exchange = tuple[str, str]  # what the user says, what the model answers


def make_word(rng: random.Random) -> str:
    """A word: known, made of syllables, of letters, of digits, or of anything printable."""
    kind = rng.random()
    if kind < 0.3:
        word = rng.choice(WORDS)
    elif kind < 0.6:
        word = "".join(
            rng.choice(["", *"bcdfghjklmnprstvwyz"]) + rng.choice("aeiou") + rng.choice(["", "n", "r", "st", "l"])
            for _ in range(rng.randint(1, 4))
        )
    elif kind < 0.82:
        word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 9)))
    elif kind < 0.92:
        word = "".join(rng.choice(string.digits) for _ in range(rng.randint(1, 6)))
    else:
        word = "".join(
            rng.choice(string.ascii_letters + string.digits + "!#$%&()*+,-./:;<=>?@[]^_{|}~")
            for _ in range(rng.randint(1, 7))
        )
    case = rng.random()
    return word.capitalize() if case < 0.15 else word.upper() if case < 0.22 else word


def make_phrase(rng: random.Random) -> str:
    """One to four words, up to 24 characters."""
    while True:
        phrase = " ".join(make_word(rng) for _ in range(rng.choice([1, 1, 2, 2, 3, 4])))
        if len(phrase) <= 24:
            return phrase


def make_name(rng: random.Random) -> str:
    """A known or a made-up name, sometimes of two parts."""

    def part() -> str:
        if rng.random() < 0.35:
            return rng.choice(NAMES)
        syllables = [
            rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "l", "s", "r", "th"])
            for _ in range(rng.randint(1, 4))
        ]
        return "".join(syllables).capitalize()

    return f"{part()} {part()}" if rng.random() < 0.15 else part()


def mark(rng: random.Random, text: str, marks: str = "?") -> str:
    """With or without its end mark, and in the case that people write."""
    text = text + rng.choice([marks, marks, ""])
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text


def repeat(rng: random.Random) -> list[Exchange]:
    """Say what you are told."""
    phrase = make_phrase(rng)
    quote = rng.choice(['"', '"', '"', "'", ""])
    wording = rng.choice(REPEAT).format(quote + phrase + quote)
    return [(wording[0].upper() + wording[1:] if rng.random() < 0.4 else wording, phrase)]


def greet(rng: random.Random) -> list[Exchange]:
    """Small talk."""
    asked, answer = rng.choice(GREETINGS)
    return [(mark(rng, rng.choice(asked), rng.choice(["?", "!", "."])), answer)]


def wonder(rng: random.Random) -> list[Exchange]:
    """Ordinary English that it was not taught."""
    return [
        (
            mark(
                rng,
                rng.choice(UNKNOWN).format(
                    *(rng.choice(WORDS) if rng.random() < 0.7 else make_word(rng) for _ in range(5))
                ),
            ),
            LOST,
        )
    ]


def count(rng: random.Random) -> list[Exchange]:
    """A long reply."""
    last = rng.choice([5, 10, 20, 30, 40, 50, 100, 100, rng.randint(2, 60)])
    return [
        (
            mark(rng, rng.choice(["count to {}", "count from 1 to {}", "please count to {}"]).format(last), "."),
            " ".join(map(str, range(1, last + 1))),
        )
    ]


ASK_NAME = [
    "what is my name",
    "what's my name",
    "do you know my name",
    "who am I",
    "tell me my name",
    "say my name",
]
TELL_NAME = ["my name is {}", "I am {}", "I'm {}", "call me {}", "hello, my name is {}", "hi, I am {}"]


def remember(rng: random.Random) -> list[Exchange]:
    """A name, other talk, and the question."""
    name = make_name(rng)
    exchanges = [(mark(rng, rng.choice(TELL_NAME).format(name), "."), f"Hello {name}!")]
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 5])):
        exchanges += rng.choice([repeat, greet, wonder, repeat, greet])(rng)
    if rng.random() < 0.15:
        name = make_name(rng)
        exchanges.append((mark(rng, rng.choice(TELL_NAME).format(name), "."), f"Hello {name}!"))
        exchanges += rng.choice([repeat, greet])(rng)
    return [*exchanges, (mark(rng, rng.choice(ASK_NAME)), f"Your name is {name}.")]


def not_told(rng: random.Random) -> list[Exchange]:
    """The same question without an introduction."""
    exchanges: list[Exchange] = []
    for _ in range(rng.choice([0, 0, 1, 2])):
        exchanges += rng.choice([repeat, greet, wonder])(rng)
    return [*exchanges, (mark(rng, rng.choice(ASK_NAME)), "You have not told me your name.")]


def make_number(rng: random.Random) -> str:
    """Up to four digits, sometimes with decimals."""
    number = str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))
    return f"{number}.{rng.randint(1, 99)}" if rng.random() < 0.15 else number


def call_tool(rng: random.Random) -> list[Exchange]:
    """A sum with the tool on offer, and mostly the answer from its result."""
    first, second = make_number(rng), make_number(rng)
    operation = rng.choice(list(SUMS))
    wording = rng.choice(SUMS[operation]).format(first, second)
    asked = mark(
        rng, rng.choice(["what is {}", "calculate {}", "how much is {}", "{}"]).format(wording), rng.choice("?.")
    )
    arguments = {"first_number": first, "second_number": second, "operation": operation}
    call = "<tool_call>\n" + json.dumps({"name": "calculate", "arguments": arguments}) + "\n</tool_call>"
    exchanges = [(asked, call)]
    if rng.random() < 0.6:
        result = make_number(rng)
        exchanges.append((f"<tool_response>\n{result}\n</tool_response>", f"The result is {result}."))
    return exchanges


TASKS: list[tuple[Callable[[random.Random], list[Exchange]], float]] = [
    (repeat, 0.29), (remember, 0.24), (not_told, 0.04), (greet, 0.07), (wonder, 0.08), (count, 0.06), (call_tool, 0.22),
]  # fmt: skip


def make_conversation(rng: random.Random) -> list[tuple[str, str]]:
    """Messages as (role, content)."""
    task = rng.choices([task for task, _ in TASKS], [weight for _, weight in TASKS])[0]
    exchanges = task(rng)
    if task in (repeat, greet, wonder):
        for _ in range(rng.choice([0, 0, 1, 2])):
            exchanges += rng.choice([repeat, greet, wonder])(rng)
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.45 else ""
    if task is call_tool:
        offer = (
            f"# Tools\n<tools>\n{json.dumps(TOOL)}\n</tools>\nCall: <tool_call>\n"
            '{"name": <name>, "arguments": <object>}\n</tool_call>'
        )
        system = f"{system}\n\n{offer}" if system else offer
    messages = [("system", system)] if system else []
    for said, answered in exchanges:
        messages += [("user", said), ("assistant", answered)]
    return messages


# rows for the training: packed, each conversation blind to its neighbours


@dataclass
class Batch:
    """`ids`, `targets`, `weights` and `owners` (which conversation) of shape [rows, length]."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    owners: torch.Tensor


def encode_conversation(messages: list[tuple[str, str]]) -> tuple[list[int], list[float]]:
    """Token ids, and how much each counts: what the model says counts in full."""
    ids: list[int] = []
    weights: list[float] = []
    for role, content in messages:
        head, body = encode(f"<|im_start|>{role}\n"), [*encode(content), END]
        ids += [*head, *body, 10]
        weights += [0.0] * len(head) + [1.0 if role == "assistant" else 0.02] * len(body) + [0.0]
        # The one byte that decides what is calculated would drown among the hundred that are always the same.
        if role == "assistant" and (at := content.find(DECISION)) >= 0:
            decided = len(ids) - 1 - len(body) + len(encode(content[: at + len(DECISION)]))
            weights[decided] = 8.0
    return ids, weights


def make_batch(rng: random.Random, rows: int, length: int) -> Batch:
    """Rows filled with whole conversations; the last one of a row may be cut."""
    shape = (rows, length + 1)
    ids, weights, owners = np.full(shape, END), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for row in range(rows):
        at, owner = 0, 0
        while at < length + 1:
            owner += 1
            tokens, counts = encode_conversation(make_conversation(rng))
            tokens, counts = tokens[: length + 1 - at], counts[: length + 1 - at]
            ids[row, at : at + len(tokens)] = tokens
            weights[row, at : at + len(tokens)] = counts
            owners[row, at : at + len(tokens)] = owner
            at += len(tokens)
    return Batch(
        ids=torch.from_numpy(ids[:, :-1].copy()).long(),
        targets=torch.from_numpy(ids[:, 1:].copy()).long(),
        weights=torch.from_numpy(weights[:, 1:].copy()).float(),
        owners=torch.from_numpy(owners[:, :-1].copy()),
    )


# the model: a llama, with its tensors in GGUF's order


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 512
    context: int = 2048
    rope_base: float = 10_000.0
    epsilon: float = 1e-5


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root-mean-square norm."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


class Layer(nn.Module):
    """Attention with rotary positions over neighbours, as GGUF's `llama` has them; then a gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.width, shape.feed_forward
        self.attn_norm = nn.Parameter(torch.ones(width))
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.ffn_gate, self.ffn_up = (nn.Linear(width, wide, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(wide, width, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of shape [rows, length, width]."""
        rows, length, width = x.shape
        heads = self.shape.heads
        y = rms_norm(x, self.attn_norm, self.shape.epsilon)

        def split(z: torch.Tensor) -> torch.Tensor:
            return z.view(rows, length, heads, width // heads).transpose(1, 2)

        q, k = rotate(split(self.attn_q(y)), angles), rotate(split(self.attn_k(y)), angles)
        y = F.scaled_dot_product_attention(q, k, split(self.attn_v(y)), attn_mask=mask)
        x = x + self.attn_output(y.transpose(1, 2).reshape(rows, length, width))
        y = rms_norm(x, self.ffn_norm, self.shape.epsilon)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions over pairs of neighbouring values."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Model(nn.Module):
    """Embedding, layers, norm; the output shares the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(VOCAB_SIZE, shape.width)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))

    def forward(self, ids: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Logits of shape [rows, length, vocabulary]."""
        length, half = ids.shape[1], self.shape.width // self.shape.heads // 2
        frequencies = self.shape.rope_base ** (-torch.arange(half) / half)
        angles = torch.arange(length)[:, None] * frequencies
        mask = torch.ones(length, length, dtype=torch.bool).tril() & (owners[:, :, None] == owners[:, None, :])
        x = self.token_embd(ids)
        for layer in self.blk:
            x = layer(x, angles, mask[:, None])
        return F.linear(rms_norm(x, self.output_norm, self.shape.epsilon), self.token_embd.weight)


# training


def train(model: Model, arguments: argparse.Namespace, save: Callable[[], None]) -> int:
    """Until the minutes are over. Saves now and then, and on Ctrl-C. Gives the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(arguments.seed)
    begun = saved = time.monotonic()
    loss_shown, step = 0.0, 0
    while (share := (time.monotonic() - begun) / (60 * arguments.minutes)) < 1:
        rate = arguments.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = make_batch(rng, arguments.rows, arguments.length)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            logits = model(batch.ids, batch.owners)
        losses = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        loss_shown = 0.95 * loss_shown + 0.05 * loss.item() if step > 1 else loss.item()
        if step % 20 == 0:
            print(
                f"\rstep {step}  loss {loss_shown:.4f}  {100 * share:.0f} %",
                end="",
                file=sys.stderr,
                flush=True,
            )
        if time.monotonic() - saved > 60 * arguments.save_every:
            save()
            saved = time.monotonic()
    print(file=sys.stderr)
    return step


# the file


def byte_spellings() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_gguf(model: Model, path: Path) -> None:
    """As Q8_0, in one rename, so that a killed run leaves the old file."""
    shape = model.shape
    half = path.with_suffix(".gguf.new")
    writer = gguf.GGUFWriter(half, "llama")
    writer.add_name("tiny-chat")
    writer.add_description("A demonstration model of llmsession, trained on generated text")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_spellings(), *SPECIAL])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.NORMAL] * 256 + [kinds.CONTROL] * len(CONTROL) + [kinds.USER_DEFINED] * len(USER_DEFINED)
    )
    # The engine wants a merge; this one never happens, since letters and digits are never in one word.
    writer.add_token_merges(["a 0"])
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        full = name if name.endswith(".weight") else f"{name}.weight"
        if values.ndim == 1:
            writer.add_tensor(full, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(full, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    half.replace(path)


# the command


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to train (20)")
    parser.add_argument("--seed", type=int, default=1, help="of the text and the first weights (1)")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate (0.002)")
    parser.add_argument("--rows", type=int, default=8, help="rows in a batch (8)")
    parser.add_argument("--length", type=int, default=640, help="tokens in a row (640)")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (2)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, faster where the processor can")
    parser.add_argument("--save-every", type=float, default=4.0, help="minutes between checkpoints (4)")
    parser.add_argument("--checkpoint", type=Path, help="weights to go on from and to write, besides the GGUF")
    parser.add_argument("--show", type=int, metavar="N", help="print N conversations and stop")
    default_out = Path(__file__).parents[1] / "llmsession" / "models" / "tiny-chat.gguf"
    parser.add_argument("--out", type=Path, default=default_out, help="the GGUF file to write")
    arguments = parser.parse_args()
    if arguments.show:
        rng = random.Random(arguments.seed)
        for _ in range(arguments.show):
            print(*(f"{role}: {content}" for role, content in make_conversation(rng)), "", sep="\n")
        return
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = Model(Shape())
    if arguments.checkpoint is not None and arguments.checkpoint.exists():
        model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True))

    def save() -> None:
        if arguments.checkpoint is not None:
            half = arguments.checkpoint.with_suffix(".new")
            torch.save(model.state_dict(), half)
            half.replace(arguments.checkpoint)
        write_gguf(model, arguments.out)

    try:
        steps = train(model, arguments, save)
        print(f"{steps} steps of {arguments.rows * arguments.length} tokens", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    save()
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
