"""Pairs whose vocabularies nearly match are exported, and strict equals the target's greedy output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from factories import perturbed, random_checkpoint, write_tokenizer

from cospec.export import cli
from cospec.export.attention import LOWERINGS
from cospec.export.decoder import LOWEST
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.cli import inspect
from cospec.runtime.decoding.session import load

EXTRA = [f"<extra {i}>" for i in range(40)]
WIDTH = 340
"""Tokens of the target: 300 and the extra ones."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target with 40 tokens more than the draft has rows, and one that the draft calls otherwise."""
    root = tmp_path_factory.mktemp("pair")
    target = random_checkpoint(root / "target", "llama", vocab_size=352, layers=1)
    write_tokenizer(target, extra=EXTRA)
    same = perturbed(target, root / "same")
    module: Any = load_module(open_checkpoint(resolve(str(same))), torch.float32)
    module.resize_token_embeddings(304)
    draft = root / "draft"
    module.save_pretrained(draft)
    write_tokenizer(draft)
    file = draft / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"][2]["content"] = "<|person|>"
    content["model"]["vocab"]["<|person|>"] = content["model"]["vocab"].pop("<|user|>")
    file.write_text(json.dumps(content), encoding="utf-8")
    return target, draft


def greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    module: Any = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    module.generation_config.eos_token_id = None
    whole = module.generate(
        torch.tensor([ids]),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=1,
        suppress_tokens=list(range(WIDTH, 352)),
    )
    output: list[int] = whole[0, len(ids) :].tolist()
    return output


@pytest.fixture(scope="module", params=LOWERINGS)
def exported(request, pair, tmp_path_factory) -> tuple[str, Path]:
    """The pair as a bundle, and what the command printed."""
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    command = ["--target", pair[0], "--draft", pair[1], "--capacity", "96", "--output", folder]
    words = [str(word) for word in [*command, "--lowering", request.param]]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    return result.stdout, folder


def test_strict_equals_the_target(pair, exported):
    bundle = Bundle.open(exported[1])
    assert bundle.manifest.vocab_size == WIDTH
    draft = bundle.manifest.models.draft
    assert draft is not None
    assert len(draft.unshared) == 41
    assert draft.unshared[0] == "2: '<|user|>' in the target, '<|person|>' in the draft"
    assert draft.unshared[1] == "300: '<extra 0>' in the target, no token in the draft"
    assert draft.kept_tokens is None
    session = load(bundle.root)
    eos = set(bundle.manifest.generation.eos_token_ids)
    drafted = accepted = unknown = 0
    # Tokens that the draft has no embedding for stand in the prompts, and turn up in the outputs.
    for prompt in ("<extra 3>The capital of<extra 7>", "Add 12", "<|user|>hi", "def add(left", "x"):
        ids = session.codec.encode(prompt)
        expected = greedy(pair[0], ids, 24)
        end = next((i + 1 for i, token in enumerate(expected) if token in eos), len(expected))
        output = session.generate(prompt, max_tokens=24)
        assert output.tokens == expected[:end]
        drafted += output.stats.num_draft_tokens
        accepted += output.stats.num_accepted_tokens
        unknown += sum(token >= 304 for token in ids + output.tokens)
    assert 0 < accepted < drafted
    assert unknown > 3


def test_the_draft_proposes_only_what_both_have(exported):
    decoder = load(exported[1]).caches.draft
    assert decoder is not None
    decoder.select(("logits", "top_ids"))
    output = decoder.step(np.arange(0, WIDTH, 6, dtype=np.int64))
    left_out = [2, *range(300, WIDTH)]
    assert (output.logits[:, left_out] == LOWEST).all()
    kept = np.delete(output.logits, left_out, axis=1)
    assert (kept > LOWEST / 2).all()
    assert not np.isin(output.top_ids, left_out).any()


def test_what_is_left_out_is_printed(exported):
    stdout, folder = exported
    assert "41 tokens" in stdout
    assert "'<|person|>' in the draft" in stdout
    shown = CliRunner().invoke(inspect.main, [str(folder)]).stdout
    assert "leaves out  2: '<|user|>' in the target, '<|person|>' in the draft\n" in shown
    assert "              300: '<extra 0>' in the target, no token in the draft\n" in shown


def test_a_pair_with_one_vocabulary_leaves_nothing_out(tiny_pair_bundle):
    assert "unshared" not in (tiny_pair_bundle / "cospec.json").read_text(encoding="utf-8")
