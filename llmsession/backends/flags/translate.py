"""Translates a command line of today's llama-server for an older or newer build. Unsupported flags are refused by name.

Options were renamed, removed, and given values that they did not take before: https://github.com/ggml-org/llama.cpp
(common/arg.cpp). A build's --help shows which ones it has.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Sequence

import msgspec

from llmsession.backends.flags.capabilities import Capabilities, Option
from llmsession.types.errors import ConfigError, UnsupportedFeatureError


class Argument(msgspec.Struct, frozen=True):
    """An option with its values."""

    flag: str
    values: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return the words of the command line."""
        return [self.flag, *self.values]


# Different spellings of the same option, of which a build has one or several.
_SYNONYMS = (
    ("--spec-draft-n-max", "--draft-max", "--draft-n", "--draft"),
    ("--spec-draft-n-min", "--draft-min", "--draft-n-min"),
    ("--spec-draft-p-min", "--draft-p-min"),
    ("--spec-draft-model", "--model-draft", "-md"),
    ("--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft", "-ngld"),
    ("--spec-draft-device", "--device-draft", "-devd"),
    ("--spec-draft-threads", "--threads-draft", "-td"),
    ("--spec-draft-type-k", "--cache-type-k-draft", "-ctkd"),
    ("--spec-draft-type-v", "--cache-type-v-draft", "-ctvd"),
    ("--ui", "--webui"),
    ("--no-ui", "--no-webui"),
    ("--verbosity", "--log-verbosity", "-lv"),
    ("--gpu-layers", "--n-gpu-layers", "-ngl"),
    ("--n-predict", "--predict", "-n"),
    ("--embeddings", "--embedding"),
    ("--reranking", "--rerank"),
    ("--mmproj", "-mm"),
    ("--flash-attn", "-fa"),
    ("--no-slots", "--slots-endpoint-disable"),
)
_SAME = {flag: group for group in _SYNONYMS for flag in group}

# Flags that take on, off or auto today; in older builds they had no value, and were off if not given.
_ONCE_BARE = {"--flash-attn", "-fa", "--log-colors"}
_ON = {"on", "true", "1", "enabled"}

# Today's load modes, as the flags of older builds.
_LOAD_MODES = {
    "auto": [],
    "mmap": [],
    "none": ["--no-mmap"],
    "mlock": ["--no-mmap", "--mlock"],
    "mmap+mlock": ["--mlock"],
}
# The reverse: today's load mode for each combination of the two old flags.
_OLD_LOAD_MODES = {
    frozenset({"--no-mmap"}): "none",
    frozenset({"--mlock"}): "mmap+mlock",
    frozenset({"--no-mmap", "--mlock"}): "mlock",
}
_EVERY_LAYER = "9999"

_IS_FLAG = re.compile(r"--?[A-Za-z]")


def read_arguments(words: Sequence[str]) -> list[Argument]:
    """Return the options with their values. Raises ConfigError if a word belongs to no option."""
    arguments: list[Argument] = []
    for word in words:
        if _IS_FLAG.match(word):
            if word.startswith("--"):
                word = word.replace("_", "-") if "=" not in word else word  # noqa: PLW2901 - as the engine reads it
            arguments.append(Argument(word))
        elif not arguments:
            raise ConfigError(f"extra_args begins with {word!r}, which is not a flag")
        else:
            last = arguments[-1]
            arguments[-1] = Argument(last.flag, (*last.values, word))
    return arguments


def translate(
    words: Sequence[str],
    capabilities: Capabilities,
    *,
    option: str | None = None,
    is_optional: bool = False,
    backend: str = "llama-server",
) -> list[str]:
    """Return what this build is given instead of these words; nothing if they are optional and it has none like them.

    Raises UnsupportedFeatureError, which names `option`, the keyword that asks for them.
    """
    try:
        return list(_translate_all(read_arguments(words), capabilities))
    except _LackingError as error:
        if is_optional:
            return []
        wish = f"so it cannot be given {option}" if option is not None else "which a session needs"
        raise UnsupportedFeatureError(
            f"this {backend} (version {capabilities.version}) {error}, {wish}: name a newer build with server_path=",
            feature=option or words[0],
            backend=backend,
        ) from None


def translate_extra(words: Sequence[str], capabilities: Capabilities, *, backend: str = "llama-server") -> list[str]:
    """Do the same for the user's own flags. Raises ConfigError, which proposes a similar spelling if there is one."""
    try:
        return list(_translate_all(read_arguments(words), capabilities))
    except _LackingError as error:
        raise ConfigError(f"extra_args: this {backend} (version {capabilities.version}) {error}{error.hint}") from None


class _LackingError(Exception):
    """What a build lacks, as the rest of a sentence about it, and a `hint` for who typed it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def _translate_all(arguments: Sequence[Argument], capabilities: Capabilities) -> Iterator[str]:
    for argument in _join_load_modes(arguments, capabilities):
        words = _translate(argument, capabilities)
        if words is None:
            raise _explain(argument, capabilities)
        yield from words


def _translate(argument: Argument, capabilities: Capabilities) -> list[str] | None:
    """Return the words for this build; None if it cannot do what the argument asks for."""
    flag, values = argument.flag, argument.values
    names = (flag, *_SAME.get(flag, ()))
    known = next((name for name in names if name in capabilities.by_flag), None)
    if known is None:
        return _say_otherwise(argument, capabilities)
    option = capabilities.by_flag[known]
    if flag in _ONCE_BARE and bool(values) != bool(option.takes):
        if not values:
            return [known, "on"]
        return [known] if values[0] in _ON else []
    if flag in _SAME["--verbosity"] and values and "info" not in option.text:
        # Before there were levels, the number was the amount of debug output, which includes prompts.
        return []
    if flag in _SAME["--gpu-layers"] and values in (("all",), ("auto",)) and "'all'" not in option.text:
        return [known, _EVERY_LAYER] if values[0] == "all" else []
    if flag == "--lora" and values and "comma" not in option.text:
        # Lists of files came late: before, each file had a flag of its own.
        return [word for path in next(csv.reader(values)) for word in (known, path)]
    if bool(values) != bool(option.takes) and not option.takes.startswith("["):
        return None
    return [known, *values]


def _say_otherwise(argument: Argument, capabilities: Capabilities) -> list[str] | None:
    """Return the words for a build that has no such option, but does the same with other flags, or by default."""
    has = capabilities.by_flag
    match argument:
        case Argument("--load-mode" | "-lm", (mode,)) if mode in _LOAD_MODES and has.keys() >= set(_LOAD_MODES[mode]):
            return _LOAD_MODES[mode]
        case Argument("--kv-offload" | "-kvo") if "--no-kv-offload" in has:
            return []
        case Argument("--spec-type", ("draft-simple",)) if "--model-draft" in has:
            return []
        case Argument("--fit" | "-fit", ("off",)):
            return []
        case Argument("--no-context-shift") if "--context-shift" in has:
            return []
    return None


def _join_load_modes(arguments: Sequence[Argument], capabilities: Capabilities) -> list[Argument]:
    """Join `--no-mmap` and `--mlock` into `--load-mode` for a build that has replaced them by it."""
    said = frozenset(argument.flag for argument in arguments if argument.flag in ("--no-mmap", "--mlock"))
    if not said or "--load-mode" not in capabilities.by_flag or said <= capabilities.by_flag.keys():
        return list(arguments)
    kept = [argument for argument in arguments if argument.flag not in said]
    return [*kept, Argument("--load-mode", (_OLD_LOAD_MODES[said],))]


def _explain(argument: Argument, capabilities: Capabilities) -> _LackingError:
    flag, values = argument.flag, argument.values
    known: Option | None = capabilities.by_flag.get(flag)
    if known is not None:
        if values:
            return _LackingError(f"takes nothing after {flag}, and was given {' '.join(values)!r}")
        return _LackingError(f"wants a value after {flag}: {known.takes}")
    for option in capabilities.removed:
        if flag in option.flags:
            words = option.text.partition(". ")[2].partition(" (env")[0]
            return _LackingError(f"has no {flag} any more; it says: {words}")
    if "=" in flag:
        return _LackingError(f"does not take {flag!r}: give the flag and its value as two arguments")
    near = difflib.get_close_matches(flag, capabilities.by_flag, n=1, cutoff=0.75)
    return _LackingError(f"has no {flag}", f"; did you mean {near[0]}?" if near else "")
