"""`llmsession models verify`: compares a prompt encoding with the model's own template."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.cli.start import shown_progress
from llmsession.models.encoding import PromptEncoding
from llmsession.session.config.options import Options
from llmsession.session.session import Session
from llmsession.types.errors import ConfigError, ServerError
from llmsession.types.messages import Message

CONVERSATIONS: dict[str, list[Message]] = {
    "a question": [Message.user("Hi, who are you?")],
    "with a system prompt": [Message.system("Be brief."), Message.user("Hi, who are you?")],
    "two turns": [Message.user("Hi"), Message.assistant("Hello!"), Message.user("And now?")],
    "three turns, with a system prompt": [
        Message.system("Be brief."),
        Message.user("Hi"),
        Message.assistant("Hello!"),
        Message.user("2 + 2?"),
        Message.assistant("4."),
        Message.user("Thanks"),
    ],
}
# Characters shown on each side of the first difference.
AROUND = 40


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of one conversation. `at`: the first token that differs; None if all are equal.

    `theirs`: None if the model's template refuses the conversation, which counts as equal.
    """

    conversation: str
    equal: bool
    ours: str
    theirs: str | None
    our_ids: list[int]
    their_ids: list[int]
    at: int | None = None


def verify_model(model: str | None, *, registry: Path | None, encoding: str | None, as_json: bool) -> bool:
    """Print the comparison, and return whether all conversations are equal. Raises LLMSessionError."""
    given: dict[str, Any] = {"model": model, "registry": registry, "prompt_encoding": encoding}
    given = {name: value for name, value in given.items() if value is not None}
    options = Options.load(**given, parallel=1, context_length=512)
    compared = anyio.run(_compare_all, options)
    if as_json:
        print(msgspec.json.encode(compared).decode())  # noqa: T201
    else:
        for each in compared:
            _print(each)
    return all(each.equal for each in compared)


async def _compare_all(options: Options) -> list[Compared]:
    with contextlib.ExitStack() as starting:
        options = msgspec.structs.replace(options, on_progress=starting.enter_context(shown_progress()))
        async with Session(options) as session:
            starting.close()
            if session.encoding is None:
                raise ConfigError(
                    f"{session.model} has no prompt encoding: it is prompted by its own template "
                    "(--encoding names one to compare)"
                )
            if session.info.chat_template is None:
                raise ConfigError(f"{session.model} carries no template that its encoding could be compared with")
            return [await _compare(session, session.encoding, name) for name in CONVERSATIONS]


async def _compare(session: Session, encoding: PromptEncoding, name: str) -> Compared:
    messages = CONVERSATIONS[name]
    ours = encoding.render(messages)
    our_ids = await session.tokenize(ours, special=True)
    try:
        theirs = await session.render_template(messages)
    except ServerError:  # some templates refuse a system prompt
        return Compared(conversation=name, equal=True, ours=ours, theirs=None, our_ids=our_ids, their_ids=[])
    their_ids = await session.tokenize(theirs, special=True)
    bos = session.special_tokens["bos"]
    # It makes no difference to the model whether the template writes the first token or leaves it to the engine.
    our_ids, their_ids = (ids[1:] if ids[:1] == [bos] else ids for ids in (our_ids, their_ids))
    at = next((n for n, pair in enumerate(zip(our_ids, their_ids, strict=False)) if len({*pair}) > 1), None)
    if at is None and len(our_ids) != len(their_ids):
        at = min(len(our_ids), len(their_ids))
    return Compared(
        conversation=name, equal=at is None, ours=ours, theirs=theirs, our_ids=our_ids, their_ids=their_ids, at=at
    )


def _print(compared: Compared) -> None:
    say: Any = print
    if compared.theirs is None:
        say(f"no form   {compared.conversation}: the model's template refuses it")
        return
    say(f"{'equal  ' if compared.equal else 'DIFFERS'}   {compared.conversation} ({len(compared.our_ids)} tokens)")
    if compared.at is None:
        return
    start = next(
        (n for n, pair in enumerate(zip(compared.ours, compared.theirs, strict=False)) if len({*pair}) > 1),
        min(len(compared.ours), len(compared.theirs)),
    )
    begin = max(0, start - AROUND)
    for who, text, ids in (
        ("encoding", compared.ours, compared.our_ids),
        ("template", compared.theirs, compared.their_ids),
    ):
        say(f"  {who}  {text[begin : start + AROUND]!r}")
        say(f"  {'':8}  from token {compared.at}: {ids[compared.at : compared.at + 8]}")
