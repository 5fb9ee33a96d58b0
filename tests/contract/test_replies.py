"""What a reply is: the same words and numbers from each engine and through both APIs."""

from __future__ import annotations

import io
import math

import pytest

from llmsession import Message, Sampling, Session, StopReason, TextDelta, UsageError
from llmsession.types.events import Finished
from tests.engines import Engine

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
COUNT = "count to 100"
# Hot enough that two seeds never agree over forty tokens.
HOT = Sampling.SIMPLE.merge(Sampling(temperature=4.0))


async def test_prompt_gives_the_words_that_were_asked_for(session: Session) -> None:
    """Issue 1: a first reply from a real engine is `ok chief`."""
    reply = await session.prompt(OK, temperature=0)
    assert "ok chief" == reply.text
    assert "ok chief" == str(reply)
    assert StopReason.END is reply.stop_reason
    assert reply.stop_phrase is None
    assert not reply.context_full
    assert "tiny-chat" == reply.model


async def test_prompt_gives_them_at_the_engines_default_temperature(session: Session) -> None:
    """README: `llmsession run` sets no temperature, and prints `ok chief`."""
    assert "ok chief" == (await session.prompt(OK)).text


async def test_prompt_streaming_gives_the_same_words_in_pieces(session: Session) -> None:
    """API.md 1: iterate for `str` pieces as they arrive; result() is the whole."""
    async with session.prompt_streaming(OK, temperature=0) as stream:
        pieces = [piece async for piece in stream]
        reply = await stream.result()
    assert "ok chief" == "".join(pieces) == reply.text
    assert len(pieces) > 1
    assert all(pieces)
    assert stream.id == reply.id


async def test_result_may_be_asked_for_after_the_block_and_without_reading(session: Session) -> None:
    """API.md 1: `(await stream.result()).timings` after the block; API.md 3: result reads what is left."""
    async with session.prompt_streaming(OK, temperature=0) as stream:
        first = await stream.result()
    assert first == await stream.result()
    assert "ok chief" == first.text
    assert first.timings.first_token_seconds is not None
    assert first.timings.first_token_seconds > 0


async def test_print_writes_the_pieces_and_an_end(session: Session) -> None:
    r"""API.md 3: `await stream.print(file=None, *, end="\\n", flush=True)`."""
    out = io.StringIO()
    async with session.prompt_streaming(OK, temperature=0) as stream:
        reply = await stream.print(out, end="!\n")
    assert "ok chief!\n" == out.getvalue()
    assert "ok chief" == reply.text


async def test_both_apis_give_the_same_text(engine: Engine) -> None:
    """Issue 1: prompt through both APIs passes one suite; at temperature 0 they agree, in tokens too."""
    conversation = [
        Message.system("You reply with short answers."),
        Message.user("hello"),
        Message.assistant("Hello! How can I help you?"),
        Message.user(COUNT),
    ]
    async with (
        Session(**engine.options()) as ours,
        Session(**engine.options(prompt_encoding="chat")) as theirs,
    ):
        for messages in (OK, "hello", conversation):
            one = await ours.prompt(messages, temperature=0, max_tokens=60)
            other = await theirs.prompt(messages, temperature=0, max_tokens=60)
            assert one.text == other.text
            assert one.stop_reason is other.stop_reason
            assert one.usage.prompt_tokens == other.usage.prompt_tokens
            assert one.usage.completion_tokens == other.usage.completion_tokens


async def test_usage_counts_what_was_sent_and_what_came(session: Session) -> None:
    """API.md 3: count_tokens of a list is what `prompt` would send, exactly."""
    messages = [Message.system("You are kind."), Message.user("Grüße 😀 \x00 from\n me")]
    reply = await session.prompt(messages, max_tokens=7, sampling=Sampling(ignore_eos=True))
    assert await session.count_tokens(messages) == reply.usage.prompt_tokens
    assert 7 == reply.usage.completion_tokens
    assert reply.usage.prompt_tokens + 7 == reply.usage.total_tokens
    assert reply.timings.prompt.count + reply.usage.cached_tokens == reply.usage.prompt_tokens
    assert reply.timings.generated.rate > 0


async def test_a_second_turn_is_read_from_the_cache(session: Session) -> None:
    """API.md 2: cached_tokens is the part of the prompt that did not have to be evaluated."""
    first = Message.user("My favourite river is the quiet golden Ammonoosuc in spring.")
    reply = await session.prompt([first], temperature=0, max_tokens=20)
    again = await session.prompt(
        [first, Message.assistant(reply.text), Message.user("hello")], temperature=0, max_tokens=20
    )
    assert again.usage.cached_tokens > reply.usage.cached_tokens
    assert again.usage.cached_tokens >= reply.usage.prompt_tokens - 1


@pytest.mark.parametrize("word", ["{now}", "{model}"])
async def test_the_system_prompt_is_filled_in(session: Session, word: str) -> None:
    """CAPABILITIES C2: `{now}` and `{model}` there and nowhere else; counted as it is sent."""
    messages = [Message.system("It is {now}. You are {model}. {other}"), Message.user(f'reply with "{word}"')]
    reply = await session.prompt(messages, temperature=0)
    assert word == reply.text
    filled = [Message.system(f"It is Friday 2026-11-20 19:19. You are {session.model}. {{other}}"), messages[1]]
    longest = len("Wednesday") - len("Friday")
    assert 0 <= reply.usage.prompt_tokens - await session.count_tokens(filled) <= longest
    assert await session.count_tokens(messages) == reply.usage.prompt_tokens


async def test_a_name_is_remembered_over_two_turns(session: Session) -> None:
    """Issue 1: the bundled model is good enough for a remembered name."""
    messages = [Message.user("My name is Rosalind.")]
    reply = await session.prompt(messages, temperature=0)
    messages += [Message.assistant(reply.text), Message.user("What is my name?")]
    assert "Your name is Rosalind." == (await session.prompt(messages, temperature=0)).text


async def test_a_long_reply_arrives_in_many_pieces(session: Session) -> None:
    """API.md 3: pieces as they arrive, in order and without gaps."""
    async with session.prompt_streaming(COUNT, temperature=0) as stream:
        pieces = [piece async for piece in stream]
        reply = await stream.result()
    assert "".join(pieces) == reply.text
    assert " ".join(map(str, range(1, 101))) == reply.text
    assert len(pieces) > 50
    assert StopReason.END is reply.stop_reason


@pytest.mark.parametrize("stop", ["5", ["zzz", "5"], ("5", "9")], ids=str)
async def test_a_stop_phrase_ends_the_reply_and_is_named(session: Session, stop: str | list[str]) -> None:
    """API.md 3: stop is a phrase, or a collection of phrases; API.md 2: stop_phrase says which."""
    reply = await session.prompt(COUNT, temperature=0, stop=stop)
    assert "1 2 3 4 " == reply.text
    assert StopReason.STOP_PHRASE is reply.stop_reason
    assert "5" == reply.stop_phrase


async def test_echo_stop_leaves_the_phrase_in_the_text(session: Session) -> None:
    """API.md 3: echo_stop, also in the pieces."""
    async with session.prompt_streaming(COUNT, temperature=0, stop="5 6", echo_stop=True) as stream:
        pieces = [piece async for piece in stream]
        reply = await stream.result()
    assert "1 2 3 4 5 6" == reply.text == "".join(pieces)
    assert "5 6" == reply.stop_phrase


async def test_a_token_id_stops_as_well(session: Session) -> None:
    """API.md 3: stop takes token ids, which the engine itself does not."""
    (five,) = await session.tokenize("5")
    reply = await session.prompt(COUNT, temperature=0, stop=[five, "9"])
    assert "1 2 3 4 " == reply.text
    assert StopReason.STOP_PHRASE is reply.stop_reason


async def test_after_a_token_id_has_stopped_a_reply_the_next_one_is_whole(session: Session) -> None:
    """Our decision: the engine does not know of the stop, so its connection is closed and its slot free."""
    (five,) = await session.tokenize("5")
    for _ in range(6):
        await session.prompt(COUNT, temperature=0, stop=[five])
    assert "ok chief" == (await session.prompt(OK, temperature=0)).text


async def test_max_tokens_cuts_the_reply(session: Session) -> None:
    """API.md 2: LENGTH, and context_full only where the context was the limit."""
    reply = await session.prompt(COUNT, temperature=0, max_tokens=5)
    assert StopReason.LENGTH is reply.stop_reason
    assert not reply.context_full
    assert 5 == reply.usage.completion_tokens
    assert reply.text
    assert "1 2 3 4 5".startswith(reply.text)


@pytest.mark.parametrize("max_tokens", [None, 1000])
async def test_the_end_of_the_context_cuts_the_reply(engine: Engine, api: str | None, max_tokens: int | None) -> None:
    """API.md 3: max_tokens None goes on until the context is full; LLAMA_SERVER 3.7: `limit` with truncated."""
    async with Session(**engine.options(prompt_encoding=api, context_length=256, parallel=2)) as session:
        assert 256 == session.context_length
        reply = await session.prompt(COUNT, max_tokens=max_tokens, sampling=Sampling(temperature=0, ignore_eos=True))
    assert StopReason.LENGTH is reply.stop_reason
    assert reply.context_full
    assert reply.text.startswith("1 2 3")
    assert 250 <= reply.usage.total_tokens <= 257


async def test_a_seed_gives_the_same_reply_again(session: Session) -> None:
    """API.md 3: seed; temperature 1 as most people use it."""
    one = await session.prompt("hello", temperature=1, seed=42)
    other = await session.prompt("hello", temperature=1, seed=42)
    assert one.text == other.text
    assert 42 == one.seed == other.seed


@pytest.mark.parametrize("seed", [None, 0])
async def test_a_drawn_seed_is_told_and_gives_the_same_reply(session: Session, seed: int | None) -> None:
    """API.md 3: None or 0 means that we draw one and send it; Completion.seed tells which."""
    keywords = {"sampling": HOT, "max_tokens": 40}
    drawn = await session.prompt("hello", seed=seed, **keywords)  # type: ignore[arg-type]
    assert drawn.seed > 0
    again = await session.prompt("hello", seed=drawn.seed, **keywords)  # type: ignore[arg-type]
    assert drawn.text == again.text
    other = await session.prompt("hello", seed=drawn.seed % 1000 + 1, **keywords)  # type: ignore[arg-type]
    assert drawn.text != other.text


async def test_temperature_zero_is_sent(session: Session) -> None:
    """API.md: a falsy value that was given is sent; a temperature that was lost would let two seeds differ."""
    hot = HOT.merge(Sampling(temperature=4.0))
    texts = {
        (await session.prompt("hello", sampling=hot, temperature=0, seed=seed, max_tokens=30)).text
        for seed in (1, 2, 3)
    }
    assert 1 == len(texts)


async def test_no_log_probabilities_unless_asked_for(session: Session) -> None:
    """API.md 3: top_logprobs None means none."""
    assert () == (await session.prompt(OK, temperature=0)).tokens


async def test_top_logprobs_zero_gives_each_tokens_own(session: Session) -> None:
    """API.md 3: 0 means each token's own; the engine by itself takes it for none."""
    reply = await session.prompt(OK, temperature=0, top_logprobs=0)
    assert "ok chief" == reply.text == "".join(token.text for token in reply.tokens)
    assert all(token.logprob <= 0 for token in reply.tokens)
    assert all(token.top == () for token in reply.tokens)
    assert await session.tokenize("ok chief") == [token.id for token in reply.tokens if token.text]


async def test_top_logprobs_gives_alternatives(session: Session) -> None:
    """API.md 3: k means k alternatives as well, likeliest first; greedy takes the first of them."""
    reply = await session.prompt(OK, temperature=0, top_logprobs=3)
    assert reply.tokens
    for token in reply.tokens:
        assert 3 == len(token.top)
        assert sorted((other.logprob for other in token.top), reverse=True) == [t.logprob for t in token.top]
        assert token.id == token.top[0].id
        assert token.logprob == pytest.approx(token.top[0].logprob)


async def test_top_logprobs_of_the_whole_vocabulary(session: Session) -> None:
    """API.md 3: max_top_logprobs is the whole vocabulary, and its probabilities sum to 1."""
    reply = await session.prompt(OK, temperature=0, top_logprobs=session.max_top_logprobs, max_tokens=2)
    assert 2 == len(reply.tokens)
    for token in reply.tokens:
        assert set(range(session.max_top_logprobs)) == {other.id for other in token.top}
        assert 1.0 == pytest.approx(sum(math.exp(other.logprob) for other in token.top), abs=1e-3)


async def test_events_end_with_finished(session: Session) -> None:
    """API.md 3: events() gives TextDelta(text, tokens, completion_tokens) and last Finished(completion)."""
    async with session.prompt_streaming(OK, temperature=0, top_logprobs=1) as stream:
        events = [event async for event in stream.events()]
        reply = await stream.result()
    *deltas, last = events
    assert Finished(completion=reply) == last
    texts = [delta for delta in deltas if isinstance(delta, TextDelta)]
    assert deltas == texts
    assert "ok chief" == "".join(delta.text for delta in texts)
    assert list(reply.tokens) == [token for delta in texts for token in delta.tokens]
    counts = [delta.completion_tokens for delta in texts]
    assert sorted(counts) == counts
    assert counts[0] >= 1
    assert counts[-1] <= reply.usage.completion_tokens


async def test_a_reply_is_read_in_one_way_only(session: Session) -> None:
    """API.md 3: iterate for pieces or events(), not both."""
    async with session.prompt_streaming(OK) as stream:
        async for _ in stream:
            break
        with pytest.raises(UsageError, match="not for both"):
            async for _ in stream.events():
                pass


async def test_generate_goes_on_from_text_and_from_ids(session: Session) -> None:
    """API.md 3: raw completion, no template, from text or token ids; special spellings in the text mean those."""
    text = f"<|im_start|>user\n{OK}<|im_end|>\n<|im_start|>assistant\n"
    ids = await session.tokenize(text, special=True)
    from_text = await session.generate(text, temperature=0)
    from_ids = await session.generate(ids, temperature=0)
    assert "ok chief" == from_text.text == from_ids.text
    assert len(ids) == from_text.usage.prompt_tokens == from_ids.usage.prompt_tokens
    assert await session.count_tokens(text) == len(ids)
    async with session.generate_streaming(ids, temperature=0) as stream:
        assert "ok chief" == "".join([piece async for piece in stream])


async def test_generate_takes_the_keywords_of_prompt(session: Session) -> None:
    """API.md 3: generate takes the same keywords."""
    text = f"<|im_start|>user\n{COUNT}<|im_end|>\n<|im_start|>assistant\n"
    reply = await session.generate(text, temperature=0, stop="5", echo_stop=True, top_logprobs=2, seed=7)
    assert "1 2 3 4 5" == reply.text
    assert "5" == reply.stop_phrase
    assert 7 == reply.seed
    assert all(2 == len(token.top) for token in reply.tokens)


async def test_extra_goes_into_the_request(session: Session) -> None:
    """API.md 3: extra goes into the request as it is; a key of ours in it is an error."""
    (five,) = await session.tokenize("5")
    reply = await session.prompt(COUNT, temperature=0, max_tokens=12, extra={"logit_bias": [[five, False]]})
    assert reply.text.startswith("1 2 3 4 ")
    assert "5" not in reply.text
    with pytest.raises(UsageError, match="seed"):
        session.prompt_streaming(OK, extra={"seed": 1})


async def test_a_logit_bias_of_the_callers_counts(session: Session) -> None:
    """API.md 2: Sampling.logit_bias maps token ids to biases."""
    (four,) = await session.tokenize("4")
    reply = await session.prompt(COUNT, sampling=Sampling(temperature=0, logit_bias={four: -100.0}), max_tokens=10)
    assert reply.text.startswith("1 2 3 ")
    assert "4" not in reply.text
