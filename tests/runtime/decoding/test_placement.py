"""Where models run; TensorRT is *simulated*. Every placement must yield the same tokens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs
from simulated_tensorrt import VERSIONS, SimulatedRuntime, simulate

import cospec
from cospec.errors import BackendError, ResourceError, UsageError
from cospec.models.tiny_pair.tasks import distinct, prompt
from cospec.runtime.arbitration.learned import LearnedArbiter
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.cli.run import main
from cospec.runtime.decoding.placement import place
from cospec.runtime.decoding.session import Session
from cospec.runtime.engines.onnxruntime import OrtDecoder, OrtOptions
from cospec.runtime.tensorrt import plan_store as plans
from cospec.runtime.tensorrt.arbiter_engine import TensorRtArbiter
from cospec.runtime.tensorrt.engine import TensorRtDecoder

FORMS = pytest.mark.parametrize("form", list(VERSIONS))
OPTIONS = OrtOptions(provider="cpu", threads=1)
PROBLEMS, MAX_TOKENS = 12, 48

Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def bundles(tiny_pair_for_tensorrt: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Copies that engines may be built into; exported before a test puts the simulation in place."""
    return {
        form: Path(
            shutil.copytree(tiny_pair_for_tensorrt(form), tmp_path_factory.mktemp(form) / "tiny")
        )
        for form in VERSIONS
    }.__getitem__


def load(bundle: Path, backend: str, **settings: Any) -> Session:
    return cospec.load(bundle, backend=backend, options=OPTIONS, verify=False, **settings)


def prompts() -> list[str]:
    return [prompt(problem) for problem in distinct("test", 2026, PROBLEMS)]


@pytest.fixture(scope="module")
def greedy(tiny_pair_for_tensorrt: Bundles) -> Callable[[list[int], list[int]], list[int]]:
    """What transformers would say at each position of an answer, given all before it.

    Equal to the answer itself, it proves by induction that the answer is the greedy output.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from cospec.models.presets import resolve_pair

    module = AutoModelForCausalLM.from_pretrained(resolve_pair("tiny")[0].location).eval()

    def choices(context: list[int], answer: list[int]) -> list[int]:
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([context + answer]), use_cache=False).logits[0]
        return logits[len(context) - 1 : -1].argmax(-1).tolist()

    return choices


@FORMS
@pytest.mark.parametrize(
    ("backend", "drafter"), [("tensorrt", "model"), ("tensorrt", "ngram"), ("mixed", "model")]
)
def test_simulated_strict_is_the_greedy_output_of_transformers(
    bundles, greedy, monkeypatch, form, backend, drafter
):
    trt = simulate(monkeypatch, VERSIONS[form])
    session = load(bundles(form), backend, drafter=drafter)
    assert isinstance(session.caches.target, TensorRtDecoder)
    drafted = 0
    for text in prompts():
        found = session.generate(text, max_tokens=MAX_TOKENS)
        assert found.tokens == greedy(session.encode(text), found.tokens)
        drafted += found.stats.num_accepted_tokens
    assert drafted > 0
    assert 4 in trt.passes, "verified in one pass"
    assert "recorded" in session.caches.target.recording_report().values()


@FORMS
@pytest.mark.parametrize("k", [0, 1, 2, 5, 9])
def test_simulated_strict_is_the_same_for_every_draft_length(bundles, monkeypatch, form, k):
    simulate(monkeypatch, VERSIONS[form])
    session, text = load(bundles(form), "tensorrt"), prompts()[0]
    alone = session.generate(text, max_tokens=MAX_TOKENS, num_draft_tokens=0)
    found = session.generate(text, max_tokens=MAX_TOKENS, num_draft_tokens=k)
    assert found.tokens == alone.tokens


@FORMS
def test_simulated_collab_decides_as_onnx_runtime_does(bundles, monkeypatch, form):
    simulate(monkeypatch, VERSIONS[form])
    sessions = {name: load(bundles(form), name) for name in ("onnxruntime", "tensorrt", "mixed")}
    assert isinstance(sessions["onnxruntime"].arbiter, LearnedArbiter)
    assert isinstance(sessions["mixed"].arbiter, LearnedArbiter)
    assert isinstance(sessions["mixed"].caches.draft, OrtDecoder)
    assert isinstance(sessions["tensorrt"].arbiter, TensorRtArbiter)
    overrides = 0
    for text in prompts():
        answers = {
            name: session.generate(text, max_tokens=MAX_TOKENS, mode="collab")
            for name, session in sessions.items()
        }
        first = answers.pop("onnxruntime")
        overrides += first.stats.num_overrides
        for found in answers.values():
            assert found.tokens == first.tokens
            assert found.provenance == first.provenance
        strict = sessions["tensorrt"].generate(
            text, max_tokens=MAX_TOKENS, mode="collab", threshold=1
        )
        assert strict.tokens == sessions["tensorrt"].generate(text, max_tokens=MAX_TOKENS).tokens
    assert overrides > 0


@FORMS
def test_simulated_a_round_waits_once_for_each_model_that_it_asks(bundles, monkeypatch, form):
    calls = simulate(monkeypatch, VERSIONS[form]).cuda.calls
    session = load(bundles(form), "tensorrt")
    asked, score = [], session.arbiter.score
    monkeypatch.setattr(session.arbiter, "score", lambda block: asked.append(block) or score(block))
    for text, mode in product(prompts()[:4], ("strict", "collab")):
        stream, before = session.stream(text, max_tokens=MAX_TOKENS, mode=mode), None
        for _ in stream:
            now = calls["cudaStreamSynchronize"], stream.stats.num_draft_tokens, len(asked)
            if before is not None:  # the first round reads the prompt, too
                waits, drafted, questions = (a - b for a, b in zip(now, before, strict=True))
                assert waits == (drafted > 0) + 1 + questions, "draft, target, arbiter"
            before = now
    assert asked


def test_the_first_run_builds_what_is_missing_and_the_second_nothing(
    bundles, monkeypatch, tmp_path
):
    bundle = Path(shutil.copytree(bundles("scatter"), tmp_path / "tiny"))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    simulate(monkeypatch)
    cospec.load(bundle, backend="tensorrt", options=OPTIONS)
    (folder,) = (bundle / "engines").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.plan")}
    assert set(written) == {"target.plan", "draft.plan", "arbiter.plan"}
    cospec.load(bundle, backend="tensorrt", options=OPTIONS)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.plan")} == written


def test_a_plan_is_hashed_once_and_what_is_hashed_is_what_is_loaded(bundles, monkeypatch, tmp_path):
    bundle = Path(shutil.copytree(bundles("scatter"), tmp_path / "tiny"))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    simulate(monkeypatch)
    load(bundle, "tensorrt")
    files = list(bundle.glob("engines/*/*.plan"))
    contents = {path.read_bytes() for path in files}
    hashed, loaded = [], []
    sha256, deserialize = hashlib.sha256, SimulatedRuntime.deserialize_cuda_engine
    spied = SimpleNamespace(sha256=lambda data: hashed.append(data) or sha256(data))
    monkeypatch.setattr(plans, "hashlib", spied)
    monkeypatch.setattr(plans, "sha256_of", lambda path: hashed.append(path.read_bytes()))
    monkeypatch.setattr(
        SimulatedRuntime,
        "deserialize_cuda_engine",
        lambda runtime, data: loaded.append(data) or deserialize(runtime, data),
    )
    load(bundle, "tensorrt")
    of_plans = [data for data in hashed if data in contents]
    assert len(of_plans) == len(loaded) == len(files) == 3
    assert {id(data) for data in of_plans} == {id(data) for data in loaded}, "the very bytes"


@pytest.mark.parametrize("role", ["target", "draft", "arbiter"])
def test_a_plan_that_was_changed_is_built_again_and_never_loaded(
    role, bundles, monkeypatch, tmp_path
):
    bundle = Path(shutil.copytree(bundles("scatter"), tmp_path / "tiny"))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    trt = simulate(monkeypatch)
    session = load(bundle, "tensorrt")
    expected = session.generate(prompts()[0], max_tokens=MAX_TOKENS).tokens
    (plan,) = bundle.glob(f"engines/*/{role}.plan")
    good = plan.read_bytes()
    plan.write_bytes(good.replace(trt.__version__.encode(), b"6.6.6"))
    loaded, deserialize = [], SimulatedRuntime.deserialize_cuda_engine
    monkeypatch.setattr(
        SimulatedRuntime,
        "deserialize_cuda_engine",
        lambda runtime, data: loaded.append(data) or deserialize(runtime, data),
    )
    session = load(bundle, "tensorrt")
    assert session.generate(prompts()[0], max_tokens=MAX_TOKENS).tokens == expected
    assert good in loaded
    assert not [data for data in loaded if b"6.6.6" in data]
    assert plan.read_bytes() == good


def test_only_what_runs_on_tensorrt_is_built(bundles, monkeypatch, tmp_path):
    bundle = Path(shutil.copytree(bundles("scatter"), tmp_path / "tiny"))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    simulate(monkeypatch)
    for settings in ({"backend": "mixed"}, {"backend": "tensorrt", "drafter": "ngram"}):
        load(bundle, **settings)
        assert [path.name for path in bundle.glob("engines/*/*.plan")] == ["target.plan"]


def test_engines_that_the_gpu_has_no_room_for_are_not_built(bundles, monkeypatch, tmp_path):
    bundle = Path(shutil.copytree(bundles("scatter"), tmp_path / "tiny"))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    cuda = simulate(monkeypatch).cuda
    cuda.memory = 2 << 30  # less than what a Jetson keeps for its system
    with pytest.raises(ResourceError, match=r"simulated GPU has 2\.0 GiB") as caught:
        load(bundle, "tensorrt")
    assert all(word in caught.value.message for word in ("target ", "draft ", "arbiter ", "sum "))
    assert "--backend mixed" in caught.value.hint
    assert not (bundle / "engines").exists()
    with pytest.raises(ResourceError) as caught:
        load(bundle, "mixed")
    assert "draft " not in caught.value.message
    assert "mixed" not in caught.value.hint
    cuda.memory = 4 << 30
    load(bundle, "tensorrt")
    cuda.memory = 2 << 30
    load(bundle, "tensorrt")  # what is built already is tried


def test_auto_is_onnx_runtime_unless_the_bundle_is_for_tensorrt_and_a_gpu_is_there(
    bundles, monkeypatch
):
    bundle = bundles("scatter")
    simulate(monkeypatch)
    assert isinstance(load(bundle, "auto").caches.target, OrtDecoder), "not marked"
    opened = Bundle.open(bundle, verify=False)
    marked = with_engines(opened)
    simulate(monkeypatch, devices=0)
    assert isinstance(place(marked, "auto", OPTIONS, drafts=False).target.decoder(), OrtDecoder)
    simulate(monkeypatch)
    assert isinstance(
        place(marked, "auto", OPTIONS, drafts=False).target.decoder(), TensorRtDecoder
    )


def with_engines(bundle: Bundle) -> Bundle:
    """The same bundle, as if it had been exported for a device."""
    from dataclasses import replace

    from cospec.runtime.bundle.manifest import EnginesEntry

    engines = EnginesEntry(device="simulated", flavour="tensorrt", trt_version="10.16")
    return replace(bundle, manifest=structs.replace(bundle.manifest, engines=engines))


def test_what_cannot_run_is_refused_with_what_to_do(bundles, tiny_pair_bundle, monkeypatch):
    with pytest.raises(UsageError, match="unknown backend 'cuda'"):
        load(bundles("scatter"), "cuda")
    simulate(monkeypatch, devices=0)
    with pytest.raises(BackendError, match="cudaErrorInsufficientDriver") as caught:
        load(bundles("scatter"), "tensorrt")
    assert "--backend onnxruntime" in caught.value.hint
    simulate(monkeypatch)
    with pytest.raises(UsageError, match="gqa") as caught:
        load(tiny_pair_bundle, "tensorrt")
    assert "--trt" in caught.value.hint
    simulate(monkeypatch, "10.3.0")
    with pytest.raises(BackendError, match=r"10\.15"):
        load(bundles("scatter"), "tensorrt")


def test_the_command_line_takes_a_backend(bundles, monkeypatch):
    simulate(monkeypatch)
    arguments = ["--engine-dir", str(bundles("scatter")), "--json", prompts()[0]]
    answers = []
    for backend in ("onnxruntime", "tensorrt"):
        ended = CliRunner().invoke(main, [*arguments, "--backend", backend])
        assert ended.exit_code == 0, ended.output
        answers.append(json.loads(ended.stdout)["tokens"])
    assert answers[0] == answers[1]
