"""Names of modes, and their meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from cospec.calibration.quality.modes import Mode, parse_modes, sampling_of, split_names
from cospec.calibration.tasks.tiny import tiny_tasks
from cospec.errors import UsageError
from cospec.export.arbiter_folder import read_arbiter


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("target,strict", ["target", "strict"]),
        (" target , strict ,", ["target", "strict"]),
        ("typical:0.3,0.09,strict", ["typical:0.3,0.09", "strict"]),
        ("random:0.1,7,relaxed:3,0.2", ["random:0.1,7", "relaxed:3,0.2"]),
        ("collab@0.5,0.7", ["collab@0.5", "0.7"]),
        ("", []),
    ],
)
def test_commas_between_a_rules_parameters_do_not_split(text, names):
    assert split_names(text) == names


def test_collab_is_the_bundles_threshold_or_each_given_one():
    assert parse_modes(["collab"], own_threshold=0.6) == [Mode("collab", "collab", 0.6)]
    both = [Mode("collab@0.3", "collab", 0.3), Mode("collab@1", "collab", 1.0)]
    assert parse_modes(["collab"], own_threshold=0.6, thresholds=[0.3, 1.0]) == both
    assert parse_modes(["collab@0.3", "collab@1", "collab@0.3"], own_threshold=0.6) == both


def test_each_arbiter_has_modes_of_its_own():
    one, two = Path("one.onnx"), Path("two.onnx")
    assert parse_modes(["collab"], graphs=[one]) == [Mode("collab", "collab", 0.5, one)]
    names = {
        mode.name: mode.graph
        for mode in parse_modes(["collab"], thresholds=[0.1, 0.2], graphs=[one, two])
    }
    assert names == {
        "collab[1]@0.1": one,
        "collab[1]@0.2": one,
        "collab[2]@0.1": two,
        "collab[2]@0.2": two,
    }


def test_draft_is_the_draft_alone_and_baselines_are_judged():
    modes = parse_modes(["draft", "always-draft", "fly:2,0.3"])
    assert [mode.kind for mode in modes] == ["draft", "baseline", "baseline"]
    assert [mode.is_judged for mode in modes] == [False, True, True]


def test_random_without_a_rate_waits_for_collab():
    modes = parse_modes(["random", "collab"], own_threshold=0.5)
    assert modes[0] == Mode("random", "baseline")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no modes to run"),
        (["collab"], "this bundle has no arbiter"),
        (["random"], "there is none"),
        (["oracle"], "unknown rule 'oracle'"),
        (["0.7"], "unknown rule '0.7'"),
        (["random:2"], "rate is 2.0"),
        (["collab@x"], "threshold in 'collab@x'"),
        (["collab@1.5"], "threshold in 'collab@1.5'"),
        (["sample:0"], "'sample:0' is not sample:TEMPERATURE,SEED"),
        (["sample:nan"], "'sample:nan' is not sample:TEMPERATURE,SEED"),
        (["sample:0.7,x"], "is not sample:TEMPERATURE,SEED"),
        (["sample:inf"], "temperature is inf"),
    ],
)
def test_modes_that_cannot_be(names, message):
    with pytest.raises(UsageError) as caught:
        parse_modes(names)
    assert message in str(caught.value)


def test_an_arbiter_s_folder_brings_its_threshold():
    from cospec.models import tiny_pair

    (mode,) = parse_modes(["collab"], graphs=[tiny_pair.ARBITER], own_threshold=0.9)
    assert mode.graph == tiny_pair.ARBITER / "model.onnx"
    assert mode.threshold == read_arbiter(tiny_pair.ARBITER).threshold != 0.9


def test_samples_of_an_item_differ_by_seed_and_by_item_and_not_by_run():
    first, second = parse_modes(["sample:0.7,1", "sample:0.7,2"])
    one, two = tiny_tasks("validation", 2, seed=0)
    drawn = {(m.name, t.id): sampling_of(m, t) for m in (first, second) for t in (one, two)}
    assert len({params.seed for params in drawn.values()}) == 4
    assert {params.temperature for params in drawn.values()} == {0.7}
    assert sampling_of(first, one) == drawn["sample:0.7,1", one.id]
    assert sampling_of(Mode("target", "target"), one) is None
