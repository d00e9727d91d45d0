"""The controlled pair: what the draft says the target says, as far as the noise lets it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cospec.bench.speed.llama_file import gguf_name, write_gguf
from cospec.bench.speed.pair import BYTES, LlamaShape, PairShape, write_pair
from cospec.errors import UsageError
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.models.vocabulary import shared_vocabulary

SMALL = PairShape(
    vocab_size=300,
    positions=128,
    target=LlamaShape(64, 3, 8, 2, 96, head_dim=8),
    draft=LlamaShape(32, 2, 4, 2, 64, head_dim=8),
)


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    module: Any = load_module(open_checkpoint(resolve(str(folder))), torch.float32)
    return module(tokens).logits[0]


def agreement(folder: Path) -> float:
    tokens = torch.randint(2, 300, (1, 100), generator=torch.Generator().manual_seed(1))
    ours, theirs = (logits(folder / role, tokens).argmax(-1) for role in ("target", "draft"))
    return float((ours == theirs).float().mean())


def test_without_noise_the_target_computes_what_the_draft_computes(tmp_path):
    write_pair(tmp_path, 0.0, shape=SMALL)
    tokens = torch.randint(2, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    ours, theirs = (logits(tmp_path / role, tokens) for role in ("target", "draft"))
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=0)
    assert theirs.std() > 1


def test_noise_lowers_the_agreement_and_unrelated_models_have_none(tmp_path):
    found = []
    for noise in (0.0, 2.0, math.inf):
        folder = tmp_path / f"{noise}"
        write_pair(folder, noise, shape=SMALL)
        found.append(agreement(folder))
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.1


def test_a_pair_is_the_same_every_time_and_its_models_share_a_vocabulary(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / name, 0.5, shape=SMALL)
    for role in ("target", "draft"):
        first, second = (
            (tmp_path / name / role / "model.safetensors").read_bytes() for name in ("a", "b")
        )
        assert first == second
    target, draft = (open_checkpoint(resolve(str(tmp_path / "a" / r))) for r in ("target", "draft"))
    shared = shared_vocabulary(target, draft)
    assert (shared.size, shared.tokens) == (300, 300)


def test_special_tokens_are_never_chosen(tmp_path):
    write_pair(tmp_path, 0.5, shape=SMALL)
    tokens = torch.randint(2, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    for role in ("target", "draft"):
        rows = logits(tmp_path / role, tokens)
        assert torch.all(rows[:, :2] == 0)
        assert torch.all(rows.max(-1).values > 0)


def test_the_full_shape_has_the_parameters_that_it_claims():
    shape = PairShape()

    def parameters(llama: LlamaShape, heads: int) -> int:
        kv = llama.kv_heads * llama.head_dim
        layer = 2 * llama.hidden * llama.heads * llama.head_dim + 2 * llama.hidden * kv
        layer += 3 * llama.hidden * llama.intermediate
        return heads * shape.vocab_size * llama.hidden + llama.layers * layer

    assert parameters(shape.target, 2) == pytest.approx(200.8e6, rel=1e-3)
    assert parameters(shape.draft, 1) == pytest.approx(19.0e6, rel=2e-3)


@pytest.mark.parametrize(
    ("noise", "shape", "said"),
    [
        (-1.0, SMALL, "at least 0"),
        (math.nan, SMALL, "at least 0"),
        (0.1, PairShape(target=SMALL.draft, draft=SMALL.target), "at least as large"),
        (0.1, PairShape(vocab_size=BYTES), "vocabulary"),
    ],
)
def test_what_makes_no_pair_is_refused(tmp_path, noise, shape, said):
    with pytest.raises(UsageError, match=said):
        write_pair(tmp_path, noise, shape=shape)


def test_a_gguf_file_reads_back_as_the_same_model(tmp_path):
    write_pair(tmp_path, 0.5, shape=SMALL)
    write_gguf(tmp_path / "target", tmp_path / "target.gguf")
    tokens = torch.randint(2, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    ours = logits(tmp_path / "target", tokens)
    theirs = logits(tmp_path / "target.gguf", tokens)  # transformers undoes the order of the rows
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_quantised_gguf_files_keep_their_norms(tmp_path):
    import gguf

    write_pair(tmp_path, 0.5, shape=SMALL)
    write_gguf(tmp_path / "draft", tmp_path / "draft.gguf", "Q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "draft.gguf").tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_up.weight"] == "Q8_0"
    names = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert sum(name.startswith("blk.1.") for name in kinds) == 9
    assert names["num_hidden_layers"] == 2


def test_names_of_weights_in_a_gguf_file():
    assert gguf_name("model.layers.3.self_attn.k_proj.weight") == "blk.3.attn_k.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert np.unique([gguf_name(f"model.{n}.weight") for n in ("norm", "embed_tokens")]).size == 2
