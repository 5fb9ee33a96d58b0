"""The backend `transformers`: `transformers serve` on a folder of safetensors, in an environment that has it.

It loads the model before it listens (since the command line names it), answers one request after the other, and is
protected by a key, which transformers_child checks. https://huggingface.co/docs/transformers/main/en/serving
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from llmsession.backends.endpoint import TRANSFORMERS_FEATURES, Endpoint, Facts
from llmsession.backends.environment import child_environment, new_api_key
from llmsession.backends.flags.capabilities import run_for_words
from llmsession.backends.launch import Launch
from llmsession.backends.probes import AnnouncedPort
from llmsession.backends.start import start_engine
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import ProbeResult
from llmsession.types.errors import BackendNotFoundError, ConfigError, UnsupportedFeatureError

PACKAGES = '"transformers[serving]>=5" torch'

# The packages that it needs; looked up without importing them, which would take seconds.
_NEEDED = ("transformers", "torch", "accelerate", "fastapi", "uvicorn", "openai", "pydantic")
_ASK = (
    "import importlib.metadata as m, importlib.util as u\n"
    f"missing = [name for name in {_NEEDED!r} if u.find_spec(name) is None]\n"
    "print('missing', *missing, '/', '' if 'transformers' in missing else m.version('transformers'))"
)
_ANSWER = re.compile(r"^missing(.*) / *(\S*)$", re.MULTILINE)
# The first major version whose `serve` takes the model on its command line and settings in generation_config.
_OLDEST = 5

_LOADED = re.compile(rb"Loading weights: +(\d+)%")


class TransformersServe:
    """The backend `transformers`. `python`: the interpreter of the environment that has it."""

    name = "transformers"

    def __init__(self, python: Path) -> None:
        self.python = python

    async def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Endpoint:
        """Start the server and wait until it is ready. If this raises, no process is left."""
        if launch.extra_args:
            raise UnsupportedFeatureError(
                f"extra_args are llama-server's flags, and transformers cannot take {' '.join(launch.extra_args)}",
                feature="extra_args",
                backend=self.name,
            )
        version = await ask_version(self.python)
        folder = nameable(launch.model_path, launch.cache)
        api_key = new_api_key()
        command = Command(
            name=self.name,
            argv=[
                str(self.python),
                str(Path(__file__).with_name("transformers_child.py")),
                *("serve", str(folder), "--host", "127.0.0.1", "--port", "0"),
            ],
            env=child_environment(launch.cache, _environment(launch)),
            watches_stdin=True,
            greeting=api_key.encode() + b"\n",
            farewell=b"exit\n",
        )

        def make_probe(log: LogFile) -> LoadingProbe:
            return LoadingProbe(log, launch.on_progress)

        return await start_engine(
            self.name,
            command,
            launch,
            make_probe,
            api_key=api_key,
            child_started=child_started,
            version=f"transformers {version}",
            features=TRANSFORMERS_FEATURES,
            # The server has no page that reports them.
            facts=Facts(context_length=launch.context_length, parallel=1, build=version),
        )


class LoadingProbe(AnnouncedPort):
    """Like AnnouncedPort, and reports the loaded share of the weights, read from the progress bar in the log."""

    def __init__(self, log: LogFile, on_progress: Callable[[float], None] | None) -> None:
        super().__init__(log)
        self._on_progress = on_progress
        self._told = -1

    async def __call__(self) -> ProbeResult:
        """Check once."""
        if self._on_progress is not None:
            percents = _LOADED.findall(self.log.read_log())
            if percents and int(percents[-1]) != self._told:
                self._told = int(percents[-1])
                self._on_progress(self._told / 100)
        return await super().__call__()


def _environment(launch: Launch) -> dict[str, str]:
    """Return the variables for the server. The model is on this disk, so nothing is looked up online or reported."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": str(launch.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        **({"CUDA_VISIBLE_DEVICES": ""} if launch.device.kind == "cpu" else {}),
    }


def find_python(python_path: str | Path | None) -> Path:
    """Return the named Python interpreter, else the running one. Raises ConfigError if it is not a program."""
    if python_path is None:
        return Path(sys.executable)
    found = shutil.which(Path(python_path).expanduser())
    if found is None:
        raise ConfigError(
            f"python_path={str(python_path)!r} is not a program that can be run: name the Python of an environment, "
            "such as …/bin/python"
        )
    return Path(found).absolute()


async def ask_version(python: Path) -> str:
    """Return the version of transformers in the environment of this interpreter.

    Raises BackendNotFoundError if a package is missing or too old, ConfigError if it is not a Python interpreter.
    """
    hint = f"{shlex.quote(str(python))} -m pip install {PACKAGES}"
    try:
        said = await run_for_words([str(python), "-c", _ASK])
    except (OSError, TimeoutError) as error:
        raise ConfigError(f"python_path={str(python)!r} does not run: {error}") from error
    found = _ANSWER.search(said)
    if found is None:
        raise ConfigError(f"python_path={str(python)!r} is not a Python: it says {said.strip()[:80]!r}")
    if missing := found[1].split():
        raise BackendNotFoundError(
            f"{python} has no {', '.join(missing)}, which the transformers backend needs: {hint} brings it, "
            "or name another environment with python_path=",
            hint=hint,
        )
    if int(found[2].partition(".")[0]) < _OLDEST:
        raise BackendNotFoundError(
            f"{python} has transformers {found[2]}, and the backend needs {_OLDEST} or newer: {hint}", hint=hint
        )
    return found[2]


def nameable(folder: Path, cache: Path) -> Path:
    """Return the folder, or a link to it if its path contains `@`, after which transformers expects a revision.

    Raises ConfigError if the link's path contains `@` as well.
    """
    if "@" not in str(folder):
        return folder
    link = cache / f"weights-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    if "@" in str(link):
        raise ConfigError(f"transformers cannot open {folder}, nor a link in {cache}: a path may hold no @")
    new = link.with_name(f"{link.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(folder, target_is_directory=True)
    new.replace(link)
    return link
