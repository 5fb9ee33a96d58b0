"""Reads the header of a GGUF file: the model's facts, and whether the file is whole.

No tensor is read, and the vocabulary only on request. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from llmsession.models.memory_estimate import estimate_memory
from llmsession.models.quantization import list_shards
from llmsession.types.errors import InvalidModelError

_T = TypeVar("_T")

# Bounds that no real model comes near: a twisted header must not make us allocate or loop for long.
MOST_ENTRIES = 100_000
MOST_TENSORS = 1_000_000
LONGEST_STRING = 50_000_000
# Longer arrays, as vocabularies are, are skipped unless asked for; those of layers are shorter.
KEPT_STRINGS, KEPT_NUMBERS = 64, 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# Values and bytes in a block of each tensor type, by its number in ggml.h.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
# Of an unknown type: no type has less than a bit for each value.
_LEAST_BLOCK = (8, 1)

# `general.file_type`, by its number in llama.h.
_FILE_TYPES: dict[int | None, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip

_SPECIAL_TOKENS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "prefix": "fim_pre_token_id",
    "middle": "fim_mid_token_id",
    "suffix": "fim_suf_token_id",
    "cls": "cls_token_id",
    "sep": "seperator_token_id",  # the specification's own spelling
}


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The facts in a GGUF header; None if the file does not say. `metadata` has all entries except long arrays."""

    architecture: str
    name: str | None
    parameter_count: int
    quantization: str | None
    trained_context_length: int | None
    layer_count: int | None
    gqa_factor: int | None
    rope_freq_base: float | None
    vocab_size: int | None
    size_bytes: int
    chat_template: str | None
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        """One line: `metadata` alone would be pages."""
        parts = [self.architecture, self.quantization or "mixed", f"{self.parameter_count / 1e6:.0f} M parameters"]
        if self.trained_context_length is not None:
            parts.append(f"{self.trained_context_length} tokens")
        return f"<ModelInfo of {self.name or 'a model'}: {', '.join(parts)}>"

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """The ids of bos, eos, eot, nl and the tokens for infilling and ranking; None if missing."""
        found = {name: _whole(self.metadata, f"tokenizer.ggml.{key}") for name, key in _SPECIAL_TOKENS.items()}
        return {**found, "nl": _whole(self.metadata, "tokenizer.ggml.newline_token_id")}

    def memory_needed(self, context_length: int, parallel: int) -> int:
        """Return the estimated bytes for `parallel` conversations of `context_length` tokens each."""
        return estimate_memory(self.metadata, self.size_bytes, context_length, parallel)


def read_model_info(path: Path) -> ModelInfo:
    """Read the header; for a split model, the headers of all files, which must be in one folder.

    Raises InvalidModelError if a file is missing, truncated, or not GGUF.
    """
    metadata, arrays, parameters, size = _read_header(path)
    shards = list_shards(path.name)
    for shard in shards if shards[0] == path.name else ():
        if shard != path.name:
            _, _, more_parameters, more_bytes = _read_header(path.with_name(shard))
            parameters, size = parameters + more_parameters, size + more_bytes
    architecture = _text(metadata, "general.architecture") or "unknown"
    heads = _whole(metadata, f"{architecture}.attention.head_count")
    kv_heads = _whole(metadata, f"{architecture}.attention.head_count_kv")
    base = metadata.get(f"{architecture}.rope.freq_base")
    return ModelInfo(
        architecture=architecture,
        name=_text(metadata, "general.name"),
        parameter_count=parameters,
        quantization=_FILE_TYPES.get(_whole(metadata, "general.file_type")),
        trained_context_length=_whole(metadata, f"{architecture}.context_length"),
        layer_count=_whole(metadata, f"{architecture}.block_count"),
        gqa_factor=heads // kv_heads if heads and kv_heads else None,
        rope_freq_base=base if isinstance(base, float) else None,
        vocab_size=arrays.get("tokenizer.ggml.tokens", _whole(metadata, f"{architecture}.vocab_size")),
        size_bytes=size,
        chat_template=_text(metadata, "tokenizer.chat_template"),
        metadata=metadata,
    )


def _text(metadata: dict[str, Any], key: str) -> str | None:
    """Return a text entry; None if it has another type, since a header may say anything."""
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _whole(metadata: dict[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, int], int, int]:
    """Return the entries, the lengths of the skipped arrays, the number of parameters, and the file's bytes."""
    with _open_model(path) as (file, size):
        reader = _Reader(file, size)
        metadata, arrays = reader.read_metadata(keep=frozenset())
        alignment = _whole(metadata, "general.alignment")
        parameters = reader.check_tensors(32 if alignment is None else alignment)
    return metadata, arrays, parameters, size


def _list(metadata: dict[str, Any], key: str, kind: type[_T]) -> list[_T]:
    """Return a list entry; empty if it has another type."""
    value = metadata.get(key)
    return value if isinstance(value, list) and all(isinstance(each, kind) for each in value) else []


class TokenTable(msgspec.Struct, frozen=True, kw_only=True):
    """The vocabulary: the spelling and the type of every token, by id. `model` is the kind of its tokenizer.

    Types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    model: str
    spellings: list[str]
    types: list[int]


def read_token_table(path: Path) -> TokenTable:
    """Raises InvalidModelError."""
    tokens, types = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
    with _open_model(path) as (file, size):
        metadata, _ = _Reader(file, size).read_metadata(keep=frozenset({tokens, types}))
    spellings, kinds = _list(metadata, tokens, str), _list(metadata, types, int)
    return TokenTable(
        model=_text(metadata, "tokenizer.ggml.model") or "",
        spellings=spellings,
        types=kinds if len(kinds) == len(spellings) else [1] * len(spellings),
    )


def read_vocabulary(path: Path) -> list[str]:
    """The spelling of every token, by id, as the file has them."""
    return read_token_table(path).spellings


@contextlib.contextmanager
def _open_model(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    def invalid(reason: str) -> InvalidModelError:
        return InvalidModelError(f"{path} is not a usable model: {reason}", path=path, reason=reason)

    try:
        if path.is_dir():
            raise invalid("it is a folder; give the .gguf file in it")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise invalid("the file is empty; fetch it again")
            if file.read(4) != b"GGUF":
                raise invalid("it is not a GGUF file (those begin with the letters GGUF); give one, or fetch it again")
            yield file, size
    except FileNotFoundError as error:
        raise invalid("there is no such file; look at the path") from error
    except OSError as error:
        raise invalid(f"it cannot be read ({error.strerror})") from error
    except _CutError as error:
        raise invalid(f"it is cut or damaged ({error}); fetch it again") from error


class _CutError(Exception):
    """The header promises data that the file lacks."""


class _Reader:
    """Reads the header, checking every length against the file's before it is used."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._endian = "<"
        version = self._read("I")
        if version >= 1 << 16:  # the other byte order
            self._endian, version = ">", struct.unpack(">I", struct.pack("<I", version))[0]
        if version not in (2, 3):
            raise _CutError(f"version {version} of the format is not known")
        self._tensor_count = self._read_count(MOST_TENSORS, "tensors")
        self._entry_count = self._read_count(MOST_ENTRIES, "entries")

    def read_metadata(self, *, keep: frozenset[str]) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the entries and the lengths of the skipped arrays."""
        metadata: dict[str, Any] = {}
        arrays: dict[str, int] = {}
        for _ in range(self._entry_count):
            key = self._read_string()
            kind = self._read("I")
            if kind == _ARRAY:
                element, count = self._read("I"), self._read_count(self._size, "array elements")
                if count > (KEPT_STRINGS if element == _STRING else KEPT_NUMBERS) and key not in keep:
                    arrays[key] = count
                    self._skip_array(element, count)
                else:
                    metadata[key] = self._read_array(element, count)
            else:
                metadata[key] = self._read_value(kind)
        return metadata, arrays

    def check_tensors(self, alignment: int) -> int:
        """Count the parameters, and check that the file holds the data of every tensor."""
        parameters, end = 0, 0
        for _ in range(self._tensor_count):
            self._read_string()
            dimensions = self._read("I")
            if dimensions > 8:
                raise _CutError(f"a tensor has {dimensions} dimensions")
            values = math.prod(self._read("Q") for _ in range(dimensions))
            kind, offset = self._read("I"), self._read("Q")
            parameters += values
            per_block, block_bytes = _BLOCKS.get(kind, _LEAST_BLOCK)
            end = max(end, offset + -(-values // per_block) * block_bytes)
        start = self._file.tell()
        if alignment > 0:
            start += -start % alignment
        if start + end > self._size:
            raise _CutError(f"it has {self._size} bytes of {start + end}")
        return parameters

    def _read(self, form: str) -> Any:
        width = struct.calcsize(form)
        data = self._file.read(width)
        if len(data) != width:
            raise _CutError("it ends inside its header")
        return struct.unpack(self._endian + form, data)[0]

    def _read_count(self, most: int, what: str) -> int:
        count = int(self._read("Q"))
        if count > most:
            raise _CutError(f"it claims to have {count} {what}")
        return count

    def _read_string(self) -> str:
        length = self._read_count(min(LONGEST_STRING, self._size), "characters in a string")
        data = self._file.read(length)
        if len(data) != length:
            raise _CutError("it ends inside its header")
        return data.decode(errors="replace")

    def _read_value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._read_string()
        if kind not in _SCALARS:
            raise _CutError(f"an entry has the unknown type {kind}")
        return self._read(_SCALARS[kind])

    def _read_array(self, element: int, count: int) -> list[Any]:
        if element in _SCALARS and element != _BOOL:
            width = struct.calcsize(_SCALARS[element])
            if count * width > self._size:
                raise _CutError("it ends inside its header")
            data = self._file.read(count * width)
            if len(data) != count * width:
                raise _CutError("it ends inside its header")
            return list(struct.unpack(f"{self._endian}{count}{_SCALARS[element]}", data))
        return [self._read_value(element) for _ in range(count)]

    def _skip_array(self, element: int, count: int) -> None:
        if element == _STRING:
            for _ in range(count):
                self._skip(self._read_count(self._size, "characters in a string"))
        elif element in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[element]))
        else:
            raise _CutError(f"an array has elements of the unknown type {element}")

    def _skip(self, count: int) -> None:
        if self._file.seek(count, os.SEEK_CUR) > self._size:
            raise _CutError("it ends inside its header")
