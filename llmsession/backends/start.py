"""Starts an engine: spawns it, waits until it is ready, asks for its facts, and explains what went wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from llmsession.backends.diagnosis.preflight import check_disk
from llmsession.backends.endpoint import LLAMA_SERVER_FEATURES, Endpoint, Facts, Feature, ask_facts, is_speculative
from llmsession.backends.launch import Launch
from llmsession.processes.child import Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import ProbeResult
from llmsession.types.errors import (
    ConfigError,
    InvalidModelError,
    ProtocolError,
    StartFailedError,
    StartTimeoutError,
)

# The log output of each engine about a chat template that it cannot read; only one of them gives the reason.
_TEMPLATE_FAULT = re.compile(
    r"supplied chat template is not supported|chat_templates_init: error: (?:parser: )?(?P<why>[^\n]+)"
)


class EngineProbe(Protocol):
    """Checks whether an engine is ready. `base_url`: where it listens, once it is ready."""

    base_url: str | None

    async def __call__(self) -> ProbeResult:
        """Check once."""
        ...


async def start_engine(
    backend: str,
    command: Command,
    launch: Launch,
    make_probe: Callable[[LogFile], EngineProbe],
    *,
    api_key: str,
    child_started: Callable[[Child], None],
    version: str | None = None,
    features: frozenset[Feature] = LLAMA_SERVER_FEATURES,
    facts: Facts | None = None,
) -> Endpoint:
    """Spawn an engine, wait until it is ready, and ask for its facts, unless `facts` are given.

    If this raises, no process is left. Raises ConfigError, InvalidModelError, ProtocolError and what describes a
    failed start: StartFailedError, StartTimeoutError, NotEnoughMemoryError.
    """
    check_disk(launch.logs)
    log = LogFile(launch.logs, command.name)
    child = Child(command, log, records=launch.records)
    child_started(child)
    probe = make_probe(log)
    try:
        await child.start(probe, timeout=launch.start_timeout)
    except (StartFailedError, StartTimeoutError) as error:
        from llmsession.backends.diagnosis.explain import explain_failure

        if launch.chat_template is not None and (found := _TEMPLATE_FAULT.search(log.tail(60))) is not None:
            raise ConfigError(
                f"chat_template: {launch.chat_template} is not a template that the engine can read: "
                f"{found['why'] or 'look for an unclosed brace or block'}"
            ) from error
        if (better := explain_failure(error, backend, child, launch)) is None:
            raise
        raise better from error
    try:
        from llmsession.backends.endpoint import find_features
        from llmsession.wire.http import HttpClient

        if probe.base_url is None:
            raise ProtocolError(f"{backend} said that it is ready, but not where it listens")
        client = HttpClient(probe.base_url, api_key=api_key)
        if facts is None:
            facts, props = await ask_facts(client)
            features = await find_features(client, props)
        if launch.draft_model is not None and not is_speculative(await client.get("/slots")):
            raise InvalidModelError(
                f"{launch.draft_model} cannot draft for {launch.alias}: the two have not the same vocabulary; "
                "take a smaller model of the same family",
                path=launch.draft_model,
                reason="another vocabulary",
            )
        child.annotate({"url": probe.base_url, "key": api_key, "model": launch.alias})
    except BaseException:
        await child.aclose()
        raise
    return Endpoint(
        backend=backend,
        client=client,
        api_key=api_key,
        child=child,
        launch=launch,
        facts=facts,
        version=version or facts.build,
        features=features,
    )
