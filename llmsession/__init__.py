"""A Python program owns a local language model as safely as it owns a file.

The names below are the public surface. They are imported when first used, so that `import llmsession` costs next to
nothing and an engine can load while its client is being imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsession.answering.inspection import (
        ChatStats,
        InspectedPiece,
        Inspection,
    )
    from llmsession.answering.stream import (
        ChatStream,
    )
    from llmsession.backends.devices import (
        available_devices,
    )
    from llmsession.chat import (
        Chat,
    )
    from llmsession.completion import (
        Completion,
        StopReason,
        Timings,
        Token,
        TokenPerformance,
        Usage,
    )
    from llmsession.device import (
        Device,
    )
    from llmsession.errors import (
        AuthError,
        BackendError,
        BackendNotFoundError,
        BadRequestError,
        ClosedError,
        ConfigError,
        ConnectionLostError,
        ContextOverflowError,
        DigestError,
        DiskFullError,
        DuplicateKeyError,
        FetchError,
        FirstTokenTimeoutError,
        GatedModelError,
        IdleTimeoutError,
        InvalidMessagesError,
        InvalidModelError,
        InvalidRefError,
        LLMSessionError,
        ModelNotFoundError,
        NotEnoughMemoryError,
        OfflineError,
        OverloadedError,
        ProtocolError,
        ReplyTimeoutError,
        RestartLimitError,
        ServerError,
        ServerExitedError,
        StartFailedError,
        StartTimeoutError,
        StoreError,
        StoreLockedError,
        StoreVersionError,
        TotalTimeoutError,
        TransportError,
        TruncatedReplyError,
        UndecodableError,
        UnknownModelError,
        UnsupportedFeatureError,
        UsageError,
    )
    from llmsession.lora import (
        Lora,
    )
    from llmsession.memory.conversation import (
        Conversation,
    )
    from llmsession.memory.memory import (
        Memory,
        Unfinished,
    )
    from llmsession.memory.turn import (
        Turn,
        TurnState,
    )
    from llmsession.messages import (
        Control,
        Message,
        PromptPiece,
        Role,
        Text,
        ToolCall,
    )
    from llmsession.models.encoding import (
        PromptEncoding,
    )
    from llmsession.models.gguf import (
        ModelInfo,
        read_model_info,
    )
    from llmsession.models.hub import (
        ensure_model,
    )
    from llmsession.models.references import (
        PackedFileRef,
        PackedRepoRef,
    )
    from llmsession.models.registry import (
        KnownLLM,
        Registry,
        load_known_llms,
    )
    from llmsession.options import (
        Options,
    )
    from llmsession.progress import (
        Progress,
    )
    from llmsession.sampling import (
        Sampling,
    )
    from llmsession.session import (
        Session,
    )
    from llmsession.wire.events import (
        Finished,
        ReasoningDelta,
        TextDelta,
        ToolCallDelta,
    )
    from llmsession.wire.metrics import (
        Metrics,
        Slot,
    )
    from llmsession.wire.reply import (
        ReplyStream,
    )

__all__ = [
    "AuthError",
    "BackendError",
    "BackendNotFoundError",
    "BadRequestError",
    "Chat",
    "ChatStats",
    "ChatStream",
    "ClosedError",
    "Completion",
    "ConfigError",
    "ConnectionLostError",
    "ContextOverflowError",
    "Control",
    "Conversation",
    "Device",
    "DigestError",
    "DiskFullError",
    "DuplicateKeyError",
    "FetchError",
    "Finished",
    "FirstTokenTimeoutError",
    "GatedModelError",
    "IdleTimeoutError",
    "InspectedPiece",
    "Inspection",
    "InvalidMessagesError",
    "InvalidModelError",
    "InvalidRefError",
    "KnownLLM",
    "LLMSessionError",
    "Lora",
    "Memory",
    "Message",
    "Metrics",
    "ModelInfo",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "OfflineError",
    "Options",
    "OverloadedError",
    "PackedFileRef",
    "PackedRepoRef",
    "Progress",
    "PromptEncoding",
    "PromptPiece",
    "ProtocolError",
    "ReasoningDelta",
    "Registry",
    "ReplyStream",
    "ReplyTimeoutError",
    "RestartLimitError",
    "Role",
    "Sampling",
    "ServerError",
    "ServerExitedError",
    "Session",
    "Slot",
    "StartFailedError",
    "StartTimeoutError",
    "StopReason",
    "StoreError",
    "StoreLockedError",
    "StoreVersionError",
    "Text",
    "TextDelta",
    "Timings",
    "Token",
    "TokenPerformance",
    "ToolCall",
    "ToolCallDelta",
    "TotalTimeoutError",
    "TransportError",
    "TruncatedReplyError",
    "Turn",
    "TurnState",
    "UndecodableError",
    "Unfinished",
    "UnknownModelError",
    "UnsupportedFeatureError",
    "Usage",
    "UsageError",
    "available_devices",
    "ensure_model",
    "load_known_llms",
    "read_model_info",
]

_HOMES = {
    "answering.inspection": "ChatStats InspectedPiece Inspection",
    "answering.stream": "ChatStream",
    "backends.devices": "available_devices",
    "chat": "Chat",
    "completion": "Completion StopReason Timings Token TokenPerformance Usage",
    "device": "Device",
    "errors": (
        "AuthError BackendError BackendNotFoundError BadRequestError ClosedError ConfigError ConnectionLostError "
        "ContextOverflowError DigestError DiskFullError DuplicateKeyError FetchError FirstTokenTimeoutError "
        "GatedModelError IdleTimeoutError InvalidMessagesError InvalidModelError InvalidRefError LLMSessionError "
        "ModelNotFoundError NotEnoughMemoryError OfflineError OverloadedError ProtocolError ReplyTimeoutError "
        "RestartLimitError ServerError ServerExitedError StartFailedError StartTimeoutError StoreError "
        "StoreLockedError StoreVersionError TotalTimeoutError TransportError TruncatedReplyError "
        "UndecodableError UnknownModelError UnsupportedFeatureError UsageError"
    ),
    "lora": "Lora",
    "memory.conversation": "Conversation",
    "memory.memory": "Memory Unfinished",
    "memory.turn": "Turn TurnState",
    "messages": "Control Message PromptPiece Role Text ToolCall",
    "models.encoding": "PromptEncoding",
    "models.gguf": "ModelInfo read_model_info",
    "models.hub": "ensure_model",
    "models.references": "PackedFileRef PackedRepoRef",
    "models.registry": "KnownLLM Registry load_known_llms",
    "options": "Options",
    "progress": "Progress",
    "sampling": "Sampling",
    "session": "Session",
    "wire.events": "Finished ReasoningDelta TextDelta ToolCallDelta",
    "wire.metrics": "Metrics Slot",
    "wire.reply": "ReplyStream",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llmsession.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
