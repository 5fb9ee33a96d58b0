"""A Python program owns a local language model as safely as it owns a file.

Each public name is imported when it is first used, so that `import llmsession` costs next to nothing and an engine can
load while its client is being imported. scripts/public_stub.py writes `__init__.pyi` from the table below.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES_BY_MODULE = {
    "backends.survey": "available_devices",
    "chat.chat": "Chat",
    "chat.stream": "ChatStream",
    "memory.conversation": "Conversation",
    "memory.memory": "Memory Unfinished",
    "memory.turn": "Turn TurnState",
    "models.encoding": "PromptEncoding",
    "models.gguf": "ModelInfo read_model_info",
    "models.hub.ensure": "ensure_model",
    "models.references": "PackedFileRef PackedRepoRef",
    "models.registry": "KnownLLM Registry",
    "models.registry_file": "load_known_llms",
    "session.config.options": "Options",
    "session.session": "Session",
    "types.completion": "Completion StopReason Timings Token TokenPerformance Usage",
    "types.device": "Device",
    "types.errors": (
        "AuthError BackendError BackendNotFoundError BadRequestError ClosedError ConfigError ConnectionLostError "
        "ContextOverflowError DigestError DiskFullError DuplicateKeyError FetchError FirstTokenTimeoutError "
        "GatedModelError IdleTimeoutError InvalidMessagesError InvalidModelError InvalidRefError LLMSessionError "
        "ModelNotFoundError NotEnoughMemoryError OfflineError OverloadedError ProtocolError ReplyTimeoutError "
        "RestartLimitError ServerError ServerExitedError StartFailedError StartTimeoutError StoreError "
        "StoreLockedError StoreVersionError TotalTimeoutError TransportError TruncatedReplyError UndecodableError "
        "UnknownModelError UnsupportedFeatureError UsageError"
    ),
    "types.events": "Finished ReasoningDelta TextDelta ToolCallDelta",
    "types.inspection": "ChatStats InspectedPiece Inspection PromptPiece",
    "types.lora": "Lora",
    "types.messages": "Control Message Role Text ToolCall",
    "types.progress": "Progress",
    "types.sampling": "Sampling",
    "wire.metrics": "Metrics Slot",
    "wire.reply": "ReplyStream",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll] - a list of names, whichever way it is made


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llmsession.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
