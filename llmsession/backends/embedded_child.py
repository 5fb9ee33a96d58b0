"""The child process that hosts llama.cpp's server from the wheel. A separate program: it imports nothing of llmsession.

The server holds the GIL for the whole load and cannot be stopped while a client is connected (LLAMA_SERVER §7). So the
kernel is asked beforehand to kill this process when its parent dies, no Python signal handler is relied on, and it
exits with os._exit. Settings arrive as one line of JSON on stdin. After that, the process exits when stdin is closed or
brings an order to exit.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

STATE = "cmd_child_to_router:state:"
EXIT = b"cmd_router_to_child:exit"


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent exits. Called before anything slow is imported."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)


def say(state: str, **payload: Any) -> None:
    """Print one line for the parent."""
    print(STATE + json.dumps({"state": state, "payload": payload}), flush=True)  # noqa: T201


def list_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that this wheel sees. Those that share the CPU's memory count only if there are no others."""
    found = importlib.import_module("xllamacpp").get_device_info()
    for kind in ("GPU", "IGPU"):
        gpus = [each for each in found if each["type"].name == f"GGML_BACKEND_DEVICE_TYPE_{kind}"]
        if gpus:
            break
    return [
        {
            "name": each["name"],
            "index": index,
            "text": each["description"],
            "memory_bytes": each["memory_total"],
            "free_bytes": each["memory_free"],
        }
        for index, each in enumerate(gpus)
    ]


def assign(params: Any, field: str, value: Any, enumeration: str | None) -> None:
    """Set a field, such as `sampling.temp`. Members of an enumeration are given by name."""
    xllamacpp = importlib.import_module("xllamacpp")
    if enumeration is not None:
        members = getattr(xllamacpp, enumeration)
        value = [members[name] for name in value] if isinstance(value, list) else members[value]
    *path, last = field.split(".")
    target = params
    for name in path:
        target = getattr(target, name)
    if path == ["sampling"]:
        # Mark it as set by the user: otherwise the recommendation in the model's file would take precedence.
        said = getattr(xllamacpp.common_params_sampling_config, f"COMMON_PARAMS_SAMPLING_CONFIG_{last.upper()}", 0)
        target.user_sampling_config |= int(said)
    setattr(target, last, value)


def serve(settings: dict[str, Any]) -> Any:
    """Load the model and serve. The returned server must be kept alive."""
    # Imported by name: the wheel has no types, and the path to it was added only at run time.
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.model_alias = {settings["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in settings["lora"]]
    for field, value, enumeration in settings["fields"]:
        assign(params, field, value, enumeration)
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until the parent ends it; or, with the argument `devices`, print one line that lists the GPUs."""
    if sys.argv[2:] == ["devices"]:
        sys.path.append(sys.argv[1])
        print(json.dumps(list_gpus()), flush=True)  # noqa: T201
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    settings = json.loads(sys.stdin.buffer.readline())
    die_with(settings["parent"])
    sys.path.append(sys.argv[1])
    say("loading", value=0.0)
    try:
        server = serve(settings)
    except RuntimeError as error:
        # The engine logs the cause itself, and a traceback would hide it. It writes its log in a thread, which only an
        # ordinary exit waits for; at this point no client is connected yet.
        sys.exit(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):  # builds of early 2026 install their own handlers
        signal.signal(number, signal.SIG_DFL)
    say("ready", url=server.listening_address)
    for line in sys.stdin.buffer:
        if line.startswith(EXIT):
            break
    # Not sys.exit: that waits forever while a client is connected. There is nothing to clean up.
    os._exit(0)


if __name__ == "__main__":
    main()
