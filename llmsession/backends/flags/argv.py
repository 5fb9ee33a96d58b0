"""What a Launch asks of the engine beyond the model and its slots, as llama-server's flags.

Of a flag with several names the one is used that old builds know as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmsession.backends.flags.capabilities import Capabilities
from llmsession.backends.flags.translate import translate, translate_extra
from llmsession.backends.launch import Launch
from llmsession.types.errors import UnsupportedFeatureError

# Flags of these are left out where a build does not know them: it has no GPU then to be kept from, and drafts by
# itself.
CPU_ALONE = "device=cpu"
SPECULATION = "--spec-type"
KV_FOLDER = "--slot-save-path"


def write_engine_flags(launch: Launch, capabilities: Capabilities, *, backend: str) -> list[str]:
    """For a build. Raises UnsupportedFeatureError if it lacks a flag that matters."""
    argv: list[str] = []
    known = capabilities.by_flag
    # Lists of files came late: before, the flag was said again and again.
    has_lists = "comma" in known["--lora"].text if "--lora" in known else True
    for option, flag, *values in _flags(launch, has_lists=has_lists):
        if flag in known:
            argv += [flag, *values]
        elif option != CPU_ALONE and flag not in (SPECULATION, KV_FOLDER):
            raise UnsupportedFeatureError(
                f"this build of {backend} has no {flag}, so it cannot be given {option}: use a newer one",
                feature=option,
                backend=backend,
            )
    return argv


def _flags(launch: Launch, *, has_lists: bool) -> Iterator[tuple[str, ...]]:
    """Option, flag, values."""
    if launch.device.kind == "cpu":
        yield CPU_ALONE, "--device", "none"
        yield CPU_ALONE, "--gpu-layers", "0"
    elif launch.gpu_layers is not None:
        yield "gpu_layers", "--gpu-layers", str(launch.gpu_layers)
    if launch.gpu is not None:
        yield "device=gpu", "--device", launch.gpu.name
    yield from value_flags(launch)
    if launch.metadata:
        yield "context_length", "--override-kv", ",".join(launch.metadata)
    yield from _files(launch, has_lists=has_lists)


def value_flags(launch: Launch) -> Iterator[tuple[str, ...]]:
    """Option, flag, values of those that are neither a device nor a file."""
    if launch.flash_attention is not None:
        yield "flash_attention", "--flash-attn", "on" if launch.flash_attention else "off"
    if not launch.kv_offload:
        yield "kv_offload", "--no-kv-offload"
    if launch.cache_type_k is not None:
        yield "cache_type_k", "--cache-type-k", launch.cache_type_k
    if launch.cache_type_v is not None:
        yield "cache_type_v", "--cache-type-v", launch.cache_type_v
    if launch.rope_freq_base is not None:
        yield "rope_freq_base", "--rope-freq-base", repr(float(launch.rope_freq_base))
    if launch.kv_folder is not None:
        yield "kv_folder", KV_FOLDER, str(launch.kv_folder)


def _files(launch: Launch, *, has_lists: bool) -> Iterator[tuple[str, ...]]:
    on_cpu = launch.device.kind == "cpu"
    # Scales are sent with each request: a request without them would reuse what another adapter has read.
    adapters = [str(lora.path) for lora in launch.lora]
    for adapter in [write_csv(adapters)] * bool(adapters) if has_lists else adapters:
        yield "lora", "--lora", adapter
    if launch.draft_model is not None:
        yield "draft_model", "--model-draft", str(launch.draft_model)
        # Of itself the model would be loaded and never asked (build 11434).
        yield "draft_model", SPECULATION, "draft-simple"
        if on_cpu:
            yield CPU_ALONE, "--device-draft", "none"
            yield CPU_ALONE, "--gpu-layers-draft", "0"
    if launch.mmproj is not None:
        yield "mmproj", "--mmproj", str(launch.mmproj)
        if on_cpu:
            yield CPU_ALONE, "--no-mmproj-offload"
    if launch.chat_template is not None:
        yield "chat_template", "--jinja"
        yield "chat_template", "--chat-template-file", str(launch.chat_template)


def write_csv(values: list[str]) -> str:
    """One line as the engine reads lists: what holds a comma or a quotation mark is quoted."""
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


# A cancelled request is let go after the batch at hand: that took 8 s with the default of 2048, 0.6 s with 256.
BATCH = "512"


# What a build may lack: it then has nothing of the kind to switch on or off.
_OPTIONAL = frozenset(
    [
        "--no-kv-unified",
        "--cont-batching",
        "--no-context-shift",
        "--ubatch-size",
        "--cache-ram",
        "--slots",
        "--no-ui",
        "--jinja",
        "--offline",
        "--log-colors",
        "--verbosity",
    ]
)


def build_argv(binary: Path, launch: Launch, capabilities: Capabilities, *, port: int) -> list[str]:
    """The command line. Everything that matters is said, since defaults change and configuration leaks in."""
    words = ["--model", str(launch.model_path), "--alias", launch.alias]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    # Explicit slots, each with its own share: with the default, concurrent chats kill each other (LLAMA_SERVER F4).
    words += ["--parallel", str(launch.parallel), "--ctx-size", str(launch.context_length * launch.parallel)]
    words += ["--no-kv-unified", "--cont-batching"]
    # Where a conversation is too long, that is said: once the engine forgot its beginning in silence.
    words += ["--no-context-shift"]
    words += ["--threads", str(launch.threads), "--threads-batch", str(launch.threads)]
    words += ["--batch-size", BATCH, "--ubatch-size", BATCH, "--cache-ram", str(launch.cache_ram_mib)]
    words += ["--metrics", "--slots", "--no-ui", "--jinja", "--offline", "--log-colors", "off", "--verbosity", "3"]
    words += write_engine_flags(launch, capabilities, backend="llama-server")
    return [
        str(binary),
        *translate(words, capabilities, optional=_OPTIONAL),
        *translate_extra(launch.extra_args, capabilities),
    ]
