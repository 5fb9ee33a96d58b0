"""Reads JSON from servers of any maker: what fits is used, and the rest is treated as missing. No I/O.

A value of the expected form costs nothing extra. Otherwise it is read again field by field, so that a null, a number of
another type, or text in place of an object does not discard the other fields.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from llmsession.types.errors import UndecodableError

T = TypeVar("T", bound=msgspec.Struct)

_MISSING: Any = object()


class LenientReader(Generic[T]):
    """Reads one type of object. Fields without a default are required."""

    def __init__(self, kind: type[T], what: str) -> None:
        self._kind = kind
        self._what = what
        self.decode: Callable[[bytes], T] = msgspec.json.Decoder(kind).decode
        """Decode what has the expected form. Raises msgspec.DecodeError or UnicodeDecodeError for all else."""

    def read(self, payload: bytes) -> T | None:
        """Return the object; None for `null`. Raises UndecodableError, with the payload, if it does not fit."""
        try:
            return self.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self.read_again(payload, error)

    def read_again(self, payload: bytes, error: Exception) -> T | None:
        """Read a value that does not have the expected form. Returns and raises what `read` does."""
        try:
            value = parse_json(payload)
        except ValueError:
            value = _MISSING
        found: T | None = None if value is None else _fit(value, self._kind)
        if found is _MISSING:
            raise UndecodableError(
                f"the server sent something that is not {self._what}: {error}", payload=payload[:1000]
            ) from error
        return found


def parse_json(payload: bytes) -> Any:
    """Return the value in plain Python types. Raises ValueError if the bytes are not JSON.

    Bytes that are not UTF-8 are replaced. NaN and Infinity, which some servers send, are accepted as numbers.
    """
    try:
        return json.loads(payload.decode("utf-8-sig", errors="replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _read_fields(value: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    found = {}
    for field in _fields_of(kind):
        if field.encode_name in value:
            read = _fit(value[field.encode_name], field.type)
            if read is not _MISSING:
                found[field.name] = read
    return found


def _fit(value: Any, kind: Any) -> Any:
    """Return the value as `kind`; `_MISSING` if it does not fit."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _fit_any(value, get_args(kind))
    if kind is Any:
        return value
    if origin in (list, tuple):
        if not isinstance(value, list):
            return _MISSING
        items = [item for item in (_fit(each, get_args(kind)[0]) for each in value) if item is not _MISSING]
        return items if origin is list else tuple(items)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        try:
            return kind(**_read_fields(value, kind)) if isinstance(value, Mapping) else _MISSING
        except TypeError:  # a required field is missing
            return _MISSING
    return _fit_plain(value, kind)


def _fit_any(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if isinstance(kind, type) and type(value) is kind:
            return value
    return next((read for kind in kinds if (read := _fit(value, kind)) is not _MISSING), _MISSING)


def _fit_plain(value: Any, kind: Any) -> Any:
    if isinstance(value, bool):
        return value if kind is bool else _MISSING
    if kind is str:
        return value if isinstance(value, str) else _MISSING
    if kind in (int, float) and isinstance(value, int | float | str):
        try:
            return kind(value) if isinstance(value, int) or kind is float else int(float(value))
        except (ValueError, OverflowError):  # words, infinity
            return _MISSING
    return _MISSING


def as_text(content: Any) -> str:
    """Return the text of a message's content: a text, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return ""
