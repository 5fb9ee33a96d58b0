"""Registry: known models by name, the location of their files, and their prompt encodings."""

from __future__ import annotations

import difflib
import re
from typing import Literal

import msgspec

from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.quantization import SUFFIX, parse_quantization
from llmsession.models.references import HEAD, SCHEME, USUAL_QUANTIZATION, PackedFileRef, PackedRepoRef
from llmsession.types.errors import ConfigError, InvalidRefError
from llmsession.types.sampling import Sampling

# What an alias without a quantization means where its entry has no default: small, and hardly worse than the original.

_ALIAS = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,78}[a-z0-9])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a model, shared by the file and its entries."""

    aliases: tuple[str, ...] = ()
    description: str = ""
    license: str | None = None
    context_length: int | None = None
    parameter_count: int | None = None
    default_quantization: str | None = None
    sampling: Sampling | None = None


class KnownLLM(ModelDescription, frozen=True, kw_only=True):
    """A model, in all its quantizations.

    `source` is `hf:author/repo/HEAD/start-of-the-file's-name`, also without the revision. `upstream` has the original
    weights. `prompt_encoding` None: the model's own template is used. `context_length` is in tokens, as trained.
    """

    source: str
    packaging_type: Literal["gguf", "safetensors"] = "gguf"
    upstream: PackedRepoRef | None = None
    prompt_encoding: PromptEncoding | None = None

    def __post_init__(self) -> None:
        try:
            PackedRepoRef(f"{SCHEME}{self.repo_id}")
            if self.start:
                PackedFileRef(f"{SCHEME}{self.repo_id}/{HEAD}/{self.start}")
        except InvalidRefError as error:
            raise InvalidRefError(
                f"source: {self.source!r} has not the form hf:author/repo/HEAD/start-of-a-name: {error}"
            ) from None
        if self.default_quantization is not None and parse_quantization(self.default_quantization) is None:
            raise ConfigError(
                f"default_quantization: {self.default_quantization!r} names no quantization, so no file can be found: "
                f"use one such as {USUAL_QUANTIZATION}, or end source with the whole name of the file"
            )
        for alias in self.aliases:
            if not _ALIAS.fullmatch(alias):
                raise ConfigError(
                    f"aliases: {alias!r} is not an alias: use small letters, digits, dots, dashes and underscores"
                )

    @property
    def repo_id(self) -> str:
        """`author/repo`."""
        return "/".join(self._parts[:2])

    @property
    def start(self) -> str:
        """The beginning of its file names; empty: any."""
        rest = self._parts[2:]
        if rest and (rest[0] in (HEAD, "main") or _COMMIT.fullmatch(rest[0])):
            rest = rest[1:]
        return "/".join(rest)

    @property
    def _parts(self) -> list[str]:
        if not self.source.startswith(SCHEME):
            return ["", ""]
        return self.source.removeprefix(SCHEME).split("/")

    def file_ref(self, quantization: str | None = None) -> PackedFileRef:
        """The file with this quantization, or with the default one. Raises InvalidRefError."""
        author, repo = self.repo_id.split("/")
        if self.start.lower().endswith(SUFFIX):  # one file, whose name is whole
            return PackedFileRef.make(author, repo, HEAD, self.start)
        wanted = quantization or self.default_quantization or USUAL_QUANTIZATION
        return PackedFileRef.make(author, repo, HEAD, self.start + wanted)

    def matches(self, ref: PackedFileRef) -> bool:
        """Whether the file, at any revision, belongs to this model."""
        return self.is_in(ref) and ref.basename.lower().startswith(self.start.lower())

    def is_in(self, ref: PackedFileRef) -> bool:
        """Whether this model's files are in the same repository."""
        return ref.repo_id.lower() == self.repo_id.lower()


class Registry(msgspec.Struct, frozen=True):
    """Known models, and encodings by name."""

    llms: tuple[KnownLLM, ...] = ()
    encodings: dict[str, PromptEncoding] = {}

    def __repr__(self) -> str:
        """One line."""
        return f"<Registry of {len(self.llms)} models and {len(self.encodings)} encodings>"

    def find(self, ref_or_alias: str) -> KnownLLM | None:
        """The entry of an alias, with or without `:quantization`, or the most specific one for a reference.

        None if there is none. Raises InvalidRefError for a malformed reference.
        """
        if ref_or_alias.startswith(SCHEME):
            ref = PackedFileRef(ref_or_alias)
            if fitting := [known for known in self.llms if known.matches(ref)]:
                return max(fitting, key=lambda known: len(known.start))
            # The file may be named by its end alone: that of a repository with one model is that model's.
            there = [known for known in self.llms if known.is_in(ref)]
            return there[0] if len(there) == 1 and not ref.basename.lower().endswith(SUFFIX) else None
        alias = ref_or_alias.partition(":")[0].lower()
        return next((known for known in self.llms if alias in known.aliases), None)

    def suggest(self, alias: str) -> list[str]:
        """The aliases closest to `alias`, at most three."""
        every = [bundled.NAME, *(known for entry in self.llms for known in entry.aliases)]
        name, _, tag = alias.lower().partition(":")
        whole = f"{name}-{tag}" if tag else name  # as Ollama writes the size of a model
        near = [known for known in every if known.startswith(whole)] if tag else []
        return [*near, *(known for known in difflib.get_close_matches(whole, every, n=3) if known not in near)][:3]

    def extended(self, other: Registry) -> Registry:
        """Return both registries' entries; those of `other` win."""
        mine = [known for known in self.llms if known.source not in {theirs.source for theirs in other.llms}]
        return Registry((*other.llms, *mine), self.encodings | other.encodings)
