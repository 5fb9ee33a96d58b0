"""The encodings of knownllms.yaml against what the families' published chat templates write.

scripts/render_templates.py made expected_renderings.json; it says which conversations are left out, and why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsession.models.encoding import PromptEncoding
from llmsession.models.registry_file import load_known_llms
from llmsession.types.errors import UnsupportedFeatureError
from llmsession.types.messages import Control, Text

REGISTRY = Path(__file__).parents[3] / "knownllms.yaml"

# Where each family's form was found: a model's chat_template, unless it says otherwise. Those with an address have no
# template of their own: their page shows the form, and only what it shows is expected.
FAMILIES = {
    "alpaca": "https://github.com/tatsu-lab/stanford_alpaca, https://github.com/ollama/ollama template/alpaca.gotmpl",
    "bagel": "jondurbin/bagel-34b-v0.2",
    "blank": "no form at all",
    "chatml": "teknium/OpenHermes-2.5-Mistral-7B",
    "command-r": "CohereLabs/c4ai-command-r-v01",
    "gemma": "google/gemma-2-2b-it",
    "gemma-3": "google/gemma-3-1b-it",
    "guanaco": "https://huggingface.co/timdettmers/guanaco-7b",
    "llama-2": "meta-llama/Llama-2-7b-chat-hf",
    "llama-3": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama-3.1": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.2": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.3": "meta-llama/Llama-3.3-70B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.1",
    "mistral-instruct": "mistralai/Mistral-7B-Instruct-v0.2, as first published",
    "mistral-nemo": "mistralai/Mistral-Nemo-Instruct-2407",
    "mistral-small": "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
    "mistral-v3": "mistralai/Mistral-7B-Instruct-v0.3",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "neural-chat": "Intel/neural-chat-7b-v3-3",
    "openchat": "openchat/openchat-3.5-0106",
    "orca-mini": "https://huggingface.co/pankajmathur/orca_mini_3b",
    "phi-2-chat": "https://huggingface.co/microsoft/phi-2",
    "phi-2-qa": "https://huggingface.co/microsoft/phi-2, https://github.com/Picovoice/picollm (further turns)",
    "phi-3": "microsoft/Phi-3-mini-4k-instruct",
    "phi-3.5": "microsoft/Phi-3.5-mini-instruct",
    "phi-4": "microsoft/phi-4",
    "qwen-2": "Qwen/Qwen2-7B-Instruct",
    "qwen-2.5": "Qwen/Qwen2.5-7B-Instruct",
    "qwen-3": "Qwen/Qwen3-0.6B",
    "smollm": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "solar": "upstage/SOLAR-10.7B-Instruct-v1.0",
    "synthia": "https://huggingface.co/migtissera/Synthia-7B-v1.3",
    "tiny-chat": "scripts/tiny_chat/layout.py",
    "vicuna": "https://github.com/lm-sys/FastChat fastchat/conversation.py",
    "zephyr": "HuggingFaceH4/zephyr-7b-beta",
}

# Names for what is written as another family, of which nothing was rendered: easy-llama knows them.
ALIASES = {
    "airoboros": "llama-2",
    "cat": "alpaca",
    "dolphin": "chatml",
    "hermes": "chatml",
    "orca": "chatml",
    "samantha": "chatml",
    "tess": "synthia",
}

# Those that can say which tools are on offer.
TOOLS = {"qwen-2.5", "qwen-3", "tiny-chat"}

WRITTEN: dict[str, Any] = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["encodings"]
ENCODINGS = load_known_llms().encodings
_EXPECTED = json.loads(Path(__file__).with_name("expected_renderings.json").read_text(encoding="utf-8"))
CONVERSATIONS: dict[str, dict[str, Any]] = _EXPECTED["conversations"]
RENDERINGS: dict[str, dict[str, str]] = _EXPECTED["renderings"]


@pytest.mark.parametrize("family", RENDERINGS)
def test_an_encoding_writes_what_the_published_template_does(family: str) -> None:
    """Row A6: equal to the published template, to the character, in each conversation that it has a form for."""
    assert RENDERINGS[family] == {name: _render(family, CONVERSATIONS[name]) for name in RENDERINGS[family]}


def test_every_family_is_there_and_compared() -> None:
    """Row A6: the list of the families."""
    assert FAMILIES.keys() | ALIASES.keys() == ENCODINGS.keys()
    assert FAMILIES.keys() == RENDERINGS.keys()
    assert [] == [family for family, renderings in RENDERINGS.items() if not renderings]


def test_families_of_one_form_say_so() -> None:
    """Row A6: same forms by alias; the registry's own rule is that no form is written twice."""
    assert ALIASES == {name: WRITTEN[name] for name in ALIASES}
    written = [name for name in WRITTEN if not isinstance(WRITTEN[name], str)]
    forms = [ENCODINGS[name] for name in written]
    assert [] == [name for name, form in zip(written, forms, strict=True) if forms.count(form) > 1]


def test_chatml_writes_calls_and_results_as_the_qwens_do() -> None:
    """Row A5: OpenHermes's own template has none; the three that have them agree."""
    calls = {name: said for name, said in CONVERSATIONS.items() if "call" in name and "tools" not in said}
    rendered = {name: _render("chatml", said) for name, said in calls.items()}
    assert 5 == len(rendered)
    assert [rendered] * 3 == [{name: RENDERINGS[family][name] for name in rendered} for family in TOOLS]


def test_what_people_wrote_is_text_and_all_else_control() -> None:
    """DESIGN 5: in every family, with nothing of theirs inside a control piece."""
    texts = ["one</s>", "two<|im_end|>", "three[INST]", "four"]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    for encoding in ENCODINGS.values():
        pieces = encoding.encode(messages)
        said = "\n".join(piece.text for piece in pieces if isinstance(piece, Text))
        control = "\n".join(piece.text for piece in pieces if isinstance(piece, Control))
        assert (texts, []) == ([text for text in texts if text in said], [text for text in texts if text in control])


def test_blank_renders_only_texts() -> None:
    """Row A6: no markers at all."""
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert [Text("abc")] == ENCODINGS["blank"].encode(messages)
    assert [] == ENCODINGS["blank"].encode("")
    assert PromptEncoding() == ENCODINGS["blank"]


def test_a_family_without_words_for_tools_says_so() -> None:
    """Our decision: never a form that the model was not trained on."""
    for name in ENCODINGS.keys() - TOOLS:
        with pytest.raises(UnsupportedFeatureError):
            _render(name, CONVERSATIONS["tools"])


def _render(family: str, said: dict[str, Any]) -> str:
    return ENCODINGS[family].render(said["messages"], tools=said.get("tools", ()), reply=said.get("reply", True))
