"""Whole exports of random pairs: what is in the bundle, and that it decodes as the checkpoint does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import CHAT_TEMPLATE, perturbed, random_checkpoint

from cospec.export.pipeline import ExportOptions, export_bundle, stages
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.manifest import MANIFEST_NAME
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.session import load
from cospec.runtime.text.codec import TextCodec
from cospec.runtime.text.reference import read_record

DRAFT_VOCAB, TARGET_VOCAB = 320, 384
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft with one tokenizer of 300 entries, padded to different sizes."""
    root = tmp_path_factory.mktemp("pair")
    settings: dict[str, Any] = {"layers": 1, "chat_template": CHAT_TEMPLATE}
    target = random_checkpoint(root / "target", "llama", vocab_size=TARGET_VOCAB, **settings)
    narrow = random_checkpoint(root / "narrow", "llama", vocab_size=DRAFT_VOCAB, **settings)
    return target, perturbed(narrow, root / "draft")


@pytest.fixture(scope="module")
def stages_seen() -> list[str]:
    return []


@pytest.fixture(scope="module")
def options(pair: tuple[Path, Path]) -> ExportOptions:
    return ExportOptions(str(pair[0]), draft=str(pair[1]), capacity=128)


@pytest.fixture(scope="module")
def bundle(options, stages_seen, tmp_path_factory) -> Bundle:
    output = tmp_path_factory.mktemp("models") / "mixed"
    return Bundle.open(export_bundle(options, output, stages_seen.append))


def test_the_shared_vocabulary_is_the_narrower_one(bundle):
    assert bundle.manifest.vocab_size == DRAFT_VOCAB


def test_strict_equals_the_target_without_its_padding(bundle, pair):
    module: Any = load_module(open_checkpoint(resolve(str(pair[0]))), torch.float32)
    session = load(bundle.root)
    for prompt in ("The capital of France is", "Add 12", "def add(left, right):\n" * 3):
        ids = torch.tensor([session.codec.encode(prompt)])
        whole = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            pad_token_id=1,
            suppress_tokens=list(range(DRAFT_VOCAB, TARGET_VOCAB)),
        )
        output = session.generate(prompt, max_tokens=MAX_TOKENS)
        assert output.tokens == whole[0, ids.shape[1] :].tolist()
        assert output.stats.num_draft_tokens > 0


def test_the_files_are_those_of_the_design(bundle):
    files = sorted(str(p.relative_to(bundle.root)) for p in bundle.root.rglob("*") if p.is_file())
    assert files == [
        "certificate.json",
        "chat.json",
        "cospec.json",
        "draft/model.onnx",
        "draft/model.onnx.data",
        "target/model.onnx",
        "target/model.onnx.data",
        "text_gate.json",
        "tokenizer.json",
    ]


def test_no_file_of_a_bundle_names_a_folder_of_the_machine_that_made_it(bundle, pair):
    folder = str(pair[0].parent).encode()
    for entry in bundle.manifest.files:
        assert folder not in bundle.path(entry.path).read_bytes(), entry.path
    assert folder not in (bundle.root / MANIFEST_NAME).read_bytes()


def test_the_manifest_describes_the_pair(bundle, pair):
    manifest = bundle.manifest
    assert (manifest.name, manifest.lowering, manifest.precision) == ("mixed", "gqa", "fp32")
    assert manifest.capacity == 128
    assert manifest.models.target.architecture == "LlamaForCausalLM"
    assert manifest.models.target.source == pair[0].name
    assert manifest.models.draft is not None
    assert manifest.models.draft.kv_shapes == ((2, 16),)
    assert manifest.generation.eos_token_ids == (1,)
    assert manifest.generation.bos_token_id == 0
    assert {"torch", "transformers", "onnx"} <= manifest.created_by.keys()


def test_the_certificate_holds_what_the_gate_measured(bundle):
    certificate = json.loads(bundle.path("certificate.json").read_text(encoding="utf-8"))
    assert certificate["parity"].keys() == {"target", "draft"}
    for report in certificate["parity"].values():
        assert 0 < report["max_relative_error"] < report["tolerance"] == 1e-4
        assert report["longest_position"] == 127
        assert report["rows"] > 40


def test_the_certificate_says_what_the_text_gate_compared(bundle):
    certificate = json.loads(bundle.path("certificate.json").read_text(encoding="utf-8"))
    record = read_record(bundle.root / "text_gate.json")
    assert certificate["text"] == record.counts()
    assert certificate["text"]["conversations"] > 20
    assert "text_gate.json" in {entry.path for entry in bundle.manifest.files}


def test_the_progress_bar_knows_every_stage(bundle, options, stages_seen):
    assert len(stages_seen) == stages(options) == 15
    assert stages_seen[0] == "reading the checkpoints"
    assert stages_seen[-1] == "sealing the bundle"
    assert {"target: tracing the graph", "draft: checking the graph"} < set(stages_seen)


def test_the_chat_template_brings_its_special_tokens(bundle, pair):
    from transformers import AutoTokenizer

    assert "bos_token" in CHAT_TEMPLATE
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    codec = TextCodec(bundle.path("tokenizer.json"), bundle.path("chat.json"))
    messages = [
        {"role": "user", "content": "Add 12 and 30, please."},
        {"role": "assistant", "content": "The answer is 42."},
        {"role": "user", "content": "Then take 7 away: {{ bos_token }}"},
    ]
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert codec.encode_chat(messages) == expected
    assert expected[0] == 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_fp16_passes_its_gate(family, checkpoint_of: Callable[..., Path], tmp_path):
    folder = checkpoint_of(family, layers=1)
    lowering = "gqa" if family == "llama" else "portable"
    options = ExportOptions(
        str(folder), draft="none", precision="fp16", lowering=lowering, capacity=64
    )
    bundle = Bundle.open(export_bundle(options, tmp_path / family))
    assert bundle.manifest.models.draft is None
    assert bundle.manifest.models.target.cache_dtype == "float16"
    parity = json.loads(bundle.path("certificate.json").read_text())["parity"]["target"]
    assert parity["tolerance"] == 2e-2
    # Half precision it is, and well inside what is allowed.
    assert 1e-6 < parity["max_relative_error"] < 1e-2
    weights = bundle.manifest.models.target.parameters
    data = bundle.path("target/model.onnx.data").stat().st_size
    assert 2 * weights * 0.9 < data < 2 * weights + 600_000
    output = load(bundle.root).generate("The capital of", max_tokens=8)
    assert 0 < len(output.tokens) <= 8
