"""What a caller, a drafter or an arbiter does wrong harms nothing else, and says what is wrong."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import ScriptedDecoder, hashed

import cospec
from cospec import Piece, SamplingParams, Trace
from cospec.errors import BundleError, UsageError
from cospec.runtime.arbitration.baselines import AlwaysDraft
from cospec.runtime.arbitration.protocol import Block
from cospec.runtime.arbitration.referee import Referee
from cospec.runtime.decoding import completion, generation, loop
from cospec.runtime.decoding.completion import Stream
from cospec.runtime.decoding.loop import Limits, decode
from cospec.runtime.decoding.session import Session
from cospec.runtime.decoding.stopping import Interrupt
from cospec.runtime.drafting.draft_model import ModelDrafter
from cospec.runtime.engines.onnxruntime import OrtOptions
from cospec.runtime.sampling.sampler import TokenLogprob

OPTIONS = OrtOptions(threads=1, provider="cpu")
PROMPT = "the block of"


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Any) -> Session:
    return cospec.load(tiny_bundle.root, options=OPTIONS)


@pytest.fixture
def session(loaded: Session) -> Session:
    """A session whose engines nobody has measured yet."""
    made = loaded.new_session()
    made._costs = type(loaded._costs)(*loaded.engines)
    return made


def running(session: Session, kind: str) -> dict[str, Any]:
    """Options of a generation of some kind."""
    return {
        "greedy": {},
        "auto": {"num_draft_tokens": "auto"},
        "collab": {"mode": "collab", "arbiter": AlwaysDraft(), "threshold": 0.5},
        "sampled": {"temperature": 1.0, "seed": 3},
        "logprobs": {"logprobs": 2},
        "traced": {"observer": Trace(session)},
    }[kind]


@pytest.mark.parametrize("kind", ["greedy", "auto", "collab", "sampled", "logprobs", "traced"])
@pytest.mark.parametrize("how", ["stream", "plan", "controller", "another session"])
def test_a_stream_of_automatic_length_leaves_a_running_generation_alone(loaded, session, kind, how):
    options = {"max_tokens": 16, "num_draft_tokens": 2} | running(session, kind)
    wanted = loaded.generate(PROMPT, **(options | running(loaded, kind)))
    stream = session.stream(PROMPT, **options)
    pieces = [next(stream), next(stream)]
    before = session.caches.tokens
    if how == "stream":
        session.stream("x", num_draft_tokens="auto")
    elif how == "plan":
        session.plan("x", num_draft_tokens="auto")
    elif how == "controller":
        assert session.draft_length_controller.longest > 0
    else:
        session.new_session().generate("x", max_tokens=4, num_draft_tokens="auto")
    assert session.caches.tokens == before
    pieces += stream
    assert [token for piece in pieces for token in piece.tokens] == wanted.tokens
    assert stream.completion().text == wanted.text


def test_engines_are_measured_once_for_all_their_sessions(session, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "cospec.runtime.drafting.costs.measure_costs",
        lambda *given: measured.append(given) or loop_costs(),
    )
    sessions = [session, session.new_session(), session.new_session()]
    controllers = [each.draft_length_controller for each in sessions]
    assert len(measured) == 1
    assert len({id(each) for each in controllers}) == 3, "what each learns is its own"


def loop_costs() -> Any:
    from cospec.runtime.drafting.draft_length import Costs

    return Costs(1.0, [1.0, 1.0, 1.0])


class Proposing:
    """A drafter that returns whatever it is given."""

    def __init__(self, make: Callable[[Sequence[int], int], Any]) -> None:
        self._make = make

    def propose(self, tokens: Sequence[int], count: int) -> Any:
        return self._make(tokens, count)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, lambda ids: np.array(ids, dtype=np.int32), iter]
)
def test_any_sequence_of_ids_is_a_proposal(session, warm, kind):
    wanted = session.generate(PROMPT, max_tokens=16, num_draft_tokens=0).tokens
    if not warm:
        session.forget()
    drafter = Proposing(lambda tokens, count: kind([5, 6, 7][:count]))
    found = session.generate(PROMPT, max_tokens=16, num_draft_tokens=3, drafter=drafter)
    assert found.tokens == wanted
    assert found.stats.num_draft_tokens > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tokens, count: None, "proposed None, which is no sequence of token ids"),
        (lambda tokens, count: 5, "proposed 5, which"),
        (lambda tokens, count: "12", "proposed '12', which"),
        (lambda tokens, count: [1.5], r"proposed \[1.5\], which"),
        (lambda tokens, count: np.array([[1, 2]]), r"proposed array\(\[\[1, 2\]\]\), which"),
        (lambda tokens, count: np.array([0.5]), "which is no sequence of token ids"),
        (lambda tokens, count: [1] * (count + 1), "tokens, but at most 3 were asked for"),
        (lambda tokens, count: [-1], "proposed the token -1, but token ids run from 0 to"),
        (lambda tokens, count: [2, 10**9], "proposed the token 1000000000, but"),
        (lambda tokens, count: [2**70], "proposed the token 1180591620717411303424, but"),
    ],
)
def test_another_proposal_is_a_typed_error_and_the_session_goes_on(session, make, message):
    wanted = session.generate(PROMPT, max_tokens=8).tokens
    with pytest.raises(UsageError, match=message) as caught:
        session.generate(PROMPT, max_tokens=8, num_draft_tokens=3, drafter=Proposing(make))
    assert "the drafter Proposing" in str(caught.value)
    assert "a list of at most `count` token ids" in caught.value.hint
    assert session.generate(PROMPT, max_tokens=8).tokens == wanted


class Scoring:
    """An arbiter that returns whatever it is given."""

    target_outputs: tuple[str, ...] = ()
    draft_outputs: tuple[str, ...] = ()

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def score(self, block: Block) -> Any:
        return self._make(len(block.drafted))


@pytest.mark.parametrize(
    "make",
    [
        lambda k: None,
        lambda k: 1.0,
        lambda k: [],
        lambda k: [0.5] * (k + 1),
        lambda k: np.ones(max(0, k - 1)),
        lambda k: np.ones((k, 2)),
        lambda k: np.ones((1, k)),
        lambda k: ["a"] * k,
        lambda k: [{}] * k,
        lambda k: [[1.0], [1.0, 2.0]],
    ],
)
def test_scores_of_another_shape_or_type_are_a_typed_error(session, make):
    options = {"mode": "collab", "max_tokens": 24, "num_draft_tokens": 4, "threshold": 0.5}
    wanted = session.generate(PROMPT, max_tokens=8).tokens
    with pytest.raises(UsageError, match="the arbiter Scoring returned") as caught:
        session.generate(PROMPT, **options, arbiter=Scoring(make))
    assert "one number for each drafted token" in caught.value.hint
    assert session.generate(PROMPT, max_tokens=8).tokens == wanted


@given(k=st.integers(1, 8), kind=st.sampled_from([list, tuple, np.float16, np.float64, np.int64]))
def test_scores_of_any_number_type_are_accepted(k, kind):
    def scores(count: int) -> Any:
        return kind([1] * count) if kind in (list, tuple) else np.ones(count, kind)

    arbiter = Scoring(scores)
    target, draft = ScriptedDecoder(hashed(1, 50)), ScriptedDecoder(hashed(2, 50))
    tokens = [1, 2, 3]
    drafter = ModelDrafter(draft, 8, collect=True)
    referee = Referee(arbiter, 0.5, frozenset())
    rounds = list(decode(target, drafter, tokens, Limits(6, (), k, 8), referee))
    assert sum(round_.provenance.count("draft") for round_ in rounds) > 0


def stream_of(pieces: Sequence[Piece]) -> Stream:
    def begin(stream: Stream) -> Any:
        for i, piece in enumerate(pieces):
            stream.finish_reason = "length" if i == len(pieces) - 1 else None
            yield piece

    return Stream([1], Interrupt(None), None, begin)


def test_a_stream_keeps_its_output_in_little_memory():
    pieces = [Piece("word ", [i, i + 1], ["agreed", "bonus"]) for i in range(50_000)]
    stream = stream_of(pieces)
    tracemalloc.start()
    try:
        for _ in stream:
            pass
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = stream.completion()
    assert kept < 20 * len(whole.tokens), "bytes per token"
    assert whole.text == "word " * 50_000
    assert whole.tokens[-2:] == [49_999, 50_000]
    assert whole.provenance[:3] == ["agreed", "bonus", "agreed"]


@pytest.mark.parametrize("reported", [0, 4])
def test_an_endless_stream_keeps_a_bounded_number_of_tokens(monkeypatch, reported):
    monkeypatch.setattr(completion, "KEPT_TOKENS", 100)
    logprob = TokenLogprob(-1.0, ((1, -1.0),) * reported)
    pieces = [Piece("x", [i], ["target"], [logprob] if reported else ()) for i in range(102)]
    short = stream_of(pieces[: 100 // (1 + reported)])
    assert len(list(short)) == len(short.completion().tokens)
    stream = stream_of(pieces)
    assert len(list(stream)) == 102
    assert stream._seen is None, "nothing is kept"
    with pytest.raises(UsageError, match="more than 100 tokens") as caught:
        stream.completion()
    assert "collect the pieces" in caught.value.hint
    assert len(stream_of(pieces).completion().tokens) == 102, "whoever asks for all gets all"


def test_a_cache_is_checked_without_copying_the_decoders_own(session, tmp_path, monkeypatch):
    session.generate(PROMPT, max_tokens=4)
    session.save(tmp_path / "cache")
    decoder = type(session.caches.target)

    def copied(self: Any) -> None:
        raise AssertionError("the whole cache is copied to learn its shapes")

    monkeypatch.setattr(decoder, "read_cache", copied)
    session.restore(tmp_path / "cache")
    (tmp_path / "other").write_bytes((tmp_path / "cache").read_bytes()[:-4])
    with pytest.raises(BundleError, match="damaged"):
        session.restore(tmp_path / "other")


def test_a_prompt_is_read_once_in_each_generation(session, monkeypatch):
    calls = []
    prefill = loop.prefill

    def counted(*given: Any) -> None:
        calls.append(given)
        prefill(*given)

    for module in (loop, generation):
        monkeypatch.setattr(module, "prefill", counted, raising=False)
    session.generate("0" * 60, max_tokens=2)
    assert len(calls) == 1


def test_threads_that_share_a_session_are_told_what_to_do(session):
    first = session.stream(PROMPT, max_tokens=16, num_draft_tokens=0)
    next(first)
    other = threading.Thread(target=session.generate, args=("x",), kwargs={"max_tokens": 1})
    other.start()
    other.join()
    with pytest.raises(UsageError, match="another generation began") as caught:
        next(first)
    assert "from threads" in caught.value.hint
    assert "session.new_session()" in caught.value.hint


@pytest.mark.parametrize("params", [{}, {"sampling": SamplingParams(temperature=1.0, seed=1)}])
def test_a_plan_makes_no_pass_and_serves_another_session_of_the_engines(
    session, params, monkeypatch
):
    wanted = session.generate(PROMPT, max_tokens=8, **params)
    steps = []
    step = session.caches.target.step
    monkeypatch.setattr(
        session.caches.target,
        "step",
        lambda *given, **named: steps.append(1) or step(*given, **named),
    )
    plan = session.plan(PROMPT, max_tokens=8, **params)
    assert steps == []
    assert plan.tokens == tuple(session.codec.encode(PROMPT))
    assert session.new_session().run(plan).completion().tokens == wanted.tokens
    assert steps == []
