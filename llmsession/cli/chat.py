"""`llmsession chat`: a chat in the terminal."""

from __future__ import annotations

import contextlib
import getpass
import os
from pathlib import Path
from typing import Any

import anyio
import msgspec

from llmsession.cli.start import load_options, say, started
from llmsession.session.config.options import Options
from llmsession.system.paths import cache_folder
from llmsession.terminal.reply_view import Reasoning
from llmsession.types.errors import UsageError


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """Where a conversation is kept between runs, and whose it is. `user`: None for the current user of the machine."""

    memory: Path | None = None
    user: str | None = None
    channel: str | None = None


def run_chat(
    *,
    options: dict[str, Any],
    locked: bool,
    config: Path | None,
    system: str | None,
    remembered: Remembered,
    color: bool,
    reasoning: Reasoning,
    keywords: dict[str, Any],
    verbose: bool,
) -> None:
    """Chat until the input ends.

    Raises LLMSessionError, and KeyboardInterrupt after Ctrl-C while there is neither a reply nor an input prompt.
    """
    if remembered.memory is None and (remembered.user is not None or remembered.channel is not None):
        raise UsageError("--user and --channel name a conversation in the file of --memory: give that as well")
    if not color:  # set here, so that it also applies to the progress bar while the model loads
        os.environ["NO_COLOR"] = "1"
    opening = {"verbose": verbose, "locked": locked}
    shown = {"reasoning": reasoning, "keywords": keywords}
    anyio.run(_chat, load_options(options, config), system, remembered, shown, opening)


async def _chat(
    options: Options,
    system: str | None,
    remembered: Remembered,
    shown: dict[str, Any],
    opening: dict[str, bool],
) -> None:
    from llmsession.chat.chat import Chat
    from llmsession.memory.conversation import Conversation
    from llmsession.memory.memory import Memory
    from llmsession.terminal.interact import interact

    async with contextlib.AsyncExitStack() as stack:
        if remembered.memory is None:
            memory, conversation = None, Conversation.in_ram(system)
        else:
            memory = await stack.enter_async_context(Memory.open(remembered.memory))
            user = remembered.user if remembered.user is not None else _login()
            conversation = await memory.get(user, remembered.channel or "", system_prompt=system)
            if system is not None and conversation.system_prompt != system:
                await conversation.set_system_prompt(system)
        session = await stack.enter_async_context(started(options, **opening))
        if (advice := await _advise(options, session.backend)) is not None:
            say(f"this machine seems to have a GPU that is not used: {advice}")
        chat = Chat(session, conversation)
        await interact(chat, memory=memory, system_prompt=system, cache_dir=options.cache_dir, **shown)


async def _advise(options: Options, backend: str) -> str | None:
    """Return advice on how to use the GPU of this machine, if the running engine does not."""
    if backend not in ("llama-server", "embedded"):  # a remote server has its own devices; the others cannot be asked
        return None
    from llmsession.backends.survey import advise_gpu

    return await advise_gpu(
        cache=cache_folder(options.cache_dir),
        backend=options.backend,
        server_path=Path(options.server_path) if options.server_path is not None else None,
        device=str(options.device),
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "me"
