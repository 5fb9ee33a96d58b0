"""Parses names of GGUF files: quantization, shards, and which file a user means. Does no I/O.

https://huggingface.co/docs/hub/gguf: a quantization is named by the bits of a weight and the size of the mix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

_QUANTIZATION = re.compile(
    r"(?:^|[-._/])"
    r"((?:UD-)?(?:I?Q\d(?:_\d|_[KX](?:_?[SMLX]+)?|_[A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?(?:16|32)))"
    r"(?=$|[-./])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
# Projectors of images, matrices of importance, and heads that predict several tokens: files beside a model.
_NO_MODEL = re.compile(
    r"(?:^|[-._/])mmproj(?=[-._]|$)|(?:^|/)(?:imatrix|mtp)(?=[-._/]|$)|[-._]imatrix(?:[-._]|$)", re.IGNORECASE
)
SUFFIX = ".gguf"
# What publishers offer most, and the bits that each weight takes on average (llama.cpp's own table of an 8B model).
BITS_PER_WEIGHT = {
    "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.89, "Q3_K_M": 4.0, "Q2_K": 3.16, "IQ2_XXS": 2.38,
}  # fmt: skip
# From 0 to 1: below it, a suggestion would be a guess.
LEAST_LIKENESS = 0.5


def parse_quantization(name: str) -> str | None:
    """Return `Q4_K_M` for `llama-q4_k_m-00001-of-00002.gguf`; the last one if there are several."""
    found = _QUANTIZATION.findall(_stem(name))
    return found[-1].upper() if found else None


def list_shards(name: str) -> list[str]:
    """Return all files of the model that this one belongs to, in order: itself, or its shards."""
    found = _SHARD.search(name)
    if found is None:
        return [name]
    count = int(found[2])
    return [f"{name[: found.start()]}-{number:05}-of-{found[2]}{name[found.end() :]}" for number in range(1, count + 1)]


def list_models(files: Mapping[str, int]) -> dict[str, int]:
    """Return the models among a repository's files, smallest first; a split one as its first shard with all its bytes.

    `files` are bytes by name. Projectors of images and the like are not models.
    """
    sizes: dict[str, int] = {}
    for name, size in files.items():
        if name.lower().endswith(SUFFIX) and not _NO_MODEL.search(name):
            first = list_shards(name)[0]
            sizes[first] = sizes.get(first, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))


def find_meant(wanted: str, names: Iterable[str]) -> list[str]:
    """Return the names that a user may mean by `wanted`: a whole name, one in a folder, or the end of one.

    Ignores case, `.gguf`, and the number of a shard. The first kind that matches anything counts; more than one name
    means that it is ambiguous.
    """
    by_stem = {name: _stem(name).lower() for name in names}
    stem = _stem(wanted).lower()
    kinds: tuple[Callable[[str], bool], ...] = (
        lambda other: other == stem,
        lambda other: other.rpartition("/")[2] == stem,
        lambda other: other.endswith(stem) and (not stem[:1].isalnum() or not other[: -len(stem)][-1:].isalnum()),
    )
    for fits in kinds:
        if found := [name for name, other in by_stem.items() if fits(other)]:
            return found
    return []


def find_nearest(wanted: str, names: Iterable[str]) -> str | None:
    """Return the most similar name, or the one with the most similar quantization."""
    stem, quantization = _stem(wanted).lower(), parse_quantization(wanted)

    def likeness(name: str) -> float:
        alike = difflib.SequenceMatcher(None, stem, _stem(name).lower()).ratio()
        other = parse_quantization(name)
        if quantization and other:
            alike = (alike + difflib.SequenceMatcher(None, quantization, other).ratio()) / 2
        return alike

    best = max(names, key=likeness, default=None)
    return best if best is not None and likeness(best) >= LEAST_LIKENESS else None


def _stem(name: str) -> str:
    return re.sub(r"\.gguf$", "", _SHARD.sub("", name), flags=re.IGNORECASE)
