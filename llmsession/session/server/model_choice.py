"""Resolves the options of a session: which model it runs, with which encoding, and with how much context."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import msgspec

from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.gguf import ModelInfo
from llmsession.models.lockfile import ref_of_cached
from llmsession.models.quantization import SUFFIX
from llmsession.models.references import SCHEME, PackedFileRef, PackedRepoRef, understand
from llmsession.models.registry import KnownLLM
from llmsession.models.registry_file import load_known_llms
from llmsession.models.safetensors import CONFIG, WeightsInfo
from llmsession.session.config.options import Options
from llmsession.types.errors import ConfigError, UnsupportedFeatureError
from llmsession.types.sampling import Sampling

# Tokens that a conversation may use by default: enough for a chat, without gigabytes of KV cache.
DEFAULT_CONTEXT = 8192

# What llama.cpp assumes if a model's file does not specify it.
ROPE_FREQ_BASE = 10000.0

_SHARD_OR_SUFFIX = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)

# The encoding of a base model, which has no roles.
BLANK = "blank"

TRANSFORMERS = "transformers"
# An older name of that backend, which is given in place of the model.
PYTHON = "python"


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model to run, and how it is prompted: by an `encoding`, or through the chat endpoint (None).

    Until it is downloaded, a model from Hugging Face has a `ref` and no `path`. The model of a remote server has
    neither, and gets its `name` once the server was asked. `sampling` is what the registry recommends. `is_weights`: it
    is a folder of safetensors, from the Hugging Face repository `repo` if that is set.
    """

    name: str
    path: Path | None = None
    ref: PackedFileRef | None = None
    encoding: PromptEncoding | None = None
    sampling: Sampling = Sampling()
    is_weights: bool = False
    repo: PackedRepoRef | None = None


def resolve_model(options: Options) -> ResolvedModel:
    """Return the model to run.

    Raises UnknownModelError, InvalidRefError, ConfigError, and UnsupportedFeatureError for an encoding with
    transformers.
    """
    given = _read_given(options)
    if options.backend == TRANSFORMERS or given == PYTHON or _is_of_weights(options, given):
        return _resolve_weights(options, given)
    if given is None or given == bundled.NAME:
        return ResolvedModel(name=bundled.NAME, path=bundled.bundled_path(), encoding=_encoding_of_bundled(options))
    if isinstance(given, Path):
        path = given.expanduser().absolute()
        model = _describe(options, find_known(options, path))
        return msgspec.structs.replace(model, name=path.stem or str(given), path=path)
    from llmsession.models.hub.ensure import resolve_ref

    registry = load_known_llms(options.registry)
    ref, known = resolve_ref(given, registry), registry.find(given)
    return msgspec.structs.replace(_describe(options, known), name=name_file(ref.basename), ref=ref)


def _read_given(options: Options) -> str | Path | None:
    """Return the model that was asked for: a path, or the text of a reference or an alias.

    An alias goes before a file of that name in the working directory; a path has a separator, or ends in `.gguf`.
    """
    given = options.model
    if given is None or isinstance(given, Path) or given in (bundled.NAME, PYTHON):
        return given
    text = given.strip()
    if text.startswith(SCHEME):
        return understand(text)
    looks_like_path = "/" in text or "\\" in text or text.lower().endswith(SUFFIX)
    if not looks_like_path:
        is_known = load_known_llms(options.registry).find(text) is not None
        return text if is_known or not Path(text).exists() else Path(text)
    path = Path(text).expanduser()
    understood = understand(text)
    return understood if understood.startswith(SCHEME) and not path.exists() else path


def find_known(options: Options, path: Path) -> KnownLLM | None:
    """Return the registry entry of a file in Hugging Face's cache, however it was asked for; None for any other."""
    if (ref := ref_of_cached(path)) is None:
        return None
    return load_known_llms(options.registry).find(ref)


def _is_of_weights(options: Options, given: str | Path | None) -> bool:
    """Whether the model is safetensors: a folder, a repository without a file, or a registry entry that says so."""
    if given is None:
        return False
    if isinstance(given, Path):
        return (given.expanduser() / CONFIG).is_file()
    if given.startswith(SCHEME):
        return given.count("/") == 1
    known = load_known_llms(options.registry).find(given)
    return known is not None and known.packaging_type == "safetensors"


def _resolve_weights(options: Options, given: str | Path | None) -> ResolvedModel:
    """Resolve a model for the backend transformers: safetensors, or a GGUF model whose original is in the registry."""
    if options.prompt_encoding not in (None, "chat"):
        raise UnsupportedFeatureError(
            'transformers writes prompts by the model\'s own template only: use prompt_encoding="chat"',
            feature="prompt_encoding",
            backend=TRANSFORMERS,
        )
    if given is None or given in (PYTHON, bundled.NAME):
        raise ConfigError(
            "transformers needs a model of safetensors, and the bundled one is a GGUF file: name the path of a folder, "
            f'hf:author/repo, or an alias whose upstream the registry knows, with backend="{TRANSFORMERS}"'
        )
    if isinstance(given, str) and given.startswith(SCHEME) and given.count("/") == 1:
        repo = PackedRepoRef(given)
        return ResolvedModel(name=repo.repo, repo=repo, is_weights=True)
    if isinstance(given, Path):
        path = given.expanduser().absolute()
        if path.is_file():
            raise ConfigError(f"transformers runs a folder of safetensors, and {path} is a file")
        return ResolvedModel(name=path.name, path=path, is_weights=True)
    return _resolve_original(options, given)


def _resolve_original(options: Options, given: str) -> ResolvedModel:
    """Resolve an alias, or the reference of a GGUF file, to the safetensors that it was made from."""
    from llmsession.models.hub.ensure import resolve_ref

    registry = load_known_llms(options.registry)
    resolve_ref(given, registry)  # raises for an unknown name, with those that exist
    known = registry.find(given)
    if known is not None and known.packaging_type == "safetensors":
        repo = PackedRepoRef(f"{SCHEME}{known.repo_id}")
    elif known is not None and known.upstream is not None:
        repo = known.upstream
    else:
        raise ConfigError(f"nobody knows where the safetensors of {given} are: name them, hf:author/repo")
    return ResolvedModel(name=repo.repo, repo=repo, is_weights=True, sampling=known.sampling or Sampling())


def name_file(file: str) -> str:
    """Return the name of a model from that of its file: without folders, shard number and suffix."""
    return _SHARD_OR_SUFFIX.sub("", file.rpartition("/")[2])


def resolve_remote_model(options: Options) -> ResolvedModel:
    """Return the model of a remote server, with the name that is sent.

    The name is empty if the registry knows the model, or none is given: then the server is asked for it.
    """
    given = str(options.model) if options.model is not None else ""
    if given == bundled.NAME:
        return ResolvedModel(name=given, encoding=_encoding_of_bundled(options))
    known = load_known_llms(options.registry).find(given) if given else None
    model = _describe(options, known)
    return model if known is not None else msgspec.structs.replace(model, name=given)


def _encoding_of_bundled(options: Options) -> PromptEncoding | None:
    if options.registry is not None:
        load_known_llms(options.registry)  # raises if the registry is invalid, although nothing of it is needed
    own = options.prompt_encoding is None and options.chat_template is None
    return bundled.ENCODING if own else resolve_encoding(options)


def describe_found(options: Options, model: ResolvedModel, path: Path) -> ResolvedModel:
    """Return the model with the file that was found for it, whose registry entry now counts."""
    described = _describe(options, find_known(options, path))
    return msgspec.structs.replace(described, path=path, ref=model.ref, name=name_file(path.name))


def _describe(options: Options, known: KnownLLM | None) -> ResolvedModel:
    """Return the model's encoding and sampling, from the options and its registry entry, with an empty name."""
    if known is None:
        return ResolvedModel(name="", encoding=resolve_encoding(options))
    own = options.prompt_encoding is None and options.chat_template is None
    encoding = known.prompt_encoding if own else resolve_encoding(options)
    return ResolvedModel(name="", encoding=encoding, sampling=known.sampling or Sampling())


def resolve_encoding(options: Options, otherwise: str | None = None) -> PromptEncoding | None:
    """Return the requested encoding, else the one named `otherwise`; None for the chat endpoint. Raises ConfigError."""
    given = options.prompt_encoding if options.prompt_encoding is not None else otherwise
    if given is None or given == "chat" or isinstance(given, PromptEncoding):
        return given if isinstance(given, PromptEncoding) else None
    encodings = load_known_llms(options.registry).encodings
    if given not in encodings:
        raise ConfigError(f"prompt_encoding={given!r} is unknown: use {', '.join(sorted(encodings))} or chat")
    return encodings[given]


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The context of one conversation, and the engine's settings if it is longer than the model was trained for."""

    length: int
    rope_freq_base: float | None = None
    metadata: tuple[str, ...] = ()


def fit_context(options: Options, info: ModelInfo | WeightsInfo, *, can_stretch: bool) -> Context:
    """Return the requested context. Raises ConfigError if it is longer than trained and cannot be stretched."""
    asked, trained = options.context_length, info.trained_context_length
    if asked is None or (asked == 0 and trained is None):
        asked = min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    elif asked == 0:
        asked = trained or DEFAULT_CONTEXT
    if trained is None or asked <= trained:
        return Context(length=asked, rope_freq_base=options.rope_freq_base)
    rotated = _rotated_dimensions(info) if isinstance(info, ModelInfo) else None
    if not isinstance(info, ModelInfo) or not can_stretch or rotated is None:
        raise ConfigError(
            f"context_length={asked} is more than the {trained} tokens that this model was trained for, and "
            + ("it" if can_stretch else "this engine")
            + " cannot be stretched: ask for less, or 0 for all of it"
            + ("" if can_stretch or rotated is None else ' (backend="llama-server" could)')
        )
    base = options.rope_freq_base or stretch_rope(info.rope_freq_base or ROPE_FREQ_BASE, rotated, asked / trained)
    warnings.warn(
        f"context_length={asked} is more than the {trained} tokens that this model was trained for: the base of its "
        f"rotary positions is set to {base:.0f}, and replies may be worse",
        stacklevel=2,
    )
    return Context(length=asked, rope_freq_base=base, metadata=(f"{info.architecture}.context_length=int:{asked}",))


def stretch_rope(base: float, rotated: int, factor: float) -> float:
    """Return the RoPE base for a context that is `factor` times as long ("NTK-aware" scaling).

    With it, the slowest of the `rotated` dimensions turns as far over the longer context as before.
    """
    return float(base * factor ** (rotated / (rotated - 2)))


def _rotated_dimensions(info: ModelInfo) -> int | None:
    """Return the number of rotated dimensions; None if positions are not rotations and so cannot be stretched."""
    rotated = info.metadata.get(f"{info.architecture}.rope.dimension_count")
    return rotated if isinstance(rotated, int) and rotated > 2 else None
