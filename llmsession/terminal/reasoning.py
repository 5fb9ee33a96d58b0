"""What is done with what a model thinks before it answers."""

from __future__ import annotations

import enum


class Reasoning(enum.StrEnum):
    """As it is, dimmed, or not at all."""

    SHOW = "show"
    DIM = "dim"
    HIDE = "hide"
