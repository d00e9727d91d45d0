"""The costs of a round: from the bundle, or measured where it has none for these engines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

import cospec
from cospec.runtime.arbitration.baselines import AlwaysDraft
from cospec.runtime.bundle.manifest import KeptWeights
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.drafting import costs
from cospec.runtime.drafting.costs import LOOKUP_SECONDS, recorded_costs
from cospec.runtime.drafting.draft_length import LONGEST_AUTO_DRAFT, Costs

CPU, GPU = SimpleNamespace(device="cpu"), SimpleNamespace(device="cuda")


@pytest.fixture
def measured(monkeypatch):
    """What was measured; nothing is."""
    calls = []

    def measure(*given):
        calls.append(given)
        return Costs(1.0, [1.0, 1.1])

    monkeypatch.setattr(costs, "measure_costs", measure)
    return calls


@pytest.fixture
def models(tiny_pair_bundle):
    return read_manifest(tiny_pair_bundle).models


def without(models, role):
    return replace(models, **{role: replace(getattr(models, role), pass_seconds=())})


def test_an_export_records_every_width_that_the_controller_may_choose(models):
    assert len(models.target.pass_seconds) == LONGEST_AUTO_DRAFT + 1
    assert len(models.draft.pass_seconds) == 1
    found = recorded_costs(models, CPU, CPU)
    assert (found.draft_step, *found.verify) == (
        models.draft.pass_seconds[0],
        *models.target.pass_seconds,
    )


@pytest.mark.parametrize("drafter", ["model", "ngram"])
def test_the_first_answer_of_automatic_length_measures_nothing(tiny_pair_bundle, measured, drafter):
    session = cospec.load(tiny_pair_bundle, drafter=drafter)
    answer = session.generate("Q: What is 2 + 3?", max_tokens=8, num_draft_tokens="auto")
    assert len(answer.tokens) == 8
    assert measured == []


def test_looked_up_tokens_need_no_curve_of_a_draft(models):
    found = recorded_costs(without(models, "draft"), CPU, None)
    assert found.draft_step == LOOKUP_SECONDS


@pytest.mark.parametrize("role", ["target", "draft"])
def test_what_is_not_recorded_is_measured(tiny_pair_bundle, models, measured, role):
    loaded = cospec.load(tiny_pair_bundle)
    manifest = replace(loaded.manifest, models=without(models, role))
    session = cospec.Session(manifest, *loaded.engines, loaded.codec)
    assert session.draft_length_controller.measured == Costs(1.0, [1.0, 1.1])
    assert len(measured) == 1


@pytest.mark.parametrize("engines", [(GPU, CPU), (CPU, GPU), (GPU, None)])
def test_other_devices_are_measured(models, engines):
    assert recorded_costs(models, *engines) is None


def test_a_rewritten_graph_has_no_curve(tiny_pair_bundle, tmp_path):
    from cospec.calibration.draft_vocabulary import trim_bundle

    made = trim_bundle(tiny_pair_bundle, tmp_path / "new", np.arange(64))
    models = read_manifest(made).models
    assert models.draft.pass_seconds == ()
    assert models.target.pass_seconds == read_manifest(tiny_pair_bundle).models.target.pass_seconds


KEPT = KeptWeights(kind="Q8_0", tensors=1, weights=1, bits_per_weight=8.5, max_error=0.0)


@pytest.mark.parametrize(
    ("kept", "recorded", "drafted", "drafter", "given", "wanted"),
    [
        ((KEPT,), True, 3, "auto", {}, "auto"),
        ((KEPT,), True, 3, "ngram", {"temperature": 0.7, "seed": 1}, "auto"),
        ((KEPT,), True, 3, "auto", {"num_draft_tokens": 4}, 4),
        ((KEPT,), True, 3, "auto", {"mode": "collab", "arbiter": AlwaysDraft()}, None),
        ((KEPT,), True, 3, "none", {}, None),
        ((KEPT,), True, 0, "auto", {}, None),
        ((KEPT,), False, 3, "auto", {}, None),
        ((), True, 3, "auto", {}, None),
    ],
)
def test_the_length_is_automatic_where_it_changes_no_bit_and_costs_no_measurement(
    tiny_pair_bundle, models, kept, recorded, drafted, drafter, given, wanted
):
    loaded = cospec.load(tiny_pair_bundle)
    models = models if recorded else without(models, "target")
    models = replace(models, target=replace(models.target, kept_weights=kept))
    generation = replace(loaded.manifest.generation, num_draft_tokens=drafted)
    manifest = replace(loaded.manifest, models=models, generation=generation)
    session = cospec.Session(manifest, *loaded.engines, loaded.codec, drafter=drafter)
    assert session.plan("1 + 1", **given).options.num_draft_tokens == wanted
    assert session.new_session().plan("1 + 1", **given).options.num_draft_tokens == wanted
