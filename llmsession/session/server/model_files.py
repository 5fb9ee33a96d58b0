"""The files that an engine loads besides its model: adapters, a draft model, a projector, a chat template.

Each is checked before anything is started, so that an error names the file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from llmsession.models.gguf import ModelInfo, read_model_info
from llmsession.models.references import SCHEME
from llmsession.session.config.options import Options, is_template_text
from llmsession.system.atomic_file import write_atomically
from llmsession.system.service_thread import run_in_thread
from llmsession.types.errors import ConfigError, InvalidModelError
from llmsession.types.lora import Lora

Fetch = Callable[[str], Awaitable[Path]]


class EngineFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The paths of these files; the adapters with their scales."""

    lora: tuple[Lora, ...] = ()
    draft_model: Path | None = None
    mmproj: Path | None = None
    chat_template: Path | None = None


async def find_engine_files(options: Options, info: ModelInfo, cache: Path, fetch: Fetch) -> EngineFiles:
    """Find and check the files that the options name for a model. References are downloaded.

    Raises InvalidModelError, ConfigError and what a download can raise.
    """
    lora = []
    for each in options.lora:
        path = await _find(each.path, fetch, "LoRA adapter", lambda found: _why_no_adapter(found, info))
        lora.append(Lora(path, each.scale))
    draft_model = mmproj = None
    if options.draft_model is not None:
        draft_model = await _find(options.draft_model, fetch, "draft model", _why_no_draft)
    if options.mmproj is not None:
        mmproj = await _find(options.mmproj, fetch, "projector for mmproj=", _why_no_projector)
    template = options.chat_template
    return EngineFiles(
        lora=tuple(lora),
        draft_model=draft_model,
        mmproj=mmproj,
        chat_template=_find_template(template, cache) if template is not None else None,
    )


async def _find(given: str | Path, fetch: Fetch, what: str, find_fault: Callable[[ModelInfo], str | None]) -> Path:
    if isinstance(given, str) and given.startswith(SCHEME):
        path = await fetch(given)
    else:
        path = Path(given).expanduser().absolute()
    try:
        fault = find_fault(await run_in_thread(read_model_info, path))
    except InvalidModelError as error:
        fault = error.reason
    if fault is not None:
        raise InvalidModelError(f"{path} is not a usable {what}: {fault}", path=path, reason=fault)
    return path


def _why_no_adapter(found: ModelInfo, model: ModelInfo) -> str | None:
    kind = (found.metadata.get("general.type"), found.metadata.get("adapter.type"))
    if kind != ("adapter", "lora"):
        return "it is a GGUF file, but of no LoRA adapter; make one with llama.cpp's convert_lora_to_gguf.py"
    if found.architecture != model.architecture:
        return f"it was made for a model of the kind {found.architecture}, and this one is {model.architecture}"
    return None


def _why_no_draft(found: ModelInfo) -> str | None:
    return "it is a GGUF file, but of no language model" if found.vocab_size is None else None


def _why_no_projector(found: ModelInfo) -> str | None:
    if found.architecture != "clip":
        return f"it is a GGUF file of the kind {found.architecture}, not of a projector (clip)"
    return None


def _find_template(given: str | Path, cache: Path) -> Path:
    """Return the template's file; for a template given as text, a file in the cache with that text."""
    if is_template_text(given):
        import hashlib

        text = str(given)
        path = cache / "templates" / f"{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}.jinja"
        _keep(path, text)
        return path
    path = Path(given).expanduser().absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"chat_template: {path} cannot be read ({error.strerror}): give the path of a Jinja file, or the "
            "template's text (a name such as chatml is neither)"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"chat_template: {path} is not UTF-8 text") from error
    if not is_template_text(text):
        raise ConfigError(f"chat_template: {path} is no Jinja template: there is no {{{{ or {{% in it")
    return path


def _keep(path: Path, text: str) -> None:
    """Write the file atomically, readable by this user alone. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise ConfigError(f"chat_template: cannot write {path} ({error.strerror}): name another cache_dir=") from error
    except UnicodeEncodeError as error:
        raise ConfigError("chat_template holds a lone surrogate, which no text in UTF-8 can") from error
