"""The embedded engine hosted by a stand-in for another program, which is given llama-server's flags. Stands alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PROGRAM = Path(__file__).parents[1] / "llmsession" / "backends" / "embedded_child.py"


def load_embedded_child() -> ModuleType:
    """The module by its file: a stand-in runs without the package on its path."""
    spec = importlib.util.spec_from_file_location("embedded_child", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(embedded: ModuleType, given: Mapping[str, str], key: str) -> Any:
    """The running server. `given` are flags with their values."""
    return embedded.serve(
        {
            "api_key": key,
            "model_path": given["--model"],
            "alias": given["--alias"],
            "lora": [],
            "fields": [
                ("n_parallel", int(given["--parallel"]), None),
                ("n_ctx", int(given["--ctx-size"]), None),
                ("kv_unified", False, None),
                ("cpuparams.n_threads", int(given["--threads"]), None),
                ("cache_ram_mib", int(given.get("--cache-ram", "0")), None),
                ("endpoint_metrics", True, None),
                ("endpoint_slots", True, None),
                ("ui", False, None),
            ],
        }
    )
