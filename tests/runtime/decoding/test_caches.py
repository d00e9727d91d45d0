"""What a session keeps between generations: never an influence on the output, only on the time."""

from __future__ import annotations

import asyncio
import random
import threading
from time import sleep

import pytest

import cospec
from cospec import Chat, SamplingParams
from cospec.errors import UsageError
from cospec.runtime.decoding.session import Session
from cospec.runtime.engines.onnxruntime import OrtOptions

OPTIONS = OrtOptions(threads=1, provider="cpu")
WORDS = [
    "the",
    "block",
    "of",
    "tokens",
    "12",
    "+",
    "30",
    "=",
    "42",
    "Paris,",
    "verifies",
    "é",
    "你",
    "🙂",
]


@pytest.fixture(scope="module")
def session(tiny_bundle) -> Session:
    return cospec.load(tiny_bundle.root, options=OPTIONS)


@pytest.fixture(scope="module")
def fresh(tiny_bundle) -> Session:
    """Forgets before every generation."""
    return cospec.load(tiny_bundle.root, options=OPTIONS)


def test_what_was_read_before_changes_no_output(session, fresh):
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4)))]
    reused = 0
    for i in range(120):
        begun = rng.choice(prompts)
        prompt = begun[: rng.randint(1, len(begun))] + rng.choice(["", " ", " the", "é 12"])
        if len(session.codec.encode(prompt)) > 40:
            prompt = rng.choice(WORDS)
        prompts.append(prompt)
        options = {
            "max_tokens": rng.choice([1, 4, 12]),
            "num_draft_tokens": rng.choice([0, 1, 4]),
            "sampling": SamplingParams(
                temperature=rng.choice([0, 1]),
                seed=i,
                stop=tuple(rng.choices(["e", "1 "], k=i % 2)),
            ),
        }
        fresh.forget()
        wanted = fresh.generate(prompt, **options)
        found = session.generate(prompt, **options)
        assert found.tokens == wanted.tokens, (i, prompt)
        assert wanted.stats.num_cached_tokens == 0
        reused += found.stats.num_cached_tokens
    assert reused > 200


def test_a_prompt_is_read_from_where_it_departs(session):
    tokens = session.codec.encode("the block of tokens 12")
    session.forget()
    session.generate("the block of tokens 12", max_tokens=4)
    again = session.generate("the block of tokens 12", max_tokens=4)
    assert again.stats.num_cached_tokens == len(tokens) - 1  # the last one must be fed for its row
    longer = session.generate("the block of tokens 12" + again.text + " of", max_tokens=1)
    assert longer.stats.num_cached_tokens >= len(tokens)
    assert session.generate("Paris", max_tokens=1).stats.num_cached_tokens == 0


def test_measuring_never_profits_from_what_was_read(session):
    tokens = session.codec.encode("the block of")
    session.continue_tokens(tokens, max_tokens=2).completion()
    assert session.continue_tokens(tokens, max_tokens=2).completion().stats.num_cached_tokens == 0


def test_a_chat_reads_only_what_is_new_and_rewinds(session):
    chat = Chat(session, system="12")
    first = chat.send("a", max_tokens=6).completion()
    second = chat.send("b", max_tokens=6).completion()
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 2]
    assert chat.messages[2]["content"] == first.text
    assert second.stats.num_cached_tokens > 0
    chat.rewind()
    again = chat.send("b", max_tokens=6)
    pieces = list(again)
    assert "".join(piece.text for piece in pieces) == second.text
    assert again.stream.stats.num_cached_tokens > first.stats.num_prompt_tokens / 2
    with pytest.raises(UsageError, match="cannot take back 3 turns of a conversation of 2"):
        chat.rewind(3)
    chat.rewind(2)
    assert [message["role"] for message in chat.messages] == ["system"]


def test_an_answer_that_was_dropped_is_no_part_of_the_chat(session):
    chat = Chat(session)
    for _ in chat.send("a", max_tokens=6, num_draft_tokens=0):
        break
    assert chat.messages == []


def test_sessions_side_by_side_on_one_set_of_engines(session, fresh):
    prompts = [" ".join(WORDS[i : i + 3]) for i in range(6)]
    wanted = [fresh.generate(prompt, max_tokens=20).tokens for prompt in prompts]
    found: dict[int, list[list[int]]] = {}

    def play(i: int) -> None:
        own = session.new_session()
        found[i] = [own.generate(prompts[i], max_tokens=20).tokens for _ in range(5)]

    threads = [threading.Thread(target=play, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [wanted[i]] * 5 for i in range(len(prompts))}


def test_threads_on_one_session_never_mix_their_texts(session, fresh):
    prompts = [" ".join(WORDS[i : i + 3]) for i in range(4)]
    wanted = {prompt: fresh.generate(prompt, max_tokens=20).tokens for prompt in prompts}
    outcomes: list[bool | str] = []

    def play(prompt: str) -> None:
        for _ in range(8):
            try:
                outcomes.append(session.generate(prompt, max_tokens=20).tokens == wanted[prompt])
            except UsageError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=play, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 32
    assert True in outcomes
    assert False not in outcomes
    assert all("another generation began" in each for each in outcomes if each is not True)


def test_in_an_event_loop(session, fresh):
    prompts = [" ".join(WORDS[i : i + 3]) for i in range(3)]
    wanted = [fresh.generate(prompt, max_tokens=16) for prompt in prompts]

    async def answer(own: Session, prompt: str) -> str:
        return "".join([piece.text async for piece in own.stream(prompt, max_tokens=16)])

    async def main() -> list[str]:
        own = [session.new_session() for _ in prompts]
        return await asyncio.gather(*map(answer, own, prompts))

    assert asyncio.run(main()) == [each.text for each in wanted]


def test_a_cancelled_task_ends_its_generation(session, monkeypatch):
    step = session.caches.target.step

    def slow(tokens, rows):
        sleep(0.02)
        return step(tokens, rows)

    monkeypatch.setattr(session.caches.target, "step", slow)
    stream = session.stream("the block of", max_tokens=40, num_draft_tokens=0)

    async def main() -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    found = stream.completion()
    assert found.finish_reason == "cancelled"
    assert 1 <= len(found.tokens) < 40


@pytest.mark.parametrize("mode", ["strict", "sampled"])
def test_a_full_cache_slides(session, mode):
    sampling = SamplingParams(temperature=1.0, seed=1) if mode == "sampled" else None
    stopped = session.generate("the block of", max_tokens=150, sampling=sampling)
    found = session.generate("the block of", max_tokens=150, overflow="slide", sampling=sampling)
    assert stopped.finish_reason in ("capacity", "eos")
    if stopped.finish_reason == "capacity":
        assert found.tokens[: len(stopped.tokens)] == stopped.tokens
        assert len(found.tokens) > len(stopped.tokens)
    plain = session.generate(
        "the block of", max_tokens=150, overflow="slide", sampling=sampling, num_draft_tokens=0
    )
    assert plain.tokens == found.tokens, "sliding depends on what was drafted"
    with pytest.raises(UsageError, match="unknown overflow 'drop'"):
        session.generate("a", overflow="drop")


def test_saved_and_restored_in_another_process_like_session(session, fresh, tmp_path):
    session.forget()
    whole = session.generate("the block of tokens", max_tokens=10)
    session.save(tmp_path / "cache")
    fresh.forget()
    fresh.restore(tmp_path / "cache")
    assert fresh.caches.tokens == session.caches.tokens
    prompt = "the block of tokens" + whole.text
    wanted, found = (each.generate(prompt + " 12", max_tokens=8) for each in (session, fresh))
    assert found.tokens == wanted.tokens
    assert found.stats.num_cached_tokens == wanted.stats.num_cached_tokens > 5
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]


@pytest.mark.parametrize("drafter", ["model", "ngram"])
@pytest.mark.parametrize("mode", ["strict", "collab"])
def test_a_seed_gives_one_text_for_every_draft_length_and_streamed(tiny_bundle, drafter, mode):
    if (drafter, mode) == ("ngram", "collab"):
        pytest.skip("an arbiter needs a draft model")
    from cospec.runtime.arbitration.baselines import AlwaysDraft

    session = cospec.load(tiny_bundle.root, drafter=drafter, options=OPTIONS)
    for seed in range(12):
        params = SamplingParams(temperature=0.9, top_p=0.95, min_p=0.01, seed=seed)
        plain = session.generate("12 + 30 =", max_tokens=20, num_draft_tokens=0, sampling=params)
        assert plain.seed == seed
        for k in (2, 5, "auto"):
            if mode == "strict":
                found = session.generate(
                    "12 + 30 =", max_tokens=20, num_draft_tokens=k, sampling=params
                )
                assert found.tokens == plain.tokens
            elif k != "auto":
                options = {"mode": "collab", "arbiter": AlwaysDraft(), "sampling": params}
                options |= {"max_tokens": 20, "num_draft_tokens": k}
                never = session.generate("12 + 30 =", **options, threshold=1.0)
                assert never.tokens == plain.tokens
                kept = session.generate("12 + 30 =", **options, threshold=0.5)
                assert kept.tokens == session.generate("12 + 30 =", **options, threshold=0.5).tokens
        streamed = session.stream("12 + 30 =", max_tokens=20, sampling=params)
        assert [token for piece in streamed for token in piece.tokens] == plain.tokens


def test_logprobs_are_reported_for_every_token(session):
    for k in (0, 4):
        params = SamplingParams(temperature=1.0, seed=3, logprobs=2)
        found = session.generate("the block", max_tokens=12, num_draft_tokens=k, sampling=params)
        assert len(found.logprobs) == len(found.tokens)
        for report in found.logprobs:
            assert report.top[0][1] >= report.logprob - 1e-6
            assert len(report.top) == 2
    greedy = session.generate("the block", max_tokens=12, sampling=SamplingParams(logprobs=1))
    assert [report.top[0][0] for report in greedy.logprobs] == greedy.tokens
    assert greedy.tokens == session.generate("the block", max_tokens=12).tokens
