"""The arbiter graph on the real tiny pair: bound by name, equal to torch, and out of strict's way."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arbiters import bundle_with_arbiter, untrained_network
from numpy.typing import NDArray

from cospec.calibration.arbiter.network import (
    A_FEATURES,
    ArbiterNetwork,
    all_features,
)
from cospec.calibration.arbiter.network_graph import export_arbiter, export_features
from cospec.errors import BackendError, BundleError, UsageError
from cospec.models.tiny_pair.tasks import distinct
from cospec.runtime.arbitration.baselines import AlwaysDraft
from cospec.runtime.arbitration.learned import BlockGraph, LearnedArbiter
from cospec.runtime.arbitration.protocol import Block
from cospec.runtime.decoding.session import Session, load
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtOptions
from cospec.runtime.engines.protocol import StepOutput

PROBLEMS = 60


@pytest.fixture(scope="module")
def session(tiny_pair_bundle: Path) -> Session:
    return load(tiny_pair_bundle, options=OrtOptions(threads=1))


@pytest.fixture(scope="module")
def prompts() -> list[list[dict[str, str]]]:
    problems = distinct("validation", 7, PROBLEMS)
    return [[{"role": "user", "content": problem.question}] for problem in problems]


@pytest.fixture(scope="module", params=["a", "hidden"])
def network(request: pytest.FixtureRequest, tiny_pair_bundle: Path) -> ArbiterNetwork:
    return untrained_network(tiny_pair_bundle, request.param)


@pytest.fixture(scope="module")
def graph(network: ArbiterNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arbiter") / "model.onnx"
    export_arbiter(network, path)
    return path


class Recorder:
    """Passes blocks to an arbiter, and keeps copies of them with the logits of both models."""

    def __init__(self, arbiter: LearnedArbiter, features: BlockGraph) -> None:
        self._arbiter = arbiter
        self._features = features
        self.target_outputs = (*arbiter.target_outputs, "logits")
        self.draft_outputs = (*arbiter.draft_outputs, "logits")
        self.seen: list[tuple[Block, NDArray[Any], NDArray[Any]]] = []

    def score(self, block: Block) -> NDArray[np.float32]:
        scores = self._arbiter.score(block)
        self.seen.append((copied(block), scores, self._features.run(block)))
        return scores


def copied(view: Any) -> Any:
    """A block or its rows with arrays of its own."""
    values = {}
    for field in dataclasses.fields(view):
        value = getattr(view, field.name)
        values[field.name] = copied(value) if isinstance(value, StepOutput) else value
        if isinstance(value, np.ndarray):
            values[field.name] = value.copy()
    return type(view)(**values)


@pytest.fixture(scope="module")
def recorded(
    session: Session, prompts: list[Any], network: ArbiterNetwork, graph: Path
) -> list[tuple[Block, NDArray[Any], NDArray[Any]]]:
    path = graph.with_name("features.onnx")
    export_features(network.config, path)
    recorder = Recorder(LearnedArbiter(graph), BlockGraph(path, "features"))
    for prompt in prompts[:20]:
        session.generate(prompt, max_tokens=64, num_draft_tokens=5, mode="collab", arbiter=recorder)
    assert len(recorder.seen) > 50
    return recorder.seen


def test_threshold_one_is_strict_on_sixty_problems(session, prompts, graph):
    arbiter = LearnedArbiter(graph)
    differs = 0
    for prompt in prompts:
        strict = session.generate(prompt, max_tokens=96)
        collab = session.generate(
            prompt, max_tokens=96, mode="collab", threshold=1, arbiter=arbiter
        )
        assert (collab.tokens, collab.provenance) == (strict.tokens, strict.provenance)
        assert collab.stats.num_target_passes == strict.stats.num_target_passes
        assert collab.stats.num_overrides == strict.stats.num_overrides == 0
        loose = session.generate(prompt, max_tokens=96, mode="collab", threshold=0, arbiter=arbiter)
        differs += loose.tokens != strict.tokens
    assert differs > PROBLEMS / 4, "otherwise the arbiter was never asked"


def test_the_graph_scores_as_torch_does(network, recorded):
    for block, scores, _ in recorded:
        sources = {"block": block, "target": block.target, "draft": block.draft}
        named = {}
        for name in network.config.inputs:
            source, _, what = name.partition(".")
            named[name] = torch.from_numpy(getattr(sources[source], what))
        with torch.no_grad():
            expected = torch.sigmoid(network.logits(all_features(named)))
        assert scores == pytest.approx(expected.numpy(), abs=1e-5)
    every = np.concatenate([scores for _, scores, _ in recorded])
    assert every.min() < 0.5 < every.max()


def test_sessions_in_several_threads_get_the_scores_of_their_own_blocks(graph, recorded):
    arbiter = LearnedArbiter(graph)
    work = [recorded[i % len(recorded)] for i in range(2000)]

    def agrees(row: tuple[Block, NDArray[Any], NDArray[Any]]) -> bool:
        return bool(np.array_equal(arbiter.score(row[0]), row[1]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(agrees, work))


def test_features_say_what_their_names_say(network, recorded):
    """Recomputed from both models' whole logits."""
    for block, _, features in recorded:
        assert features.dtype == np.float32
        assert features[:, : len(A_FEATURES)] == pytest.approx(expected_features(block), abs=2e-3)
        if network.config.features == "hidden":
            states = [block.target.hidden, block.draft.hidden]
            assert (features[:, len(A_FEATURES) :] == np.concatenate(states, axis=1)).all()


def expected_features(block: Block) -> NDArray[Any]:
    assert block.target.logits is not None
    assert block.draft.logits is not None
    assert block.draft.top_values is not None
    target, draft = (log_softmax(rows.logits) for rows in (block.target, block.draft))
    places, top = np.arange(len(block.drafted)), block.draft.top_values.shape[1]
    d, t = draft.argmax(axis=1), target.argmax(axis=1)
    assert d.tolist() == block.drafted.tolist()
    rank_d = np.minimum((target > target[places, d][:, None]).sum(axis=1), top)
    rank_t = np.minimum((draft > draft[places, t][:, None]).sum(axis=1), top)
    # The draft reports its best candidates only: what is not among them is less likely than the last.
    last = np.sort(draft, axis=1)[:, -top]
    draft_of_t = np.where(rank_t < top, draft[places, t], last - 1)
    run, kept = [0], [0]
    for same in block.matches.tolist():
        run.append(0 if same else run[-1] + 1)
        kept.append(kept[-1] + (not same))
    columns = [
        target[places, t],
        target[places, d],
        draft[places, d],
        draft_of_t,
        margin(target),
        margin(draft),
        -(np.exp(target) * target).sum(axis=1),
        -(np.exp(draft) * draft).sum(axis=1),
        np.log1p(rank_d),
        np.log1p(rank_t),
        places,
        kept[:-1],
        run[:-1],
    ]
    return np.stack(columns, axis=1)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def margin(logprobs: NDArray[Any]) -> NDArray[Any]:
    best = np.sort(logprobs, axis=1)
    return best[:, -1] - best[:, -2]


def test_strict_fetches_nothing_more_also_after_collab(session, prompts, graph, monkeypatch):
    selected: list[tuple[str, ...]] = []
    select = OrtDecoder.select

    def spy(self: OrtDecoder, outputs: tuple[str, ...]) -> None:
        selected.append(outputs)
        select(self, outputs)

    monkeypatch.setattr(OrtDecoder, "select", spy)
    arbiter = LearnedArbiter(graph)
    before = session.generate(prompts[0], max_tokens=32).tokens
    assert selected == [(), ()]
    session.generate(prompts[0], max_tokens=32, mode="collab", threshold=0, arbiter=arbiter)
    assert selected[2:] == [arbiter.target_outputs, arbiter.draft_outputs]
    assert session.generate(prompts[0], max_tokens=32).tokens == before
    assert selected[4:] == [(), ()]


def test_the_bundles_own_arbiter_and_threshold_are_the_default(
    tiny_pair_bundle, graph, tmp_path, session, prompts
):
    root = bundle_with_arbiter(tiny_pair_bundle, graph, tmp_path / "own", threshold=0.4)
    own = load(root, options=OrtOptions(threads=1))
    arbiter = LearnedArbiter(graph)
    for prompt in prompts[:5]:
        by_default = own.generate(prompt, max_tokens=64, mode="collab")
        given = session.generate(
            prompt, max_tokens=64, mode="collab", threshold=0.4, arbiter=arbiter
        )
        assert by_default.tokens == given.tokens
        assert own.generate(prompt, max_tokens=64).tokens == (
            session.generate(prompt, max_tokens=64).tokens
        )
    assert load(root, drafter="ngram").arbiter is None, "nothing is loaded that cannot be used"


@pytest.mark.parametrize(
    "name", ["target.mood", "block.draft", "weather", "draft.", "arbiter.token"]
)
def test_an_input_that_nobody_provides_is_refused(name, tmp_path):
    with pytest.raises(BundleError, match=f"wants the input '{name}'") as caught:
        LearnedArbiter(graph_with_input(name, tmp_path / "model.onnx"))
    assert "calibrate it again" in str(caught.value)


def saved_graph(path: Path, nodes: list[Any], given: tuple[Any, ...], found: list[Any]) -> Path:
    """Write a graph with one input and some outputs, each as (name, type, shape)."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, kind: str, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)

    graph = helper.make_graph(nodes, "arbiter", [value(*given)], [value(*one) for one in found])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def graph_with_input(name: str, path: Path, outputs: tuple[str, ...] = ("score",)) -> Path:
    """A graph whose outputs are all the sigmoid of its input."""
    from onnx import helper

    nodes = [helper.make_node("Sigmoid", [name], [output]) for output in outputs]
    found = [(output, "FLOAT", ["k"]) for output in outputs]
    return saved_graph(path, nodes, (name, "FLOAT", ["k"]), found)


def test_an_output_beside_the_score_is_left_alone(recorded, tmp_path):
    path = graph_with_input("target.entropy", tmp_path / "model.onnx", ("features", "score"))
    arbiter = LearnedArbiter(path)
    assert (arbiter.target_outputs, arbiter.draft_outputs) == (("entropy",), ())
    for block, _, _ in recorded[:5]:
        expected = 1 / (1 + np.exp(-block.target.entropy))
        assert arbiter.score(block) == pytest.approx(expected, abs=1e-6)


def test_a_graph_without_a_score_is_refused(tmp_path):
    path = graph_with_input("target.entropy", tmp_path / "model.onnx", ("features",))
    with pytest.raises(BundleError, match="has no output 'score'") as caught:
        LearnedArbiter(path)
    assert "calibrate it again" in str(caught.value)


@pytest.mark.parametrize("kind", ["INT64", "STRING", "BOOL", "DOUBLE", "FLOAT16", "FLOAT"])
@pytest.mark.parametrize("shape", [["k"], ["k", 5], ["k", "n"], [], [1, "k", 2]])
def test_scores_of_another_type_or_shape_are_refused_at_load(tmp_path, kind, shape):
    from onnx import TensorProto, helper

    sizes = [1 if isinstance(size, str) else size for size in shape]
    values = [b"1" if kind == "STRING" else 1] * math.prod(sizes)
    value = helper.make_tensor("value", getattr(TensorProto, kind), sizes, values)
    nodes = [
        helper.make_node("Sigmoid", ["target.entropy"], ["unused"]),
        helper.make_node("Constant", [], ["score"], value=value),
    ]
    given = ("target.entropy", "FLOAT", ["k"])
    path = saved_graph(tmp_path / "model.onnx", nodes, given, [("score", kind, shape)])
    if (kind, shape) == ("FLOAT", ["k"]):
        assert LearnedArbiter(path).target_outputs == ("entropy",)
    else:
        with pytest.raises(BundleError, match=r"the arbiter .* must"):
            LearnedArbiter(path)


@pytest.mark.parametrize("kind", ["INT64", "INT32", "FLOAT16", "DOUBLE"])
def test_an_input_of_another_type_is_a_typed_error(recorded, tmp_path, kind):
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["target.entropy"], ["score"], to=TensorProto.FLOAT)]
    given, found = ("target.entropy", kind, ["k"]), [("score", "FLOAT", ["k"])]
    path = saved_graph(tmp_path / "model.onnx", nodes, given, found)
    with pytest.raises(BackendError, match="failed in the arbiter"):
        LearnedArbiter(path).score(recorded[0][0])


def test_scores_outlive_the_next_block(recorded, graph):
    arbiter = LearnedArbiter(graph)
    first = arbiter.score(recorded[0][0])
    before = first.copy()
    for block, _, _ in recorded:
        arbiter.score(block)
    assert (first == before).all()


def test_a_damaged_graph_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match="could not load the arbiter"):
        LearnedArbiter(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "this bundle has no arbiter"),
        ({"threshold": -0.01, "arbiter": AlwaysDraft()}, "threshold is -0.01"),
        ({"threshold": 1.01, "arbiter": AlwaysDraft()}, "threshold is 1.01"),
        ({"threshold": float("nan"), "arbiter": AlwaysDraft()}, "threshold is nan"),
    ],
)
def test_collab_says_what_it_lacks(session, prompts, arguments, message):
    with pytest.raises(UsageError, match=message):
        session.stream(prompts[0], mode="collab", **arguments)


@pytest.mark.parametrize("drafter", ["ngram", "none"])
def test_collab_needs_the_draft_model(tiny_pair_bundle, prompts, drafter):
    session = load(tiny_pair_bundle, drafter=drafter)
    with pytest.raises(UsageError, match="drafts without one"):
        session.generate(prompts[0], mode="collab", arbiter=AlwaysDraft())
