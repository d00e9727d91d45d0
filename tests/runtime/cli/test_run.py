"""cospec-run as a user or a script sees it: output, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from arbiters import bundle_with_arbiter, untrained_network
from commands_run import PROMPT, call

import cospec
from cospec.calibration.arbiter.network_graph import export_arbiter
from cospec.runtime.cli.run_output import COLOURS, describe
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.stats import GenerationStats


def without_times(plain: dict[str, Any]) -> dict[str, Any]:
    stats = {k: v for k, v in plain["stats"].items() if not k.endswith("_seconds")}
    return plain | {"stats": stats}


def test_it_prints_the_text_and_nothing_else(root, chat):
    result = call("--engine-dir", root, PROMPT)
    assert result.exit_code == 0, result.output
    assert result.stdout == chat.text + "\n"
    assert result.stderr == ""


def test_the_folder_above_the_bundle_will_do(root, chat):
    assert call("--engine-dir", root.parent, PROMPT).stdout == chat.text + "\n"


def test_raw_sends_the_prompt_as_it_is(root, chat, raw):
    result = call("--engine-dir", root, "--raw", PROMPT)
    assert result.stdout == raw.text + "\n"
    assert raw.text != chat.text


def test_the_prompt_may_come_from_standard_input(root, chat):
    result = call("--engine-dir", root, stdin=PROMPT + "\n")
    assert (result.exit_code, result.stdout) == (0, chat.text + "\n")


@pytest.mark.parametrize("drafter", ["auto", "model", "ngram", "none"])
@pytest.mark.parametrize("k", [0, 2])
def test_no_option_of_speculation_changes_the_text(root, chat, drafter, k):
    options = ("--drafter", drafter, "--num-draft-tokens", k, "--threads", 1, "--provider", "cpu")
    assert call("--engine-dir", root, *options, PROMPT).stdout == chat.text + "\n"


def test_json_is_one_object_and_that_of_the_api(root, chat):
    result = call("--engine-dir", root, "--json", PROMPT)
    found = json.loads(result.stdout)
    assert list(found) == ["text", "tokens", "provenance", "finish_reason", "stats"]
    assert without_times(found) == without_times(chat.to_json())
    assert set(found["provenance"]) <= {"agreed", "target", "bonus"}
    assert found["stats"]["ttft_seconds"] > 0
    assert result.stderr == ""


def test_provenance_colours_each_token(root, chat):
    plain = call("--engine-dir", root, "--provenance", PROMPT)
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == chat.text + "\n[agreed  draft  bonus  target]\n"
    coloured = call("--engine-dir", root, "--provenance", PROMPT, colour=True).stdout
    assert click.unstyle(coloured) == plain.stdout
    assert coloured.partition("\n[")[0] == painted(root, chat)


def painted(root: Path, completion: Completion) -> str:
    """Each token's text in the colour of who chose it; the end of half a character is the last's."""
    session = cospec.load(root)
    text = session.codec.stream(session.encode([{"role": "user", "content": PROMPT}]))
    texts = [text.push([token]) for token in completion.tokens]
    texts[-1] += text.finish()
    styled = zip(texts, completion.provenance, strict=True)
    return "".join(click.style(text, fg=COLOURS[who]) for text, who in styled if text)


def test_jsonl_is_an_object_a_round_and_one_at_the_end(root, chat):
    result = call("--engine-dir", root, "--jsonl", PROMPT)
    *pieces, end = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(pieces) == chat.stats.num_target_passes > 1
    assert "".join(piece["text"] for piece in pieces) == chat.text
    assert [token for piece in pieces for token in piece["tokens"]] == chat.tokens
    assert [who for piece in pieces for who in piece["provenance"]] == chat.provenance
    whole = {"finish_reason": chat.finish_reason, "stats": chat.stats.to_json()}
    assert without_times(end) == without_times(whole)
    assert result.stderr == ""


def test_an_error_with_jsonl_is_one_line(root):
    result = call("--engine-dir", root, "--jsonl", "")
    assert result.exit_code == 8
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["error"]["type"] == "PromptError"


def test_every_option_of_sampling_reaches_the_session(root):
    options = {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 11,
        "min_tokens": 4,
        "logprobs": 2,
    }
    params = cospec.SamplingParams(**options, stop=("PQ", "é"))
    messages = [{"role": "user", "content": PROMPT}]
    expected = cospec.load(root).generate(messages, max_tokens=12, sampling=params)
    flags = [str(x) for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v)]
    flags += ["--stop", "PQ", "--stop", "é"]
    found = json.loads(call("--engine-dir", root, *flags, "--json", PROMPT).stdout)
    plain = json.loads(json.dumps(expected.to_json()))
    assert without_times(found) == without_times(plain)
    assert found["seed"] == 11
    assert len(found["logprobs"][0]["top"]) == 2


def test_a_stop_text_is_not_painted(root, chat):
    stop = chat.text[4:6]
    expected = chat.text[: chat.text.index(stop)]
    result = call("--engine-dir", root, "--stop", stop, "--provenance", PROMPT, colour=True)
    assert click.unstyle(result.stdout).partition("\n[")[0] == expected


def test_a_system_message_goes_first(root):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": PROMPT}]
    expected = cospec.load(root).generate(messages, max_tokens=12).text
    assert call("--engine-dir", root, "--system", "s", PROMPT).stdout == expected + "\n"


def test_timeout_and_overflow(root):
    late = json.loads(call("--engine-dir", root, "--timeout", "1e-9", "--json", PROMPT).stdout)
    assert (late["finish_reason"], late["tokens"]) == ("timeout", [])
    options = ("--max-tokens", 80, "--num-draft-tokens", 2, "--json", PROMPT)
    stopped = json.loads(call("--engine-dir", root, *options).stdout)
    slid = json.loads(call("--engine-dir", root, "--overflow", "slide", *options).stdout)
    assert (stopped["finish_reason"], slid["finish_reason"]) == ("capacity", "length")
    assert slid["tokens"][: len(stopped["tokens"])] == stopped["tokens"]


def test_stats_go_to_stderr(root, chat):
    result = call("--engine-dir", root, "--stats", PROMPT)
    assert result.stdout == chat.text + "\n"
    stats = chat.stats
    for fact in (
        f"{stats.num_prompt_tokens} prompt, {stats.num_generated_tokens} generated",
        f"{stats.num_target_passes} of the target",
        f"drafted      {stats.num_draft_tokens}, accepted {stats.num_accepted_tokens}",
        "tokens/s",
    ):
        assert fact in result.stderr


def test_figures_that_do_not_exist_are_dashes():
    text = describe(GenerationStats(num_prompt_tokens=3))
    assert "- tokens each" in text
    assert "accepted 0 (-)" in text
    assert "then - tokens/s" in text


@pytest.fixture(scope="module")
def collab_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with an untrained arbiter that no certificate tells of."""
    return with_untrained_arbiter(root, tmp_path_factory.mktemp("uncertified"))


def with_untrained_arbiter(root: Path, folder: Path, **facts: Any) -> Path:
    export_arbiter(untrained_network(root), folder / "model.onnx")
    return bundle_with_arbiter(root, folder / "model.onnx", folder / "tiny", **facts)


def test_collab_is_that_of_the_api_and_colours_the_drafts_tokens(collab_root):
    expected = cospec.load(collab_root).generate(
        [{"role": "user", "content": PROMPT}], max_tokens=12, mode="collab", threshold=0
    )
    options = ("--engine-dir", collab_root, "--mode", "collab", "--threshold", 0)
    found = json.loads(call(*options, "--json", PROMPT).stdout)
    assert without_times(found) == without_times(expected.to_json())
    count = expected.provenance.count("draft")
    assert found["stats"]["num_overrides"] == count > 0
    coloured = call(*options, "--provenance", PROMPT, colour=True).stdout
    assert click.unstyle(coloured) == expected.text + "\n[agreed  draft  bonus  target]\n"
    assert coloured.partition("\n[")[0] == painted(collab_root, expected)
    assert click.style("x", fg="magenta").partition("x")[0] in coloured
    lines = call(*options, "--stats", PROMPT).stderr
    assert f"overrides    {count} of {expected.stats.num_mismatches} mismatches (" in lines


def test_threshold_one_prints_what_strict_prints(collab_root, chat):
    options = ("--engine-dir", collab_root, "--mode", "collab")
    assert call(*options, "--threshold", 1, PROMPT).stdout == chat.text + "\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_arbiter_that_was_never_certified_is_announced_once(collab_root, as_json):
    options = ["--engine-dir", collab_root, *(["--json"] if as_json else [])]
    result = call(*options, "--mode", "collab", PROMPT)
    assert result.stderr.count("never certified") == 1
    assert "run cospec-calibrate" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert call(*options, PROMPT).stderr == "", "strict does not use it"


def test_a_certified_arbiter_is_quiet(root, tmp_path):
    certified = with_untrained_arbiter(root, tmp_path, quality=True)
    assert call("--engine-dir", certified, "--mode", "collab", PROMPT).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1.5"], "threshold is 1.5, but must be from 0 to 1"),
        (["--threshold", "x"], "threshold is 'x', but must be a number"),
        (["--drafter", "ngram"], "this session drafts without one"),
    ],
)
def test_collab_refuses_what_it_cannot_do(collab_root, arguments, message):
    result = call("--engine-dir", collab_root, "--mode", "collab", *arguments, PROMPT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "never certified" not in result.stderr


def test_overrides_and_caps_in_words():
    stats = GenerationStats(num_prompt_tokens=3, num_mismatches=4, num_overrides=1)
    assert "overrides" not in describe(stats), "strict has none"
    stats.num_capped = {"in_a_row": 2, "per_block": 0, "repetition": 1}
    words = "overrides    1 of 4 mismatches (25%); capped: 2 in_a_row, 1 repetition"
    assert words in describe(stats)
