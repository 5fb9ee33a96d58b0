"""The user's own flags for the engine, checked for conflicts with those that the session sets."""

from __future__ import annotations

import itertools

from llmsession.backends.launch import Launch
from llmsession.types.device import DeviceRequest
from llmsession.types.errors import ConfigError
from llmsession.types.message_input import is_unicode

# Flags that users may not give, by what to use instead, or the reason.
_OURS = {
    "use model=": (
        "-m --model -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token -cl "
        "--cache-list --models-dir --models-preset --models-max --models-autoload --no-models-autoload"
    ),
    "the session names the model": "-a --alias --tags",
    "use context_length=": "-c --ctx-size",
    "use parallel=": "-np --parallel -kvu --kv-unified -no-kvu --no-kv-unified --kv-unified-per-slot",
    "use threads=": "-t --threads",
    "use device=": "-dev --device",
    "use lora=": "--lora --lora-scaled --lora-init-without-apply",
    "use draft_model=": "-md --model-draft --spec-draft-model -hfd -hfrd --hf-repo-draft --spec-draft-hf",
    "use mmproj=": "-mm --mmproj -mmu --mmproj-url --mmproj-auto --no-mmproj --no-mmproj-auto",
    "use chat_template=": "--chat-template --chat-template-file",
    "the session draws a key for each engine": "--api-key --api-key-file",
    "the session chooses where the engine listens": (
        "--host --port --reuse-port --api-prefix --ssl-key-file --ssl-cert-file --path --cors-origins --cors-methods "
        "--cors-headers --cors-credentials --no-cors-credentials"
    ),
    "the session has no page for a browser, and lets no model act by itself": (
        "--ui --webui --no-ui --no-webui --ui-config --webui-config --ui-config-file --webui-config-file "
        "--ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy --tools --tools-runtime "
        "--mcp-servers-config --mcp-servers-json -ag --agent -no-ag --no-agent"
    ),
    "the session reads what it says": ("--metrics --slots --log-disable --log-jsonl --no-log-jsonl --log-colors"),
    "the session itself fetches files": "--offline",
    "the engine would only print it and end": (
        "-h --help --usage --version --completion-bash --list-devices --license"
    ),
}
# The session reads errors, warnings and the address from the engine's log, which a lower verbosity would omit.
_VERBOSITY = ("-lv", "--verbosity", "--log-verbosity")
_LEAST_VERBOSITY = 3
# The prefixes of flags that select a preset with a model to download.
_PRESETS = ("--fim-", "--embd-gemma", "--gpt-oss-", "--vision-")
# Flags that users may give only if the option of the same meaning is not given.
_WHERE_GIVEN = {
    "flash_attention": "-fa --flash-attn",
    "cache_type_k": "-ctk --cache-type-k",
    "cache_type_v": "-ctv --cache-type-v",
    "kv_offload": "-kvo --kv-offload -nkvo --no-kv-offload",
    "gpu_layers": "-ngl --gpu-layers --n-gpu-layers",
    "device": "-ngl --gpu-layers --n-gpu-layers -sm --split-mode -mg --main-gpu -ts --tensor-split",
    "rope_freq_base": "--rope-freq-base --rope-scale --rope-freq-scale --rope-scaling",
    "metadata": "--override-kv",
    # Without adapters, users may set the size of the cache; with them it stays empty (see Launch).
    "lora": "-cram --cache-ram",
    "kv_folder": "--slot-save-path",
}
# If any GPU may be used, users may set how the model is split over them.
_ANY_GPU = ("device", DeviceRequest(kind="gpu"))
_WHY = {flag: why for why, flags in _OURS.items() for flag in flags.split()}
_NAMES = {"metadata": "a context_length above the trained one", "kv_folder": "kv_cache_bytes above 0"}
_DEFAULTS = dict(zip(reversed(Launch.__struct_fields__), reversed(Launch.__struct_defaults__), strict=False))


def check_extra_args(launch: Launch) -> None:
    """Raise ConfigError if a user's flag conflicts with one of the session, in any spelling that the engine accepts."""
    taken = {
        flag: name
        for name, flags in _WHERE_GIVEN.items()
        if getattr(launch, name) != _DEFAULTS[name] and (name, launch.device) != _ANY_GPU
        for flag in flags.split()
    }
    for argument, following in itertools.zip_longest(launch.extra_args, launch.extra_args[1:]):
        if not isinstance(argument, str):
            raise ConfigError(f'extra_args is a list of texts, such as ("--top-k", "40"), not of {argument!r}')
        if "\0" in argument or not is_unicode(argument):
            raise ConfigError(f"extra_args holds {argument!r}, which cannot be passed to a program")
        head, equals, _ = argument.partition("=")
        flag = normalize_flag(head)
        if (why := _WHY.get(flag)) is not None:
            raise ConfigError(f"extra_args may not hold {head}: {why}")
        if flag in _VERBOSITY and str(following).isdigit() and int(following) < _LEAST_VERBOSITY:
            raise ConfigError(f"extra_args may not hold {head} {following}: the session reads what the engine says")
        if flag.startswith(_PRESETS):
            raise ConfigError(f"extra_args may not hold {head}, which stands for a model: use model=")
        if (name := taken.get(flag)) is not None:
            raise ConfigError(f"extra_args may not hold {head} beside {_NAMES.get(name, name + '=')}: give one of them")
        if equals and flag.startswith("--"):
            raise ConfigError(
                f"extra_args holds {argument!r}, which the engine does not understand: give two arguments"
            )


def normalize_flag(text: str) -> str:
    """Return the flag as the engine reads it: in long flags, an underscore is a hyphen."""
    return text.replace("_", "-") if text.startswith("--") else text
