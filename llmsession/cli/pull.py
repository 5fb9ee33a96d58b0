"""`llmsession pull`: a model's file on this disk."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec

from llmsession.cli.progress import shown_progress
from llmsession.models.hub import ensure_model
from llmsession.models.quantization import list_shards
from llmsession.options import Options


def pull(ref: str, *, registry: Path | None, offline: bool, as_json: bool) -> None:
    """Print where it is. Raises LLMSessionError; after Ctrl-C what had arrived is kept."""
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
