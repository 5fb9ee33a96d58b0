"""Registry: the models that we know by name, where their files are, and how they want to be prompted."""

from __future__ import annotations

import difflib
import re
from typing import Literal

import msgspec

from llmsession.models import bundled
from llmsession.models.encoding import PromptEncoding
from llmsession.models.references import HEAD, SCHEME, PackedFileRef, PackedRepoRef
from llmsession.types.errors import ConfigError, InvalidRefError
from llmsession.types.sampling import Sampling

# What an alias without a quantization means where its entry has no default: small, and hardly worse than the original.
USUAL_QUANTIZATION = "Q4_K_M"

_ALIAS = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,78}[a-z0-9])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a model in the file as in an entry."""

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
        """What the names of its files begin with; empty: any."""
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
        wanted = quantization or self.default_quantization or USUAL_QUANTIZATION
        author, repo = self.repo_id.split("/")
        return PackedFileRef.make(author, repo, HEAD, self.start + wanted)

    def matches(self, ref: PackedFileRef) -> bool:
        """Whether the file, at any revision, belongs to this model."""
        return ref.repo_id.lower() == self.repo_id.lower() and ref.basename.lower().startswith(self.start.lower())


class Registry(msgspec.Struct, frozen=True):
    """Known models, and encodings by name."""

    llms: tuple[KnownLLM, ...] = ()
    encodings: dict[str, PromptEncoding] = {}

    def find(self, ref_or_alias: str) -> KnownLLM | None:
        """The entry of an alias, with or without `:quantization`, or the most specific one for a reference.

        None if there is none. Raises InvalidRefError for a malformed reference.
        """
        if ref_or_alias.startswith(SCHEME):
            ref = PackedFileRef(ref_or_alias)
            fitting = [known for known in self.llms if known.matches(ref)]
            return max(fitting, key=lambda known: len(known.start), default=None)
        alias = ref_or_alias.partition(":")[0].lower()
        return next((known for known in self.llms if alias in known.aliases), None)

    def suggest(self, alias: str) -> list[str]:
        """The aliases closest to `alias`, at most three."""
        every = [bundled.NAME, *(known for entry in self.llms for known in entry.aliases)]
        return difflib.get_close_matches(alias.partition(":")[0].lower(), every, n=3)

    def extended(self, other: Registry) -> Registry:
        """Both registries' entries. Where both have one, that of `other` counts."""
        mine = [known for known in self.llms if known.source not in {theirs.source for theirs in other.llms}]
        return Registry((*other.llms, *mine), self.encodings | other.encodings)
