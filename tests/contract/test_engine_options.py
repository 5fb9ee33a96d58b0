"""What an engine is told at its start really takes effect: seen in its log, in what it says of itself, in replies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from llmsession import ConfigError, InvalidModelError, Lora, Session, UsageError, available_devices
from llmsession.backends import embedded_child
from llmsession.backends.embedded import find_wheel
from llmsession.backends.flags import embedded
from llmsession.backends.flags.launch_table import Setting, list_rows
from llmsession.backends.launch import Launch
from llmsession.models.bundled import bundled_path
from llmsession.types.device import DeviceRequest, Gpu
from tests.adapter_files import write_lora
from tests.engines import ENGINES, Engine, own_child
from tests.hub_server import Hub
from tests.model_files import write_random_model

pytestmark = pytest.mark.anyio

ASKED = "My name is Rosalind."
ANSWERED = "Hello Rosalind!"
# Puts a word of its own into what the model is asked to repeat.
TEMPLATE = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\nreply with "{{ m.content }} by template"<|im_end|>\n{% endfor %}'
    "<|im_start|>assistant\n\n"
)


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.backend)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each real engine that is here, afresh for each test."""
    found: Engine = request.param
    return found


async def reply(session: Session, text: str = ASKED, **keywords: Any) -> str:
    """The likeliest one."""
    return (await session.prompt(text, temperature=0, max_tokens=30, **keywords)).text


async def ask(session: Session, path: str) -> Any:
    """What the engine answers, past all of ours."""
    return msgspec.json.decode(await session._info.endpoint.client.get(path))


def log_of(session: Session) -> str:
    """All it said."""
    assert session.log_path is not None
    return session.log_path.read_text(errors="replace")


# Adapters.


@pytest.mark.parametrize("api", [None, "chat"])
async def test_an_adapter_counts_until_it_is_switched_off(engine: Engine, tmp_path: Path, api: str | None) -> None:
    """B18, LLAMA_SERVER trap 12: per request and back again, and nothing of what the other has read is reused."""
    first, second = (write_lora(tmp_path / f"{seed}.gguf", seed=seed) for seed in (0, 1))
    async with Session(**engine.options(lora=[first, Lora(second, 0.0)], prompt_encoding=api, parallel=1)) as session:
        with_first = await reply(session)
        assert ANSWERED != with_first
        assert ANSWERED == await reply(session, lora=[])
        with_second = await reply(session, lora=[Lora(second)])
        assert with_second not in (ANSWERED, with_first)
        assert with_first == await reply(session, lora=[str(first)])
        assert ANSWERED == await reply(session, lora=[Lora(first, 0.0)])
        assert with_first == await reply(session)
        assert [(0, str(first)), (1, str(second))] == [
            (each["id"], each["path"]) for each in await ask(session, "/lora-adapters")
        ]


async def test_no_reply_is_read_from_what_another_adapter_has_read(engine: Engine, tmp_path: Path) -> None:
    """LLAMA_SERVER trap 12, one step on: the engine's cache of prompts does not know which adapter made them.

    Seen in build 11434: with that cache on, the second answer of the plain model below was another.
    """
    adapter = write_lora(tmp_path / "a.gguf")
    other = 'reply with "the cat sat on the mat and other things of that kind"'
    async with Session(**engine.options(lora=adapter, parallel=1)) as session:
        plain = await reply(session, other, lora=[])
        assert ANSWERED == await reply(session, lora=[])
        for _ in range(3):
            await reply(session)
            await reply(session, other)
            assert ANSWERED == await reply(session, lora=[])
            assert plain == await reply(session, other, lora=[])


async def test_a_scale_is_a_scale(engine: Engine, tmp_path: Path) -> None:
    """B18: path and scale; what the session was opened with, and another for one reply."""
    adapter = write_lora(tmp_path / "a.gguf")
    async with Session(**engine.options(lora=Lora(adapter, 0.0))) as session:
        assert ANSWERED == await reply(session)
        full, quarter = await reply(session, lora=[adapter]), await reply(session, lora=[Lora(adapter, 0.25)])
        assert 3 == len({ANSWERED, full, quarter})
    async with Session(**engine.options(lora=[Lora(adapter, 0.25)])) as session:
        assert quarter == await reply(session)


async def test_an_adapter_may_have_any_name(engine: Engine, tmp_path: Path) -> None:
    """LLAMA_SERVER 4.4: the engine reads a list with commas and quotation marks; a path may hold both."""
    odd = write_lora(tmp_path / "a, \"b\" 'c' :1 ü.gguf")
    async with Session(**engine.options(lora=[write_lora(tmp_path / "z.gguf", seed=1), odd])) as session:
        assert str(odd) == (await ask(session, "/lora-adapters"))[1]["path"]
        assert ANSWERED == await reply(session, lora=[])
        assert ANSWERED != await reply(session, lora=[odd])


async def test_an_adapter_that_was_not_loaded_is_refused_with_those_that_were(engine: Engine, tmp_path: Path) -> None:
    """B18: a request picks among the loaded ones; others are a mistake that is told at once."""
    adapter = write_lora(tmp_path / "a.gguf")
    async with Session(**engine.options(lora=adapter)) as session:
        with pytest.raises(UsageError, match=r"b\.gguf was not loaded .*it has .*a\.gguf"):
            await session.prompt(ASKED, lora=[Lora(tmp_path / "b.gguf")])
        with pytest.raises(UsageError, match="extra= may not set lora"):
            await session.prompt(ASKED, extra={"lora": []})
    async with Session(**engine.options()) as session:
        with pytest.raises(UsageError, match="it has none"):
            await session.prompt(ASKED, lora=[adapter])
        assert ANSWERED == await reply(session, lora=[])


async def test_adapters_come_back_after_a_crash(engine: Engine, tmp_path: Path) -> None:
    """Issue "Stay up": a loaded LoRA, the slots and the context are the same after a restart."""
    adapter = write_lora(tmp_path / "a.gguf")
    async with Session(**engine.options(lora=Lora(adapter, 0.25), parallel=2, context_length=512)) as session:
        before, was = await reply(session), own_child(session)
        was._climb(was._process, None)  # type: ignore[arg-type]
        with anyio.fail_after(10):
            await was.exited.wait()
        assert before == await reply(session)
        assert ANSWERED == await reply(session, lora=[])
        assert (2, 512) == (session.parallel, session.context_length)
        assert list(was.command.argv) == list(own_child(session).command.argv)


async def test_an_adapter_from_hugging_face(engine: Engine, tmp_path: Path, hub: Hub) -> None:
    """B18: a reference is fetched like a model; the same reference names it in a request."""
    hub.add("foo/Lora-GGUF", {"ok-lora.gguf": write_lora(tmp_path / "a.gguf").read_bytes()})
    ref = "hf:foo/Lora-GGUF/HEAD/ok-lora.gguf"
    async with Session(**engine.options(lora=ref)) as session:
        assert ANSWERED != await reply(session)
        assert ANSWERED == await reply(session, lora=[])
        assert await reply(session) == await reply(session, lora=[Lora(ref)])


# A draft model, a projector, a template.


async def test_a_draft_model_changes_nothing_but_the_speed(engine: Engine) -> None:
    """B18: speculative decoding: the same text at temperature 0, and the engine says that it speculates."""
    texts = {}
    for draft in (None, bundled_path()):
        async with Session(**engine.options(draft_model=draft, parallel=2)) as session:
            texts[draft] = [await reply(session, text) for text in (ASKED, 'reply with "one two three four five"')]
            slots = await ask(session, "/slots")
            assert [draft is not None] * 2 == [slot["speculative"] for slot in slots]
    assert 1 == len({tuple(text) for text in texts.values()})


async def test_a_draft_model_that_cannot_draft_is_told(engine: Engine, tmp_path: Path) -> None:
    """B18: the engine itself goes on without a word, at the old speed; seen in build 11434."""
    other = write_random_model(tmp_path / "other.gguf", more_tokens=500)
    with pytest.raises(InvalidModelError, match=r"other\.gguf cannot draft for tiny-chat: .* same vocabulary"):
        await Session.open(**engine.options(draft_model=other))


WRONG_FILES: list[tuple[str, str, str]] = [
    ("lora", "none.gguf", "not a usable LoRA adapter: there is no such file"),
    ("lora", "text.gguf", "not a usable LoRA adapter: it is not a GGUF file"),
    ("lora", "model.gguf", "not a usable LoRA adapter: it is a GGUF file, but of no LoRA adapter"),
    ("lora", "gemma.gguf", "made for a model of the kind gemma, and this one is llama"),
    ("draft_model", "none.gguf", "not a usable draft model: there is no such file"),
    ("draft_model", "lora.gguf", "not a usable draft model: it is a GGUF file, but of no language model"),
    ("mmproj", "none.gguf", "there is no such file"),
    ("mmproj", "text.gguf", "it is not a GGUF file"),
    ("mmproj", "model.gguf", "of the kind llama, not of a projector"),
]


@pytest.mark.parametrize(("option", "name", "words"), WRONG_FILES)
async def test_a_wrong_file_is_told_before_anything_starts(
    engine: Engine, tmp_path: Path, option: str, name: str, words: str
) -> None:
    """Bad input: which file, what it is, what it should be; no process is started for it."""
    (tmp_path / "text.gguf").write_text("I am no model. " * 100)
    (tmp_path / "model.gguf").write_bytes(bundled_path().read_bytes())
    write_lora(tmp_path / "gemma.gguf", architecture="gemma")
    write_lora(tmp_path / "lora.gguf")
    with pytest.raises(InvalidModelError, match=words) as caught:
        await Session.open(**engine.options(**{option: tmp_path / name}))
    assert tmp_path / name == caught.value.path
    assert not list((tmp_path / "cache").rglob("*.log"))


async def test_an_adapter_of_another_shape_ends_the_start(engine: Engine, tmp_path: Path) -> None:
    """Bad input: what only the engine can see is told in its words, with the log."""
    with pytest.raises(ConfigError, match=r"the LoRA adapter .*small\.gguf cannot be loaded"):
        await Session.open(**engine.options(lora=write_lora(tmp_path / "small.gguf", width=64)))


@pytest.mark.parametrize("form", ["path", "text of a path", "text"])
async def test_a_chat_template_of_ones_own(engine: Engine, tmp_path: Path, form: str) -> None:
    """API 3: a file, or the template's own text; it is what the chat endpoint then applies."""
    path = tmp_path / "my.jinja"
    path.write_text(TEMPLATE)
    given = {"path": path, "text of a path": str(path), "text": TEMPLATE}[form]
    async with Session(**engine.options(chat_template=given)) as session:
        assert session.encoding is None
        assert "Rosalind by template" == await reply(session, "Rosalind")
        assert 'reply with "x by template"' in await session.render_template("x")
        kept = list((tmp_path / "cache").rglob("*.jinja"))
        assert ([TEMPLATE] if form == "text" else []) == [each.read_text() for each in kept]
        assert {0o600} >= {each.stat().st_mode & 0o777 for each in kept}


async def test_a_chat_template_speaks_for_a_base_model(engine: Engine, tmp_path: Path) -> None:
    """API 3: with a template given, a model without one is no base model, and nothing is warned of."""
    model = write_random_model(tmp_path / "base.gguf", template="")
    async with Session(**engine.options(model=model, chat_template=TEMPLATE)) as session:
        assert session.encoding is None
        assert "by template" in await session.render_template("x")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{% for m in messages %}{{ m.content }", "not a template that the engine can read"),
        ("chatml", r"cannot be read \(No such file or directory\): .*a name such as chatml is neither"),
        (Path("/"), "cannot be read"),
        (bundled_path(), "not UTF-8 text"),
        (Path(__file__).parent / "conftest.py", "no Jinja template"),
        ("{{ '\ud800' }}", "lone surrogate"),
    ],
    ids=["broken", "a name", "a folder", "a model", "a program", "no unicode"],
)
async def test_a_wrong_chat_template_is_told(engine: Engine, tmp_path: Path, given: str | Path, words: str) -> None:
    """LLAMA_SERVER 4.4: an unknown name would be taken for a template of that one word."""
    with pytest.raises(ConfigError, match=f"chat_template.*{words}"):
        await Session.open(**engine.options(chat_template=given))
    assert not list((tmp_path / "cache").rglob("*.new"))


# How it computes.


async def test_attention_caches_and_positions(engine: Engine) -> None:
    """API 3: flash_attention, cache_type_k and _v, rope_freq_base, as the engine's own log says."""
    options = engine.options(
        flash_attention=True, cache_type_k="q8_0", cache_type_v="q4_0", rope_freq_base=12345, kv_offload=False,
        extra_args=("--log-verbosity", "4"),
    )  # fmt: skip
    async with Session(**options) as session:
        await reply(session)
        log = log_of(session)
    for words in ("flash_attn            = enabled", "freq_base             = 12345.0", "K (q8_0)", "V (q4_0)"):
        assert words in log
    async with Session(**engine.options(flash_attention=False, extra_args=("--log-verbosity", "4"))) as session:
        assert ANSWERED == await reply(session)
        log = log_of(session)
    for words in ("flash_attn            = disabled", "freq_base             = 10000.0", "K (f16)", "V (f16)"):
        assert words in log


async def test_the_cpu_with_its_threads(engine: Engine) -> None:
    """B13: cpu and cpu:N; the engine's log says how many threads it has, and no layer is anywhere else."""
    for device, threads in (("cpu", 1), ("cpu:2", 2)):
        options = {**engine.options(device=device), "threads": 1 if threads == 1 else None}
        async with Session(**options) as session:
            assert ANSWERED == await reply(session)
            assert f"n_threads = {threads}" in log_of(session)


async def test_a_gpu_where_there_is_none(engine: Engine) -> None:
    """B13: best takes the CPU; gpu is an error that says what would bring one. There is no GPU on our machines."""
    options = engine.options()
    devices = await available_devices(backend=options["backend"], server_path=options.get("server_path"))
    assert ["cpu"] == [device.id for device in devices]
    assert 0 < devices[0].free_bytes <= devices[0].memory_bytes
    assert devices[0].name
    for device in ("gpu", "gpu:1"):
        with pytest.raises(ConfigError, match=r"sees none here: .* server_path="):
            await Session.open(**engine.options(device=device))
    async with Session(**engine.options(device=devices[0])) as session:
        assert ANSWERED == await reply(session)


async def test_more_context_than_the_model_was_trained_for(engine: Engine) -> None:
    """API 3: the rope base is raised with a warning, or ConfigError where the backend cannot; never capped."""
    if engine.backend == "embedded":
        with pytest.raises(ConfigError, match=r'2048 tokens .* \(backend="llama-server" could\)'):
            await Session.open(**engine.options(context_length=4096))
        return
    with pytest.warns(UserWarning, match="rotary positions is set to 20946"):
        session = await Session.open(**engine.options(context_length=4096, parallel=2))
    try:
        assert 4096 == session.context_length
        assert ANSWERED == await reply(session)
        long = await session.generate("a" * 3000, max_tokens=5, temperature=0)
        assert 3000 == long.usage.prompt_tokens
    finally:
        await session.aclose()


# The user's own flags.


async def test_the_users_own_flags(engine: Engine) -> None:
    """API 3: `extra_args` reach both engines: defaults of sampling are what the engine then says of itself."""
    arguments = {
        "--temp": 0.5, "--top-k": 7, "--top-p": 0.75, "--min-p": 0.125, "--typical": 0.875, "--xtc-probability": 0.25,
        "--xtc-threshold": 0.375, "--repeat-last-n": 16, "--repeat-penalty": 1.25, "--presence-penalty": 0.5,
        "--frequency-penalty": 0.25, "--dry-multiplier": 0.5, "--dry-base": 1.5, "--dry-allowed-length": 3,
        "--dry-penalty-last-n": 32, "--dynatemp-range": 0.25, "--dynatemp-exp": 1.5, "--mirostat": 2,
        "--mirostat-lr": 0.25, "--mirostat-ent": 4.0,
    }  # fmt: skip
    flags = [word for flag, value in arguments.items() for word in (flag, str(value))]
    async with Session(**engine.options(extra_args=[*flags, "--samplers", "top_k;temperature", "--props"])) as session:
        said = await ask(session, "/props")
    params = said["default_generation_settings"]["params"]
    names = (
        "temperature top_k top_p min_p typical_p xtc_probability xtc_threshold repeat_last_n repeat_penalty "
        "presence_penalty frequency_penalty dry_multiplier dry_base dry_allowed_length dry_penalty_last_n "
        "dynatemp_range dynatemp_exponent mirostat mirostat_eta mirostat_tau"
    )
    assert list(arguments.values()) == [params[name] for name in names.split()]
    assert ["top_k", "temperature"] == params["samplers"]
    assert said["endpoint_props"] is True


async def test_other_flags_of_the_users(engine: Engine) -> None:
    """API 3: drafts by n-grams, flash attention, and the engine's log."""
    arguments = ("--spec-type", "ngram-simple", "-fa", "off", "-ctk", "q8_0", "-lv", "4", "--no-warmup")
    async with Session(**engine.options(extra_args=arguments)) as session:
        assert ANSWERED == await reply(session)
        assert {True} == {slot["speculative"] for slot in await ask(session, "/slots")}
        log = log_of(session)
    assert "flash_attn            = disabled" in log
    assert "K (q8_0)" in log
    assert "warming up" not in log


SAMPLES: dict[Any, str] = {
    embedded._WHOLE: "3",
    embedded._NUMBER: "0.5",
    embedded._TEXT: "top_k;temperature",
    embedded._FOLDER: "/",
    embedded._SWITCH: "off",
    embedded._FRACTIONS: "3,1",
    embedded._KWARGS: '{"a": true}',
    embedded._CACHE_TYPE: "iq4_nl",
}
WORDS = {
    "--flash-attn": "on", "--rope-scaling": "yarn", "--split-mode": "row", "--load-mode": "mmap+mlock",
    "--numa": "isolate", "--reasoning-format": "deepseek-legacy", "--pooling": "last",
    "--spec-type": "ngram-map-k4v,draft-simple",
}  # fmt: skip
READ_BACK = f"""
import enum, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("embedded_child", {embedded_child.__file__!r})
ours = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ours)
sys.path.append(sys.argv[1])
import xllamacpp

def plain(value):
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.name if isinstance(value, enum.Enum) else value

wrong = []
for field, value, enumeration in json.load(sys.stdin):
    params = xllamacpp.CommonParams()
    ours.assign(params, field, value, enumeration)
    at = params
    for name in field.split("."):
        at = getattr(at, name)
    if plain(at) != value:
        wrong.append([field, value, plain(at)])
print(json.dumps(wrong))
"""


def launch_with_everything(folder: Path, device: str) -> Launch:
    """What asks for each field that a Launch can set."""
    template = folder / "template.jinja"
    template.write_text("{{ messages }}")
    return Launch(
        model_path=folder, alias="m", context_length=64, parallel=3, threads=2, cache_ram_mib=0, cache=folder,
        logs=folder, records=folder, device=DeviceRequest(kind="cpu") if device == "cpu" else DeviceRequest(kind="gpu"),
        gpu=None if device == "cpu" else Gpu(name="CUDA1", index=1, text="", memory_bytes=1, free_bytes=1),
        gpu_layers=20, flash_attention=False, kv_offload=False, cache_type_k="q8_0", cache_type_v="bf16",
        rope_freq_base=2e4, kv_folder=folder, draft_model=folder, mmproj=folder, chat_template=template,
    )  # fmt: skip


def test_every_flag_of_the_embedded_engine_is_a_field_of_its_parameters(tmp_path: Path) -> None:
    """B18: each is set and read back, so that a new wheel tells us which it has lost."""
    settings: list[Setting] = []
    for flags, _, read in embedded._VALUES:
        word = SAMPLES.get(read) or next(WORDS[flag] for flag in flags.split() if flag in WORDS)
        settings += embedded.translate_flags([flags.split()[-1], word])
    for flags, _, _ in embedded._SWITCHES:
        settings += embedded.translate_flags([flags.split()[0]])
    for device in ("cpu", "gpu"):
        settings += [field for row in list_rows(launch_with_everything(tmp_path, device)) for field in row.fields]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", READ_BACK, str(find_wheel())],
        input=json.dumps(settings), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (0, []) == (done.returncode, json.loads(done.stdout or "null")), done.stderr
    assert len(settings) > 100
