# Written by scripts/public_stub.py.
from llmsession.backends.survey import available_devices as available_devices
from llmsession.chat.chat import Chat as Chat
from llmsession.chat.stream import ChatStream as ChatStream
from llmsession.memory.conversation import Conversation as Conversation
from llmsession.memory.memory import Memory as Memory
from llmsession.memory.memory import Unfinished as Unfinished
from llmsession.memory.turn import Turn as Turn
from llmsession.memory.turn import TurnState as TurnState
from llmsession.models.encoding import PromptEncoding as PromptEncoding
from llmsession.models.gguf import ModelInfo as ModelInfo
from llmsession.models.gguf import read_model_info as read_model_info
from llmsession.models.hub.ensure import ensure_model as ensure_model
from llmsession.models.references import PackedFileRef as PackedFileRef
from llmsession.models.references import PackedRepoRef as PackedRepoRef
from llmsession.models.registry import KnownLLM as KnownLLM
from llmsession.models.registry import Registry as Registry
from llmsession.models.registry_file import load_known_llms as load_known_llms
from llmsession.session.config.options import Options as Options
from llmsession.session.session import Session as Session
from llmsession.types.completion import Completion as Completion
from llmsession.types.completion import StopReason as StopReason
from llmsession.types.completion import Timings as Timings
from llmsession.types.completion import Token as Token
from llmsession.types.completion import TokenPerformance as TokenPerformance
from llmsession.types.completion import Usage as Usage
from llmsession.types.device import Device as Device
from llmsession.types.errors import AuthError as AuthError
from llmsession.types.errors import BackendError as BackendError
from llmsession.types.errors import BackendNotFoundError as BackendNotFoundError
from llmsession.types.errors import BadRequestError as BadRequestError
from llmsession.types.errors import ClosedError as ClosedError
from llmsession.types.errors import ConfigError as ConfigError
from llmsession.types.errors import ConnectionLostError as ConnectionLostError
from llmsession.types.errors import ContextOverflowError as ContextOverflowError
from llmsession.types.errors import DigestError as DigestError
from llmsession.types.errors import DiskFullError as DiskFullError
from llmsession.types.errors import DuplicateKeyError as DuplicateKeyError
from llmsession.types.errors import FetchError as FetchError
from llmsession.types.errors import FirstTokenTimeoutError as FirstTokenTimeoutError
from llmsession.types.errors import GatedModelError as GatedModelError
from llmsession.types.errors import IdleTimeoutError as IdleTimeoutError
from llmsession.types.errors import InvalidMessagesError as InvalidMessagesError
from llmsession.types.errors import InvalidModelError as InvalidModelError
from llmsession.types.errors import InvalidRefError as InvalidRefError
from llmsession.types.errors import LLMSessionError as LLMSessionError
from llmsession.types.errors import ModelNotFoundError as ModelNotFoundError
from llmsession.types.errors import NotEnoughMemoryError as NotEnoughMemoryError
from llmsession.types.errors import OfflineError as OfflineError
from llmsession.types.errors import OverloadedError as OverloadedError
from llmsession.types.errors import ProtocolError as ProtocolError
from llmsession.types.errors import ReplyTimeoutError as ReplyTimeoutError
from llmsession.types.errors import RestartLimitError as RestartLimitError
from llmsession.types.errors import ServerError as ServerError
from llmsession.types.errors import ServerExitedError as ServerExitedError
from llmsession.types.errors import StartFailedError as StartFailedError
from llmsession.types.errors import StartTimeoutError as StartTimeoutError
from llmsession.types.errors import StoreError as StoreError
from llmsession.types.errors import StoreLockedError as StoreLockedError
from llmsession.types.errors import StoreVersionError as StoreVersionError
from llmsession.types.errors import TotalTimeoutError as TotalTimeoutError
from llmsession.types.errors import TransportError as TransportError
from llmsession.types.errors import TruncatedReplyError as TruncatedReplyError
from llmsession.types.errors import UndecodableError as UndecodableError
from llmsession.types.errors import UnknownModelError as UnknownModelError
from llmsession.types.errors import UnsupportedFeatureError as UnsupportedFeatureError
from llmsession.types.errors import UsageError as UsageError
from llmsession.types.events import Finished as Finished
from llmsession.types.events import ReasoningDelta as ReasoningDelta
from llmsession.types.events import TextDelta as TextDelta
from llmsession.types.events import ToolCallDelta as ToolCallDelta
from llmsession.types.inspection import ChatStats as ChatStats
from llmsession.types.inspection import InspectedPiece as InspectedPiece
from llmsession.types.inspection import Inspection as Inspection
from llmsession.types.inspection import PromptPiece as PromptPiece
from llmsession.types.lora import Lora as Lora
from llmsession.types.messages import Control as Control
from llmsession.types.messages import Message as Message
from llmsession.types.messages import Role as Role
from llmsession.types.messages import Text as Text
from llmsession.types.messages import ToolCall as ToolCall
from llmsession.types.progress import Progress as Progress
from llmsession.types.sampling import Sampling as Sampling
from llmsession.wire.metrics import Metrics as Metrics
from llmsession.wire.metrics import Slot as Slot
from llmsession.wire.reply import ReplyStream as ReplyStream

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
