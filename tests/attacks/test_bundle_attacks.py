"""A bounded part of the campaigns against bundles; the programs beside this file run all of them."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from attacks.ended_commands import end_by_limit, end_by_signal, jobs
from attacks.hostile_bundles import attempt, edit_raw, kinds
from attacks.load_while_replaced import campaign

SOME = [
    "target: input past.0.key, axis 1 is 7",
    "target: input past.0.value, axis 2 is 1099511627776",
    "target: output logits, axis 2 is 7",
    "target: output hidden, axis 2 is 16777216",
    "target: input cache_length of kind 8",
    "target: without input input_ids",
    "draft: without output token",
    "target: output present.0.key by another name",
    "draft: an input too many",
    "target: a loop for ever in token",
    "draft: a loop for ever in entropy",
    "target: external data at '../../secret'",
    "target: external data at 'unlisted.bin'",
    "target: external data at '*/_ORT_MEM_ADDR_/*'",
    "draft: external data scrambled",
    "draft: external data padded",
    "target: external data with length 4611686018427387904",
    "target: empty",
    "target: half",
    "draft: manifest says kv_shapes ((16777216, 16777216),)",
    "manifest says capacity 16777216",
    "manifest says vocab_size 511",
    "arbiter: scores of kind text",
    "arbiter: twice as many scores",
    "arbiter: a loop for ever",
    "arbiter: an input of another kind",
    "template: a power",
    "template: a doubling text",
    "template: globals of a function",
    "tokenizer: normalizer 0",
    "tokenizer: normalizer 1",
    "tokenizer: pre_tokenizer 0",
    "tokenizer: model 0",
    "manifest: capacity is 4611686018427387904",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair with its arbiter."""
    from cospec.export.pipeline import ExportOptions, export_bundle

    return export_bundle(ExportOptions("tiny"), tmp_path_factory.mktemp("attack") / "tiny")


def test_there_are_many_kinds():
    assert len(kinds()) > 400
    assert set(SOME) <= set(kinds())


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME)
def test_a_bundle_that_was_made_to_harm_is_refused_or_harmless(bundle, tmp_path, kind):
    root = shutil.copytree(bundle, tmp_path / "bundle")
    (root / "target/unlisted.bin").write_bytes(bytes(1 << 20))
    kinds()[kind](root)
    verdict, said = attempt(root)
    assert verdict in ("refused", "ran"), said
    if "loop" in kind and not kind.startswith("arbiter"):
        assert "timeout" in said
    if "external data" in kind and "length" not in kind:
        assert "not among the bundle's files" in said


@pytest.mark.slow
def test_loads_while_a_bundle_is_replaced_are_never_mixed(bundle, tmp_path):
    other = shutil.copytree(bundle, tmp_path / "other")
    data = (other / "target/model.onnx.data").read_bytes()
    (other / "target/model.onnx.data").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    edit_raw(other, "target", lambda graph: graph)  # seals it
    found = campaign([bundle, other], loads=12, pause=0.3)
    assert found["mixed"] == 0, found
    assert found["right"] > 0, found
    assert found["swaps"] > 2, found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and limits as Linux has them")
@pytest.mark.parametrize("name", ["export", "weights", "batch"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "limit"])
def test_a_command_that_is_ended_leaves_what_is_whole(bundle, name, how):
    (job,) = (job for job in jobs(bundle) if job.name == name)
    if how == "limit":
        assert end_by_limit(job, 20_000) == "well"
    else:
        assert end_by_signal(job, getattr(signal, how), 4.0) == "well"
