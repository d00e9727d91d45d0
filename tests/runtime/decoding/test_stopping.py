"""Stop texts, ends, and least and most tokens, against a reference that takes one token at a time."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from threading import Event, Thread, active_count
from time import perf_counter, sleep

import pytest
from msgspec.structs import replace

import cospec
from cospec import SamplingParams
from cospec.errors import UsageError
from cospec.runtime.decoding.session import Session
from cospec.runtime.decoding.stopping import Interrupt, StopTexts, interruptible
from cospec.runtime.engines.onnxruntime import OrtOptions

OPTIONS = OrtOptions(threads=1, provider="cpu")
FUZZED = 1000


@pytest.fixture(scope="module")
def session(tiny_bundle) -> Session:
    return cospec.load(tiny_bundle.root, options=OPTIONS)


def reference(
    session: Session,
    prompt: Sequence[int],
    output: Sequence[int],
    finish: str,
    params: SamplingParams,
) -> tuple[str, list[int], str]:
    """Cut a plain output where it should have ended, looking at the whole text after each token."""
    codec = session.codec
    context = codec.decode(prompt)
    for count in range(params.min_tokens + 1, len(output) + 1):
        exempt = codec.decode([*prompt, *output[: params.min_tokens]])
        exempt = exempt.rstrip("\N{REPLACEMENT CHARACTER}")  # a character begun there ends later
        text = codec.decode([*prompt, *output[:count]])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and count < len(output):
            continue  # half a character: what it will be is not known yet
        found = [text.find(stop, len(exempt)) for stop in params.stop]
        found = [at for at in found if at >= 0]
        if found:
            return text[len(context) : min(found)], list(output[:count]), "stop"
    return codec.decode([*prompt, *output])[len(context) :], list(output), finish


def test_a_thousand_fuzzed_endings(session):
    rng = random.Random(3)
    alphabet = ["the", "block", "of", "tokens", "12", "+", "30", "=", "42", "Paris,", "verifies"]
    stopped = ended = long_minimum = 0
    eos = session.manifest.generation.eos_token_ids[0]
    for case in range(FUZZED):
        prompt = session.codec.encode(" ".join(rng.choices(alphabet, k=rng.randint(1, 4))))
        most = rng.choice([1, 2, 5, 12])
        base = SamplingParams(
            temperature=rng.choice([0.0, 0.0, 1.0]),
            # None of these seeds meets a pair of tokens that lie within rounding of each other.
            seed=case + FUZZED,
            logit_bias={eos: rng.choice([0.0, 5.0])},
            min_tokens=rng.choice([0, 0, 1, 3, most]),
        )
        plain = session.continue_tokens(
            prompt, max_tokens=most, num_draft_tokens=0, sampling=base
        ).completion()
        text = plain.text
        stops = []
        for _ in range(rng.randint(0, 3)):
            start = rng.randrange(len(text) + 1) if text else 0
            stop = text[start : start + rng.randint(1, 6)]
            # What a half character is shown as is nothing that anybody stops at.
            usable = stop and "\N{REPLACEMENT CHARACTER}" not in stop
            stops.append(stop if usable else rng.choice(["e", " t", "zq"]))
        params = SamplingParams(
            temperature=base.temperature,
            seed=base.seed,
            logit_bias=base.logit_bias,
            min_tokens=base.min_tokens,
            stop=tuple(stops),
        )
        wanted = reference(session, prompt, plain.tokens, plain.finish_reason, params)
        k = rng.choice([0, 1, 3, 5])
        stream = session.continue_tokens(
            prompt, max_tokens=most, num_draft_tokens=k, sampling=params
        )
        found = stream.completion()
        assert (found.text, found.tokens, found.finish_reason) == wanted, (case, stops, k)
        assert len(found.provenance) == len(found.tokens) == found.stats.num_generated_tokens
        stopped += found.finish_reason == "stop"
        ended += found.finish_reason == "eos"
        long_minimum += base.min_tokens > 1
    assert stopped > FUZZED / 10
    assert ended > FUZZED / 20
    assert long_minimum > FUZZED / 10


def test_the_session_goes_on_behind_a_text_that_was_stopped(session):
    whole = session.generate("12 + 30 =", max_tokens=12)
    cut = whole.text[3:5]
    session.generate("12 + 30 =", max_tokens=12, sampling=SamplingParams(stop=(cut,)))
    again = session.generate("12 + 30 =", max_tokens=12)
    assert again.tokens == whole.tokens
    assert again.stats.num_cached_tokens > 0


def test_what_may_become_a_stop_text_is_held_back():
    stops = StopTexts(["abc", "bd"])
    assert stops.push("xa") == ("x", False)
    assert stops.push("b") == ("", False)
    assert stops.push("b") == ("ab", False)
    assert stops.finish() == "b"
    stops = StopTexts(["abc", "bd"])
    assert stops.push("xab") == ("x", False)
    assert stops.push("d!") == ("a", True)


def test_the_stop_text_that_begins_first_counts():
    assert StopTexts(["cd", "bcde"]).push("abcdef") == ("a", True)
    assert StopTexts(["b", "a"]).push("xab") == ("x", True)


def test_cancelled_in_the_middle(session):
    whole = session.generate("the block of", max_tokens=24)
    stream = session.stream("the block of", max_tokens=24, num_draft_tokens=0)
    for i, _ in enumerate(stream):
        if i == 4:
            stream.cancel()
    found = stream.completion()
    assert found.finish_reason == "cancelled"
    assert found.tokens == whole.tokens[:5]
    assert session.generate("the block of", max_tokens=24).tokens == whole.tokens


def test_a_deadline(session):
    stream = session.stream("the block of", max_tokens=24, num_draft_tokens=0, timeout=0.05)
    next(stream)
    sleep(0.06)
    found = stream.completion()
    assert found.finish_reason == "timeout"
    assert 1 <= len(found.tokens) < 24


def test_a_deadline_holds_while_the_prompt_is_read(session, monkeypatch):
    passes = []

    def slow(tokens, rows):
        passes.append(len(tokens))
        sleep(0.05)
        return step(tokens, rows)

    session = session.new_session()
    defaults = replace(session.manifest.generation, prefill_chunk=8)
    session.manifest = replace(session.manifest, generation=defaults)
    step = session.caches.target.step
    monkeypatch.setattr(session.caches.target, "step", slow)
    started = perf_counter()
    found = session.stream("0" * 40, timeout=0.01).completion()
    assert found.finish_reason == "timeout"
    assert found.tokens == []
    assert len(passes) <= 1, "the deadline may have passed before the first"
    assert perf_counter() - started < 5


def test_a_useless_timeout(session):
    with pytest.raises(UsageError, match="timeout is 0, but must be above 0"):
        session.stream("a", timeout=0)
    assert Interrupt(None).reason() is None


SPECIAL = {0: "<bos>", 1: "<eos>", 2: "<|user|>", 3: "<|user|>s"}


@pytest.mark.parametrize(
    ("stops", "pushed", "wanted"),
    [
        (["<eos>"], [("ab", None), ("", 1), ("cd", None)], ("ab", True)),
        (["<eos>"], [("ab", None), ("", 0), ("cd", None)], ("abcd", False)),
        (["e", "os>"], [("ab", None), ("", 1), ("cd", None)], ("abcd", False)),
        (["b<eos>"], [("ab", None), ("", 1)], ("a", True)),
        (["b<eos>c"], [("ab", None), ("", 1), ("cd", None)], ("a", True)),
        (["b<eos>c"], [("ab", None), ("", 1), ("d", None)], ("abd", False)),
        (["<eos><bos>"], [("a", None), ("", 1), ("", 0)], ("a", True)),
        (["<eos><bos>"], [("a", None), ("", 1), ("", 1)], ("a", False)),
        (["<|user|>"], [("a", None), ("", 3)], ("a", False)),
        (["<|user|>s"], [("a", None), ("", 3)], ("a", True)),
        (["<eos>"], [("a<e", None), ("os>b", None)], ("a", True)),
    ],
)
def test_a_stop_text_may_spell_special_tokens(stops, pushed, wanted):
    found = StopTexts(stops, SPECIAL)
    text = ""
    for part, token in pushed:
        certain, stopped = found.push(part, token)
        text += certain
        if stopped:
            break
    else:
        text += found.finish()
    assert (text, stopped) == wanted


@pytest.mark.parametrize("k", [0, 3])
def test_a_special_token_ends_an_output_that_hides_it(session, k):
    bos, user = session.manifest.generation.bos_token_id, session.codec.encode("<|user|>")[-1]
    options = {"max_tokens": 8, "num_draft_tokens": k, "logit_bias": {user: 1e6}}
    found = session.generate("the block", stop=("zz", "<|user|>"), **options)
    assert (found.text, found.tokens, found.finish_reason) == ("", [user], "stop")
    twice = session.generate("the block", stop=("<|user|><|user|>",), **options)
    assert (twice.tokens, twice.finish_reason) == ([user, user], "stop")
    other = session.generate("the block", stop=("<bos>", "user"), **options)
    assert (len(other.tokens), other.text, other.finish_reason) == (8, "", "length")
    assert bos != user


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("mode", ["strict", "collab"])
def test_a_stop_token_ends_the_output_where_it_first_occurs(session, k, mode):
    whole = session.generate("the block of", max_tokens=20, num_draft_tokens=0)
    options: dict = {"max_tokens": 20, "num_draft_tokens": k}
    if mode == "collab":
        from cospec.runtime.arbitration.baselines import AlwaysDraft

        options |= {"mode": "collab", "arbiter": AlwaysDraft(), "threshold": 1.0}
    for at in (0, 3, 9):
        token = whole.tokens[at]
        found = session.generate("the block of", stop_token_ids=(token,), **options)
        first = whole.tokens.index(token)
        assert found.tokens == whole.tokens[: first + 1]
        assert found.finish_reason == "stop"
        assert whole.text.startswith(found.text)
        later = session.generate(
            "the block of", stop_token_ids=(token,), min_tokens=first + 2, **options
        )
        assert token not in later.tokens[: first + 1]
    (eos,) = session.manifest.generation.eos_token_ids
    ended = session.generate("a", stop_token_ids=(eos,), logit_bias={eos: 1e6}, **options)
    assert (ended.tokens, ended.finish_reason) == ([eos], "eos")


def test_an_arbiter_never_keeps_the_drafts_stop_token(session):
    from cospec.runtime.arbitration.baselines import AlwaysDraft

    options = {"mode": "collab", "arbiter": AlwaysDraft(), "threshold": 0.5, "max_tokens": 30}
    free = session.generate("the block of", num_draft_tokens=4, **options)
    kept = [t for t, who in zip(free.tokens, free.provenance, strict=True) if who == "draft"]
    assert kept
    stopped = session.generate(
        "the block of", num_draft_tokens=4, stop_token_ids=(kept[0],), **options
    )
    pairs = zip(stopped.tokens, stopped.provenance, strict=True)
    assert (kept[0], "draft") not in list(pairs)


def test_a_stop_token_that_there_is_not(session):
    size = session.manifest.vocab_size
    with pytest.raises(UsageError, match=f"stop_token_ids has {size}, but ids run from 0"):
        session.plan("x", stop_token_ids=(1, size))


class EndlessSession:
    """Stands for an ONNX Runtime session over a graph with a loop that never ends."""

    def __init__(self, decoder) -> None:
        self.inner = decoder._session
        self.begun = Event()

    def io_binding(self):
        return self.inner.io_binding()

    def run_with_iobinding(self, io, options) -> None:
        self.begun.set()
        while not options.terminate:
            sleep(0.001)
        raise RuntimeError("Exiting due to terminate flag being set to true.")


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_pass_that_never_ends_meets_the_deadline(session, monkeypatch, role):
    own = session.new_session()
    expected = own.generate("12 + 30", max_tokens=8).tokens
    decoder = own.caches.decoders()[role]
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "_session", EndlessSession(decoder))
        decoder._by_outputs.clear()
        decoder.select(())
        done = own.generate("Another text of 12 + 30", timeout=0.2)
    assert done.finish_reason == "timeout"
    decoder._by_outputs.clear()
    decoder.select(())
    assert own.generate("12 + 30", max_tokens=8).tokens == expected, "the session goes on"


def test_a_pass_that_never_ends_can_be_cancelled(session, monkeypatch):
    own = session.new_session()
    endless = EndlessSession(own.caches.target)
    monkeypatch.setattr(own.caches.target, "_session", endless)
    stream = own.stream("12 + 30")
    canceller = Thread(target=lambda: (endless.begun.wait(30), stream.cancel()))
    canceller.start()
    assert stream.completion().finish_reason == "cancelled"
    canceller.join()


class Recorder:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def resume(self) -> None:
        self.calls.append("resume")


def test_only_passes_of_the_body_are_ended():
    interrupt, recorder = Interrupt(None), Recorder()
    interrupt.cancel()
    assert recorder.calls == []
    with interrupt.ends_passes(interruptible([recorder, object()])):
        interrupt.cancel()
    interrupt.cancel()
    assert recorder.calls == ["interrupt", "resume"]


def test_a_generation_that_has_ended_leaves_no_clock(session):
    before = active_count()
    for _ in range(3):
        session.generate("12 + 30", max_tokens=4, timeout=3600)
    stream = session.stream("12 + 30", max_tokens=4, timeout=3600)
    next(stream)
    del stream
    session.forget()
    gc.collect()
    deadline = perf_counter() + 10
    while active_count() > before and perf_counter() < deadline:
        sleep(0.01)
    assert active_count() <= before
