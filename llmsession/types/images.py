"""Converts images in messages to data URLs, which every server that can see accepts."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TypeAlias

ImageLike: TypeAlias = bytes | str | Path

# How files of each kind begin.
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


def as_data_url(image: ImageLike) -> str:
    """Convert bytes, the path of a file, or a data URL, which is checked. Raises ValueError if it is not an image."""
    if isinstance(image, str) and image.startswith("data:"):
        return _check_data_url(image)
    if isinstance(image, bytes):
        return _write_data_url(image, "these bytes")
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise ValueError(f"{image} is not fetched: give the image's bytes, its path or a data URL")
    try:
        data = Path(image).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"the image {image} cannot be read ({error.strerror})") from error
    return _write_data_url(data, str(image))


def _check_data_url(url: str) -> str:
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("a data URL of an image is data:image/png;base64,…")
    try:
        return _write_data_url(base64.b64decode(data, validate=True), "this data URL")
    except binascii.Error as error:
        raise ValueError(f"a data URL holds no base64: {error}") from None


def _write_data_url(data: bytes, what: str) -> str:
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"in {what} there is no image: PNG, JPEG, GIF, BMP and WebP are known")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
