"""A bounded part of the campaigns against bundles; the programs beside this file run all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attacks.hostile_bundles import kinds
from attacks.load_while_replaced import campaign, with_other_weights
from attacks.random_mutations import BYTES, PLACES
from attacks.random_mutations import campaign as mutations

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, signals and limits as Linux has them"
)

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


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a campaign in a process of its own: it forks, so nothing may have run a model before."""
    words = [sys.executable, "-m", f"attacks.{program}", *map(str, arguments)]
    folder = Path(__file__).parents[1]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_there_are_many_kinds():
    assert len(kinds()) > 400
    assert set(SOME) <= set(kinds())


@pytest.mark.slow
@only_linux
def test_bundles_that_were_made_to_harm_are_refused_or_harmless(bundle):
    done = run("hostile_bundles", bundle, *(word for kind in SOME for word in ("--only", kind)))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert {kind for _, kind, _ in rows} >= set(SOME)
    for verdict, kind, said in rows:
        assert verdict in ("refused", "ran"), (kind, said)
        if "loop" in kind and not kind.startswith("arbiter"):
            assert "timeout" in said
        if "external data" in kind and "length" not in kind:
            assert "not among the bundle's files" in said


@only_linux
def test_random_damage_is_refused(bundle):
    found = mutations(bundle, 400, seed=10**9)
    assert {done for _, done in found} <= {"refused", "unchanged"}
    assert {kind for kind, _ in found} >= {*BYTES, *PLACES, "a value"}


@only_linux
def test_random_templates_end_in_time():
    done = run("random_templates", "--seconds", 6, "--seed", 10**9)
    assert done.returncode == 0, done.stdout + done.stderr
    for how in ("rendered", "too much", "TypeError"):  # the grammar still makes all of them
        assert how in done.stdout


@pytest.mark.slow
def test_loads_while_a_bundle_is_replaced_are_never_mixed(bundle, tmp_path):
    other = with_other_weights(bundle, tmp_path / "other")
    found = campaign([bundle, other], loads=12, pause=0.3)
    assert found["mixed"] == 0, found
    assert found["right"] > 0, found
    assert found["swaps"] > 2, found


@pytest.mark.slow
@only_linux
def test_commands_that_are_ended_leave_what_is_whole(bundle):
    counts = ("--terms", 4, "--kills", 4, "--limits", 2, "--disks", 2)
    done = run("ended_commands", bundle, *counts, "--only", "weights,draft-vocabulary,batch,save")
    assert done.returncode == 0, done.stdout + done.stderr
    tried = (
        4 + 4 + 4 + 8 + (0 if "SKIPPED" in done.stdout else 8)
    )  # whole, TERM, KILL, limits, disks
    assert f"tried {tried}, failed 0" in done.stdout
