"""`cospec-bench speed` on the tiny bundle: rows, ratios and refusals. No time is asserted."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cospec.calibration.quality.cli import main
from cospec.calibration.quality.speed import as_table, parse_lengths
from cospec.errors import UsageError


def run(*words: str) -> dict:
    done = CliRunner().invoke(main, ["speed", "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_row_of_a_bundle_is_timed_and_strict_rows_equal_the_target(tiny_pair_bundle):
    bundle = str(tiny_pair_bundle)
    options = ("--tokens", "8", "--rounds", "2", "--draft-lengths", "2,auto")
    result = run("--engine-dir", bundle, *options, "--prompt", "Q: What is 12 + 30?\nA:")
    modes = [row["mode"] for row in result["rows"]]
    assert modes[:3] == ["target", "strict k=2", "strict k=auto"]
    assert set(modes[3:]) <= {"collab"}
    for row in result["rows"][:3]:
        assert row["equal_to_target"]
        assert row["tokens_per_second"] > 0
        assert len(row["tokens_per_second_by_round"]) == 2
    assert result["rows"][0]["speedup"] == 1
    assert 0 <= result["rows"][1]["acceptance"] <= 1
    assert len(as_table(result["rows"]).splitlines()) == 1 + len(modes)


def test_contexts_are_prompts_of_that_length(tiny_pair_bundle):
    options = ("--tokens", "4", "--rounds", "1", "--draft-lengths", "2", "--contexts", "16,40")
    result = run("--engine-dir", str(tiny_pair_bundle), *options)
    assert list(result["contexts"]) == ["16", "40"]
    assert result["contexts"]["40"][1]["mode"] == "strict k=2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--contexts", "1"), "is not a number from 2"),
        (("--contexts", "999999"), "is not a number from 2"),
        (("--contexts", "16", "--prompt", "hi"), "either --prompt or --contexts"),
        (("--rounds", "0"), "--rounds"),
        (("--draft-lengths", "0"), "neither auto nor a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_pair_bundle, words, message):
    done = CliRunner().invoke(main, ["speed", "--engine-dir", str(tiny_pair_bundle), *words])
    assert done.exit_code == 2
    assert message in done.output


def test_draft_lengths_are_numbers_or_auto():
    assert parse_lengths("1, 4,auto") == [1, 4, "auto"]
    with pytest.raises(UsageError, match="'-2'"):
        parse_lengths("-2")
