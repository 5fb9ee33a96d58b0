"""A command line in today's words, for builds of today and of November 2024."""

from __future__ import annotations

import pytest

from llmsession.backends.flags.capabilities import Capabilities, parse_help
from llmsession.backends.flags.translate import translate, translate_extra
from llmsession.types.errors import ConfigError, UnsupportedFeatureError
from tests.played_servers import FIXTURES

TODAY = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-lm,   --load-mode MODE                 model loading mode, which has taken the place of --mlock
-ngl,  --gpu-layers, --n-gpu-layers N   an exact number, 'auto', or 'all' (default: auto)
--lora FNAME                            path (use comma-separated values to load multiple adapters)
--log-colors [on|off|auto]              Set colored logging
-lv,   --verbosity, --log-verbosity N   Values:
                                         - 3: info
--spec-draft-n-max N                    number of tokens to draft
--spec-draft-model, -md, --model-draft FNAME
                                        draft model for speculative decoding
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max or
                                        --spec-ngram-mod-n-max
                                        (env: LLAMA_ARG_DRAFT_MAX)
--spec-ngram-size-n N                   the argument has been removed. use the respective one
--context-shift, --no-context-shift     whether to use context shift
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI
--fim-qwen-1.5b-default                 another model
--metrics                               enable prometheus compatible metrics endpoint
"""


def build(text: str, version: str = "4100 (74d73dc)") -> Capabilities:
    """Of a build whose help this is."""
    options, removed = parse_help(text)
    return Capabilities(options=options, removed=removed, version=version)


NEW = build(TODAY, "0.6.0-dev")
OLD = build((FIXTURES / "llama-server-b4100.help.txt").read_text())
LLAMAFILE = build((FIXTURES / "llamafile-0.8.help.txt").read_text(), "llamafile 0.8")


def test_help_is_read_option_by_option() -> None:
    """LLAMA_SERVER 4: what is only mentioned is none, what was removed is none, and some take a value."""
    assert ("-c", "--ctx-size") == NEW.by_flag["--ctx-size"].flags
    assert "N" == NEW.by_flag["-c"].takes
    assert "FNAME" == NEW.by_flag["-md"].takes
    assert "" == NEW.by_flag["--metrics"].takes
    assert "--fim-qwen-1.5b-default" in NEW.by_flag
    assert "--mlock" not in NEW.by_flag
    assert "--draft" not in NEW.by_flag
    assert [("--draft", "--draft-n", "--draft-max"), ("--spec-ngram-size-n",)] == [o.flags for o in NEW.removed]
    assert ("", "") == (OLD.by_flag["-fa"].takes, OLD.by_flag["--log-colors"].takes)
    assert "FNAME SCALE" == OLD.by_flag["--lora-scaled"].takes


def test_llamafiles_help_is_read_as_well() -> None:
    """LLAMA_SERVER 8: each spelling with its value, indented by two."""
    assert ("-t", "--threads") == LLAMAFILE.by_flag["-t"].flags
    assert ("N", "N") == (LLAMAFILE.by_flag["--threads"].takes, LLAMAFILE.by_flag["--n-gpu-layers"].takes)
    assert "--cont-batching" in LLAMAFILE.by_flag
    assert not LLAMAFILE.has_child_mode


@pytest.mark.parametrize(
    ("said", "old", "new"),
    [
        ("--flash-attn on", "--flash-attn", "--flash-attn on"),
        ("-fa on", "-fa", "-fa on"),
        ("-fa", "-fa", "-fa on"),
        ("-fa auto", "", "-fa auto"),
        ("--log-colors off", "", "--log-colors off"),
        ("--verbosity 3", "", "--verbosity 3"),
        ("--load-mode none", "--no-mmap", "--load-mode none"),
        ("--load-mode mlock", "--no-mmap --mlock", "--load-mode mlock"),
        ("--load-mode auto", "", "--load-mode auto"),
        ("--mlock", "--mlock", "--load-mode mmap+mlock"),
        ("--no-mmap --ctx-size 5", "--no-mmap --ctx-size 5", "--ctx-size 5 --load-mode none"),
        ("--no-mmap --mlock", "--no-mmap --mlock", "--load-mode mlock"),
        ("--spec-draft-n-max 5", "--draft-max 5", "--spec-draft-n-max 5"),
        ("--draft 5", "--draft 5", "--spec-draft-n-max 5"),
        ("--spec-draft-model x", "--model-draft x", "--spec-draft-model x"),
        ("--gpu-layers all", "--gpu-layers 9999", "--gpu-layers all"),
        ("-ngl auto", "", "-ngl auto"),
        ("-ngl 7", "-ngl 7", "-ngl 7"),
        ("--lora a,b", "--lora a --lora b", "--lora a,b"),
        ("--ctx_size 5", "--ctx-size 5", "--ctx-size 5"),
        ("--context-shift", None, "--context-shift"),
    ],
)
def test_each_build_gets_its_own_words(said: str, old: str | None, new: str | None) -> None:
    """CAPABILITIES B16; LLAMA_SERVER trap 13: renamed, removed, and with a value that was none."""
    for capabilities, expected in ((OLD, old), (NEW, new)):
        if expected is None:
            with pytest.raises(ConfigError):
                translate_extra(said.split(), capabilities)
        else:
            assert expected.split() == translate_extra(said.split(), capabilities)


def test_what_may_be_missing_is_omitted() -> None:
    """Our own flags that only say what such a build does anyway."""
    assert [] == translate(["--cache-ram", "5"], OLD, is_optional=True)
    assert ["--metrics"] == translate(["--metrics"], OLD, is_optional=True)


def test_what_a_build_cannot_do_is_refused_by_name() -> None:
    """CAPABILITIES B16: before the start, not by an exit code after it."""
    words = r"version 4100 .*has no --chat-template-file, so it cannot be given chat_template: name a newer build"
    with pytest.raises(UnsupportedFeatureError, match=words) as caught:
        translate(["--chat-template-file", "x.jinja"], OLD, option="chat_template")
    assert ("chat_template", "llama-server") == (caught.value.feature, caught.value.backend)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--contex-shift"], r"0\.6\.0-dev\) has no --contex-shift; did you mean --context-shift"),
        (["--spec-ngram-size-n", "3"], "any more; it says: use the respective one"),
        (["--bogus"], "has no --bogus$"),
        (["--metrics", "5"], "takes nothing after --metrics, and was given '5'"),
        (["--ctx-size"], "wants a value after --ctx-size: N"),
        (["--ctx-size=5"], "as two arguments"),
        (["5"], "begins with '5', which is not a flag"),
        (["-gan", "4"], "has no -gan"),
    ],
)
def test_a_wrong_flag_of_the_users_is_told(words: list[str], match: str) -> None:
    """API.md 3: extra_args are llama-server's flags; each is checked against the build's --help."""
    with pytest.raises(ConfigError, match=match):
        translate_extra(words, NEW)
