"""What a model is said to need, against what the engine says that it has taken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsession import read_model_info
from llmsession.models.bundled import bundled_path
from llmsession.models.memory_estimate import BATCH
from tests.model_files import write_random_model

SHAPES: dict[str, dict[str, Any]] = {
    "tiny-chat": {},
    "few heads": {"width": 256, "layers": 6, "context": 4096, "heads": 8, "kv_heads": 2, "feed_forward": 1024},
    "many heads": {"width": 512, "layers": 4, "context": 4096, "heads": 8, "kv_heads": 8, "feed_forward": 1536},
    "a window": {"width": 256, "layers": 12, "context": 8192, "heads": 4, "kv_heads": 4, "window": 512},
    "many tokens": {"width": 128, "layers": 2, "context": 4096, "heads": 4, "kv_heads": 1, "more_tokens": 30_000},
}
# Only a server that is told to speak of everything does; ours are not.
PROGRAM = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]) * int(sys.argv[3]), int(sys.argv[3])
params.n_batch = params.n_ubatch = int(sys.argv[4])
params.kv_unified, params.verbosity, params.port, params.ui = False, 4, 0, False
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
import os; os._exit(0)
"""


@pytest.mark.parametrize(("context", "parallel"), [(1024, 1), (2048, 4), (4096, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_that_is_needed(tmp_path: Path, shape: str, context: int, parallel: int) -> None:
    """CAPABILITIES A12: within 15 % of what the engine reports, for the tiny model and for other shapes."""
    path = write_random_model(tmp_path / "m.gguf", **SHAPES[shape]) if SHAPES[shape] else bundled_path()
    arguments = [sys.executable, "-c", PROGRAM, str(path), str(context), str(parallel), str(BATCH)]
    said = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    found = re.findall(r"(?:model|KV|compute|output) buffer\s+size\s*=\s*([\d.]+) MiB", said.stdout + said.stderr)
    assert len(found) >= 3
    taken = sum(map(float, found)) * 2**20
    assert taken == pytest.approx(read_model_info(path).memory_needed(context, parallel), rel=0.15)
