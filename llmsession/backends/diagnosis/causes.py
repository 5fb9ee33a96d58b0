"""Turns an engine's exit code and the end of its log into one sentence: what happened, and what to do. Does no I/O."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import msgspec

from llmsession.backends.diagnosis.exit_codes import describe_signal
from llmsession.backends.diagnosis.loader import explain_loader
from llmsession.backends.diagnosis.log_patterns import Kind, find_saying
from llmsession.backends.launch import Launch
from llmsession.models.memory_advice import describe_need, suggest_fit
from llmsession.processes.child import describe_exit
from llmsession.types.errors import (
    BackendError,
    ConfigError,
    InvalidModelError,
    LLMSessionError,
    NotEnoughMemoryError,
    StartFailedError,
)
from llmsession.types.units import describe_size

# The name of an engine in messages, and how to get a newer one.
_CALLED = {"embedded": "the embedded engine"}
_NEWER = {
    "embedded": 'the build is older than the model: pip install -U "llmsession[embedded]" brings a newer one',
    "llama-server": "the build is older than the model: put a newer one on PATH, or name it with server_path=",
}
_PARSER = re.compile(r"parser: (.+)")
# A process that is ended from outside does not log the reason.
_FROM_OUTSIDE = tuple(-getattr(signal, name, 0) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"))


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine exited. `returncode`: its exit code, −N for signal N; `words`: the end of its log.

    `free_bytes`: memory that is free now. `memory_kills`: how many processes the kernel killed for lack of memory while
    the engine ran.
    """

    backend: str
    returncode: int | None
    words: str
    free_bytes: int = 0
    memory_kills: int = 0

    @property
    def who(self) -> str:
        """The engine's name at the beginning of a sentence."""
        return _CALLED.get(self.backend, self.backend)

    @property
    def killed_for_memory(self) -> bool:
        """Whether the kernel killed it for lack of memory."""
        return self.memory_kills > 0 and self.returncode == -getattr(signal, "SIGKILL", 9)


class Cause(msgspec.Struct, frozen=True):
    """Why an engine exited. `what`: the cause as a clause; `advice`: the next step."""

    kind: Kind
    what: str
    advice: str = ""


def find_cause(death: Death, launch: Launch) -> Cause | None:
    """Return the cause, from the log or else from the exit code; None if neither shows it."""
    if death.returncode not in _FROM_OUTSIDE:
        if (loader := explain_loader(death.words, death.backend)) is not None:
            return Cause("engine", *loader)
        if (flag := _FLAG.search(death.words)) is not None:
            return _blame_flag(flag, death, launch)
        if (said := find_saying(death.words)) is not None:
            saying, found = said
            known = _known(found, death, launch)
            what = saying.what.format(*found.groups(""), **known).replace(" ()", "")
            return Cause(saying.kind, what, saying.advice.format(**known))
    if death.killed_for_memory:
        return Cause("memory", "")
    if (ended := describe_signal(death.returncode, death.backend)) is not None:
        return Cause("engine", *ended)
    return None


def _known(found: re.Match[str], death: Death, launch: Launch) -> dict[str, object]:
    """Return the values that the text of a saying may refer to."""
    parser = _PARSER.search(death.words)
    return {
        "model": launch.model_path,
        "context": launch.context_length,
        "parallel": launch.parallel,
        "newer": _NEWER.get(death.backend, ""),
        "any": ": ".join(group.strip() for group in found.groups() if group),
        "parser": parser[1] if parser is not None else "",
    }


def explain_start(death: Death, launch: Launch, *, log: Path) -> LLMSessionError | None:
    """Return the error that says why an engine did not start; None if the cause is not known."""
    cause = find_cause(death, launch)
    if cause is None:
        return None
    if cause.kind == "memory":
        return not_enough_memory(launch, death.free_bytes, story=f"{_ran_out(death)}: ")
    if cause.kind == "device memory":
        return _not_enough_on_gpu(launch)
    sentence = "; ".join(filter(None, (cause.what, cause.advice)))
    if cause.kind == "model":
        path = launch.model_path
        return InvalidModelError(f"{path} is not a usable model: {sentence}", path=path, reason=sentence)
    if cause.kind == "option":
        return ConfigError(sentence)
    return StartFailedError(
        f"{death.who} did not start: {sentence} (all it said is in {log})",
        returncode=death.returncode,
        log_tail=death.words,
    )


def describe_death(
    returncode: int | None,
    log_tail: str,
    launch: Launch | None,
    *,
    backend: str,
    doing: str = "while it replied",
    memory_kills: int = 0,
) -> str:
    """Describe how an engine that was ready exited, and why, if that is known: a sentence without its full stop."""
    death = Death(backend=backend, returncode=returncode, words=log_tail, memory_kills=memory_kills)
    cause = find_cause(death, launch) if launch is not None else None
    story = f"{death.who} {describe_exit(returncode)} {doing}"
    if cause is None or launch is None:
        return story
    if cause.kind == "memory":
        return f"{_ran_out(death)} {doing} ({launch.alias} needs {_need(launch)[0]})"
    if cause.kind == "device memory":
        return f"{death.who} ran out of the GPU's memory {doing} ({launch.alias} needs {_need(launch)[0]})"
    return f"{story}: {'; '.join(filter(None, (cause.what, cause.advice)))}"


def not_enough_memory(launch: Launch, free: int, *, story: str = "", advice: str = "") -> NotEnoughMemoryError:
    """Return the error with the needed and the free bytes, and a suggestion of what would fit.

    If the engine ran out of memory although enough is free, an unknown limit applies: then the suggestion is for half
    of what was needed.
    """
    words, needed = _need(launch)
    suggestion = "a smaller model"
    if launch.info is not None:
        room = free if free < needed else needed // 2
        suggestion = suggest_fit(launch.info, launch.context_length, launch.parallel, room)
    return NotEnoughMemoryError(
        f"{story}{launch.alias} needs {words}, and {describe_size(free)} are free: {suggestion} would fit{advice}",
        needed_bytes=needed,
        free_bytes=free,
        suggestion=suggestion,
    )


def _not_enough_on_gpu(launch: Launch) -> BackendError:
    words, needed = _need(launch)
    suggestion = "less context_length or parallel, or a file of fewer bits"
    return NotEnoughMemoryError(
        f"the GPU's memory does not hold {launch.alias}, which needs {words}: take {suggestion}, or put fewer of its "
        "layers there",
        needed_bytes=needed,
        free_bytes=0,
        suggestion=suggestion,
    )


def _ran_out(death: Death) -> str:
    return f"{death.who} " + (
        "was killed by the kernel for lack of memory" if death.killed_for_memory else "ran out of memory"
    )


def _need(launch: Launch) -> tuple[str, int]:
    """Return the memory that the launch needs, in words and in bytes; 0 bytes if it is not known."""
    if launch.info is None:
        return "more", 0
    asked = (launch.context_length, launch.parallel)
    return describe_need(launch.info, *asked), launch.info.memory_needed(*asked)


# The errors of llama-server's argument parser, in its forms since 2024.
_FLAG = re.compile(
    r'^error(?:: (?:invalid|unknown) argument: (?P<unknown>\S+)'
    r'| while handling argument "(?P<bad>[^"]+)": (?:error: )?(?P<why>.+))',
    re.MULTILINE,
)  # fmt: skip
_NO_NUMBER = ("stoi", "stol", "stof", "stod", "stoull")


def _blame_flag(found: re.Match[str], death: Death, launch: Launch) -> Cause:
    """Return the cause for a refused flag: one of the user's, or one of the session's that this build does not take."""
    flag, why = found["unknown"] or found["bad"], (found["why"] or "").strip()
    if flag == "--ctx-size" and why in _NO_NUMBER:
        asked = f"context_length={launch.context_length} times parallel={launch.parallel}"
        return Cause("option", f"{asked} is more than an engine can count", "ask for less")
    theirs = any(argument.partition("=")[0].replace("_", "-") == flag for argument in launch.extra_args)
    if not theirs:
        what = f"it does not take {flag}, which we give it" + (f" ({why})" if why else "")
        return Cause("engine", what, "take another build of llama.cpp")
    if found["unknown"]:
        return Cause("option", f"extra_args: this {death.backend} knows no {flag}", "its --help names those it knows")
    if "has been removed" in why:
        return Cause("option", f"extra_args: this {death.backend} has no {flag} any more", why.partition(". ")[2])
    reason = "this is not a number that it can take" if why in _NO_NUMBER else why
    return Cause("option", f"extra_args: {flag}: {reason}", f"its --help says what {flag} takes")
