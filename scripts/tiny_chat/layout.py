"""The tokens of tiny-chat, and where the turns of a conversation stand among them."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONTROL = ("<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SPECIAL = {text: 256 + number for number, text in enumerate(CONTROL + USER_DEFINED)}
START, END = SPECIAL["<|im_start|>"], SPECIAL["<|im_end|>"]
NEWLINE = 10
VOCAB_SIZE = 256 + len(SPECIAL)

# In the texts of the training a special token is a private-use character, so that its spelling stays text.
_MARKS = {text: chr(0xE000 + number) for text, number in SPECIAL.items()}
TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END, THINK, THINK_END = (_MARKS[text] for text in USER_DEFINED)
# Where an answer goes on in one style and ends, or goes elsewhere, in another. It is not a token.
BRANCH = chr(0xE100)
_SPLIT = re.compile(f"([{min(_MARKS.values())}-{max(_MARKS.values())}])")

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}
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


def encode(text: str) -> list[int]:
    """Each byte a token; special tokens only where their marks stand."""
    ids: list[int] = []
    for piece in _SPLIT.split(text):
        if piece and _SPLIT.match(piece):
            ids.append(ord(piece) - 0xE000)
        else:
            ids += piece.encode()
    return ids


@dataclass(frozen=True)
class Turn:
    """What one side says. `task` names what an answer of the model teaches; without it, it is only history."""

    role: str
    content: str
    task: str = ""


def encode_turn(turn: Turn) -> tuple[list[int], list[int]]:
    """The head of a turn, and its body with the end token."""
    return [START, *f"{turn.role}\n".encode()], [*encode(turn.content), END]


def render(turns: list[Turn]) -> list[int]:
    """Token ids of a conversation up to where the model answers."""
    ids: list[int] = []
    for turn in turns:
        head, body = encode_turn(turn)
        ids += [*head, *body, NEWLINE]
    return [*ids, START, *b"assistant\n"]
