"""The child that hosts llama.cpp's server from the wheel. A program of its own: it imports nothing of ours.

The server holds Python's lock for the whole load and cannot be stopped while a client is connected (LLAMA_SERVER §7):
so the kernel is asked beforehand to end us with our parent, no signal handler of Python's is relied on, and the end is
os._exit. Settings come as one line of JSON on stdin; then stdin is the parent's hand: closed, or an order, ends us.
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
    """Have the kernel kill us when the parent is gone, before anything slow is imported."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)


def say(state: str, **payload: Any) -> None:
    """One line for the parent."""
    print(STATE + json.dumps({"state": state, "payload": payload}), flush=True)  # noqa: T201


def list_gpus() -> list[dict[str, Any]]:
    """Those that this wheel sees. One that shares the CPU's memory counts where there is no other."""
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
    """Set a field, such as `sampling.temp`; of an enumeration the members come by their names."""
    xllamacpp = importlib.import_module("xllamacpp")
    if enumeration is not None:
        members = getattr(xllamacpp, enumeration)
        value = [members[name] for name in value] if isinstance(value, list) else members[value]
    *path, last = field.split(".")
    target = params
    for name in path:
        target = getattr(target, name)
    if path == ["sampling"]:
        # Said by the user: else what the model's file advises would count.
        said = getattr(xllamacpp.common_params_sampling_config, f"COMMON_PARAMS_SAMPLING_CONFIG_{last.upper()}", 0)
        target.user_sampling_config |= int(said)
    setattr(target, last, value)


def serve(settings: dict[str, Any]) -> Any:
    """Load the model and serve; gives the server and keeps it alive by that."""
    # By name: the wheel has no types, and the path to it was added a moment ago.
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
    """Until the parent has had enough; or, with the word `devices`, one line that lists the GPUs."""
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
        # The engine says the cause itself, and a trace of ours would hide it. It writes its log in a thread, which only
        # an ordinary exit waits for; here nobody is connected yet.
        sys.exit(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):  # builds of early 2026 put handlers of their own here
        signal.signal(number, signal.SIG_DFL)
    say("ready", url=server.listening_address)
    for line in sys.stdin.buffer:
        if line.startswith(EXIT):
            break
    # Not sys.exit: that waits for ever while a client is connected. Nothing here has to be put away.
    os._exit(0)


if __name__ == "__main__":
    main()
