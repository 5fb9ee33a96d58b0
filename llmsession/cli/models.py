"""`llmsession models` and `pull`: which models are known, which are downloaded, and whether they are as expected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.table import Table

from llmsession.cli.start import shown_progress
from llmsession.models.gguf import ModelInfo, read_model_info
from llmsession.models.hub.cache import find_cached, list_cached
from llmsession.models.hub.ensure import ensure_model, resolve_ref
from llmsession.models.lockfile import lock_model, read_lock, write_lock
from llmsession.models.quantization import list_shards, parse_quantization
from llmsession.models.registry import KnownLLM
from llmsession.models.registry_file import load_known_llms, read_registry
from llmsession.session.config.options import Options
from llmsession.session.server.model_choice import fit_context, resolve_model
from llmsession.types.units import describe_size

# Columns, if stdout is not a terminal: then nothing is cut to fit.
WIDE = 200


class Listed(msgspec.Struct, kw_only=True):
    """A known model. `cached`: the sizes of its downloaded files in bytes, by name."""

    alias: str
    aliases: tuple[str, ...]
    source: str
    upstream: str | None
    license: str | None
    context_length: int | None
    parameter_count: int | None
    default_quantization: str | None
    cached: dict[str, int]


def list_models(*, registry: Path | None, cached: bool, as_json: bool) -> None:
    """Print the known models as a table, or as JSON. Raises ConfigError."""
    options = _options(registry=registry)
    listed = [_describe(known) for known in load_known_llms(options.registry).llms]
    if cached:
        listed = [each for each in listed if each.cached]
    if as_json:
        print(msgspec.json.encode(listed).decode())  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("alias", "left"), ("parameters", "right"), ("context", "right"), ("licence", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("cached")
    for each in listed:
        here = ", ".join(f"{parse_quantization(name) or name} ({describe_size(n)})" for name, n in each.cached.items())
        parameters = f"{each.parameter_count / 1e9:.2f} B" if each.parameter_count else ""
        table.add_row(each.alias, parameters, str(each.context_length or ""), each.license or "", here or "-")
    width = None if sys.stdout.isatty() else WIDE
    Console(highlight=False, width=width).print(table)


def _describe(known: KnownLLM) -> Listed:
    return Listed(
        alias=known.aliases[0] if known.aliases else known.source,
        aliases=known.aliases,
        source=known.source,
        upstream=str(known.upstream) if known.upstream else None,
        license=known.license,
        context_length=known.context_length,
        parameter_count=known.parameter_count,
        default_quantization=known.default_quantization,
        cached=list_cached(known),
    )


def show_model(model: str | None, *, registry: Path | None, as_json: bool) -> None:
    """Print all that is known about a model, from its registry entry, and from its file if that is downloaded.

    Raises UsageError.
    """
    options = _options(registry=registry, model=model)
    chosen = resolve_model(options)
    entry = load_known_llms(options.registry).find(model) if model is not None and chosen.ref is not None else None
    path = chosen.path or (find_cached(chosen.ref) if chosen.ref is not None else None)
    info = read_model_info(path) if path is not None else None
    facts: dict[str, Any] = {"model": chosen.name, "reference": chosen.ref, "file": str(path) if path else None}
    if entry is not None:
        facts |= {"entry": entry.source, "aliases": ", ".join(entry.aliases), "upstream": entry.upstream}
        facts |= {"licence": entry.license, "description": entry.description or None}
    facts["prompted"] = "by its prompt encoding" if chosen.encoding is not None else "by its own template"
    if info is not None:
        facts |= _facts_of_file(info, options)
    if as_json:
        # A reference is a subclass of str, which the encoder does not support.
        shown = {name: str(v) if isinstance(v, str) else v for name, v in facts.items() if v is not None}
        print(msgspec.json.encode(shown).decode())  # noqa: T201
        return
    facts.setdefault("quantization", "(not fetched: llmsession pull does that)")
    for name, value in facts.items():
        if value not in (None, ""):
            print(f"{name:<16}  {value}")  # noqa: T201


def _facts_of_file(info: ModelInfo, options: Options) -> dict[str, Any]:
    context = fit_context(options, info, can_stretch=True).length
    return {
        "architecture": info.architecture,
        "parameters": info.parameter_count,
        "quantization": info.quantization,
        "layers": info.layer_count,
        "vocabulary": info.vocab_size,
        "trained context": info.trained_context_length,
        "size": describe_size(info.size_bytes),
        "template": "yes" if info.chat_template else "no",
        "memory": f"{describe_size(info.memory_needed(context, options.parallel))} for {options.parallel} replies at "
        f"once with {context} tokens each",
    }


def lint(path: Path, *, as_json: bool) -> None:
    """Check whether a registry can be used, and print what it holds. Raises ConfigError with the line of a fault."""
    shipped = load_known_llms()
    registry = read_registry(path, encodings=shipped.encodings)
    found = {"path": str(path), "models": len(registry.llms), "encodings": len(registry.encodings)}
    if as_json:
        print(msgspec.json.encode(found).decode())  # noqa: T201
    else:
        print(f"{path}: {len(registry.llms)} models, {len(registry.encodings)} encodings, no faults")  # noqa: T201


def lock_models(models: list[str], *, file: Path, registry: Path | None) -> None:
    """Download the models if necessary, and record their commits and digests in the lock file.

    Raises LLMSessionError.
    """
    options = _options(registry=registry)
    known = load_known_llms(options.registry)
    lock = read_lock(file)
    for model in models:
        ref = resolve_ref(model, known)
        with shown_progress("asking Hugging Face") as show:

            async def fetch(ref: str = ref) -> Path:
                return await ensure_model(
                    ref, hf_token=options.hf_token, offline=options.offline, on_progress=show, refresh=True
                )

            path = anyio.run(fetch)
        locked = lock_model(path)
        lock = msgspec.structs.replace(lock, models={**lock.models, str(ref): locked})
        write_lock(file, lock)
        print(f"{file}: {ref} is {', '.join(locked.files)} of {locked.commit}", file=sys.stderr)  # noqa: T201


def _options(**given: Any) -> Options:
    return Options.load(**{name: value for name, value in given.items() if value is not None})


def pull(ref: str, *, registry: Path | None, offline: bool, as_json: bool) -> None:
    """Download a model, and print its path. After Ctrl-C, what had arrived is kept. Raises LLMSessionError."""
    options = Options.load(**{"registry": registry} if registry is not None else {})
    with shown_progress("asking Hugging Face") as show:

        async def fetch() -> Path:
            return await ensure_model(
                ref,
                hf_token=options.hf_token,
                offline=True if offline else options.offline,
                on_progress=show,
                registry=options.registry,
                refresh=True,
            )

        path = anyio.run(fetch)
    size = sum(path.with_name(name).stat().st_size for name in list_shards(path.name))
    if as_json:
        print(msgspec.json.encode({"ref": ref, "path": str(path), "size_bytes": size}).decode())  # noqa: T201
    else:
        print(path)  # noqa: T201
