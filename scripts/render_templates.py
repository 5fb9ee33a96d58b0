"""Writes tests/unit/models/expected_renderings.json: what published chat templates make of the same conversations.

The folder holds FAMILY.jinja, and FAMILY.json with its `bos_token` and `eos_token`. A template is rendered as
transformers does it (https://huggingface.co/docs/transformers/chat_templating). This wants jinja2; llmsession does not.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2  # type: ignore[import-not-found]
import jinja2.sandbox  # type: ignore[import-not-found]

OUTPUT = Path(__file__).parents[1] / "tests" / "unit" / "models" / "expected_renderings.json"

# The families whose template and whose PromptEncoding both speak of tools; what is left out here is rendered for all.
TOOLS = {"qwen-2.5", "qwen-3", "tiny-chat"}

# Renderings that no PromptEncoding can equal, as a pattern of their names, with the reason. Where a template refuses a
# conversation, or where a page shows no form for it, the template raises and nothing need stand here.
LEFT_OUT = {
    "bagel": ("finished, .*", "between two turns stands what ends neither of them"),
    "llama-2": ("system, (white space|empty)", "the system text and the user's are trimmed as one"),
    "mistral-nemo": ("finished, system, .*", "after an answer the system text is nowhere"),
    "mistral-small": ("(?!.*system).*", "the default system prompt names today's date"),
    "mistral-v3": ("finished, system, .*", "as mistral-nemo"),
    "phi-3": ("finished, .*", "the end of all training texts is written out"),
    "phi-3.5": ("finished, .*|empty system", "as phi-3; and an empty system prompt is none"),
    "qwen-3": ("finished, .*", "the last answer gets an empty thought"),
    "solar": ("empty system", "an empty system prompt is none"),
}

# Llama 3.1's template falls back to this day; that of 3.2 asks for today.
TODAY = dt.date(2024, 7, 26)

Messages = list[dict[str, Any]]


class Conversation(NamedTuple):
    """What is said, with which tools on offer, and whether a reply is asked for."""

    messages: Messages
    tools: Messages | None = None
    reply: bool = True


def _say(*texts: str, system: str | None = None) -> Messages:
    """User and assistant by turns."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return before + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _tool(name: str, description: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _call(content: str, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made}


def _results(*contents: str) -> Messages:
    return [{"role": "tool", "tool_call_id": f"call{i:05}", "content": text} for i, text in enumerate(contents)]


def _plain() -> dict[str, Conversation]:
    talk = ("Hi", "Hello!", "2 + 2?", "4.", "And 3?", "7, then.", "Why?", "You asked.", "Bye")
    lines = (
        "One\n\n  {{ two }} {% three %}\n<b>{'q': \"ü\"}</b>",
        "Oui\u00a0: ça va\n```py\nx = {1: [2]}\n```\n\nend",
        "日本\\n\t{}\n.",
    )
    white = ("  a \n", "\n b  ", "\tc \n\n")
    found = {f"turns: {n}": Conversation(_say(*talk[: 2 * n - 1])) for n in range(1, 6)}
    found |= {f"finished, turns: {n}": Conversation(_say(*talk[: 2 * n]), reply=False) for n in (1, 3)}
    found |= {
        "line": Conversation(_say(lines[0])),
        "lines": Conversation(_say(*lines)),
        "empty": Conversation(_say("", "", "x")),
        "white space": Conversation(_say(*white)),
    }
    systems = {"lines": "Be é.\n\n{x}\nEnd.", "white space": " \nBe brief. \n"}
    for name, (messages, _, reply) in list(found.items()):
        system = {"role": "system", "content": systems.get(name, "Be brief.")}
        words = name.removeprefix("finished, ")
        found[name.replace(words, f"system, {words}")] = Conversation([system, *messages], reply=reply)
    return found | {"empty system": Conversation(_say("Hi", system=""))}


def _with_tools() -> dict[str, Conversation]:
    tools = [_tool("clock", "What time is it, où que ce soit?", "zone"), _tool("file", 'Reads "a file".', "path")]
    clock, file = ("clock", {"zone": "Zürich"}), ("file", {"path": "a {b}", "lines": [1, 2.5, None, True, {"x": ""}]})
    one = [*_say("What time is it?"), _call("", clock), *_results("12:00")]
    two = [*_say("Both, please."), _call("", clock, file), *_results("12:00", "a\n b \n{}")]
    text = [*_say("What time is it?"), _call("I look.", clock), *_results('{"time": "12:00"}')]
    system = _say(system="Be brief.")
    after = [{"role": "assistant", "content": "Noon."}, {"role": "user", "content": "Thanks"}]
    return {
        "tools": Conversation(_say("Hi"), tools),
        "tools, system": Conversation(_say("Hi", system="Be brief."), tools),
        "tools, empty system": Conversation(_say("Hi", system=""), tools),
        "tools, 3 turns": Conversation(_say("Hi", "Hello!", "2 + 2?", "4.", "Bye"), tools[:1]),
        "tools, call": Conversation(one, tools),
        "tools, two calls, system": Conversation([*system, *two], tools),
        "tools, call after text, answered": Conversation([*text, *after], tools),
        "call": Conversation([*system, *one]),
        "two calls": Conversation([*system, *two]),
        "call after text": Conversation([*system, *text]),
        "two calls, answered": Conversation([*system, *two, *after]),
        "two rounds of calls": Conversation([*system, *one, *two[1:]]),
    }


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _environment() -> Any:
    """As transformers sets one up."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def render_family(
    family: str, template: str, tokens: dict[str, str | None], conversations: dict[str, Conversation]
) -> dict[str, str]:
    """The rendering of each conversation that this family has a form for, by its name."""
    compiled = _environment().from_string(template)
    values = {name: token for name, token in tokens.items() if token is not None}
    pattern, reason = LEFT_OUT.get(family, ("(?!)", ""))
    rendered: dict[str, str] = {}
    why = {reason} - {""}
    for name, (messages, tools, reply) in conversations.items():
        if re.fullmatch(pattern, name):
            continue
        try:
            text = compiled.render(messages=messages, tools=tools, add_generation_prompt=reply, **values)
        except jinja2.TemplateError as error:
            why.add(str(error))
        else:
            rendered[name] = str(text)
    print(f"{family}: {len(rendered)} of {len(conversations)}" + "".join(f"; {each}" for each in sorted(why)))
    return rendered


def _write(conversations: dict[str, Conversation], renderings: dict[str, dict[str, str]]) -> str:
    """One conversation or rendering a line."""

    def lines(values: dict[str, Any], indent: str) -> str:
        return ",\n".join(f"{indent}{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items())

    said = {name: {k: v for k, v in c._asdict().items() if v not in (None, True)} for name, c in conversations.items()}
    families = [f"  {json.dumps(family)}: {{\n{lines(texts, '   ')}\n  }}" for family, texts in renderings.items()]
    together = ",\n".join(families)
    return f'{{\n "conversations": {{\n{lines(said, "  ")}\n }},\n "renderings": {{\n{together}\n }}\n}}\n'


def main() -> None:
    """Render every family in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where FAMILY.jinja and FAMILY.json are")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: the file that the tests read")
    options = parser.parse_args()
    plain, with_tools = _plain(), _with_tools()
    renderings = {}
    for path in sorted(options.folder.glob("*.jinja")):
        family, template = path.stem, path.read_text(encoding="utf-8")
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tokens = {name: described[name] for name in ("bos_token", "eos_token")}
        asked = plain | with_tools if family in TOOLS else plain
        renderings[family] = render_family(family, template, tokens, asked)
    options.output.write_text(_write(plain | with_tools, renderings), encoding="utf-8")


if __name__ == "__main__":
    main()
