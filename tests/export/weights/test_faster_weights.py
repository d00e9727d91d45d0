"""Matrices in other blocks: how far the numbers move, which ones move, and that the graph has them."""

from __future__ import annotations

import numpy as np
import pytest
from gguf_files import quantised, random_gguf

from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.export.weights.faster_weights import FasterWeights, block_of, faster
from cospec.export.weights.packing import Form
from cospec.models.weights.blocks import Blocks, Factors
from cospec.models.weights.gguf_kinds import RECORDS, unpack
from cospec.models.weights.weights import Weights
from cospec.runtime.bundle.reader import Bundle

OUTPUTS, INPUTS = 10, 512


class OneMatrix(Weights):
    """A checkpoint with one quantised matrix `m` and one of plain numbers `p`."""

    def __init__(self, blocks):
        super().__init__({"m": blocks.shape, "p": (2, 2)})
        self.stored = blocks

    def __getitem__(self, name):
        raise AssertionError("the checkpoint's own numbers are not asked for")

    def kind(self, name):
        return self.stored.kind

    def blocks(self, name):
        if name != "m":
            return None
        halves = (self.stored.rows(slice(0, 4)), self.stored.rows(slice(4, OUTPUTS)))
        return iter([(half, half.matrix()) for half in halves])


def of_kind(kind):
    return unpack(kind, quantised(kind, OUTPUTS, INPUTS, np.random.default_rng(3)))


def stored(weights):
    parts = [blocks for blocks, _ in weights.blocks("m")]
    return parts[0], np.concatenate([part.matrix() for part in parts])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", RECORDS)
def test_a_target_moves_only_values_of_fewer_bits_than_are_stored(kind, wide):
    blocks = of_kind(kind)
    form, matrix = stored(FasterWeights(OneMatrix(blocks), "target", {"m"}, wide=wide))
    if blocks.bits == 8 or (blocks.bits == 4 and not wide):
        assert np.array_equal(matrix, blocks.matrix())
        assert form.kind == blocks.kind
        return
    assert (form.bits, form.block) == (8, 128)
    largest = np.abs(blocks.matrix().reshape(OUTPUTS, -1, 128)).max(axis=2, keepdims=True)
    moved = np.abs(matrix - blocks.matrix()).reshape(OUTPUTS, -1, 128)
    assert (moved <= largest * (1 / 254 + 2**-10)).all()  # half a step, and the scale in fp16


@pytest.mark.parametrize("kind", RECORDS)
def test_a_draft_has_four_bits(kind):
    blocks = of_kind(kind)
    form, matrix = stored(FasterWeights(OneMatrix(blocks), "draft", {"m"}))
    if blocks.bits == 4:
        assert np.array_equal(matrix, blocks.matrix())
        return
    assert (form.bits, form.block) == (4, 128)
    parts = blocks.matrix().reshape(OUTPUTS, -1, 128)
    spread = np.maximum(parts.max(axis=2), 0) - np.minimum(parts.min(axis=2), 0)
    moved = np.abs(matrix.reshape(parts.shape) - parts)
    # A step at most: the zero point is rounded too.
    assert (moved <= spread[:, :, None] / 15 * (1 + 2**-9)).all()


def test_a_draft_keeps_eight_bits_of_an_embedding_that_is_its_head_too():
    form, _ = stored(FasterWeights(OneMatrix(of_kind("Q6_K")), "draft", {"m"}, {"m"}))
    assert (form.bits, form.block) == (8, 128)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_matrices_that_no_product_reads_stay_as_they_are(role):
    blocks = of_kind("Q6_K")
    weights = FasterWeights(OneMatrix(blocks), role, set())
    form, matrix = stored(weights)
    assert form.kind == "Q6_K"
    assert np.array_equal(matrix, blocks.matrix())
    assert weights.blocks("p") is None


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("kind", RECORDS)
def test_a_sample_has_the_form_of_the_whole(kind, role):
    weights = FasterWeights(OneMatrix(of_kind(kind)), role, {"m"})
    assert Form.of(weights.sample("m")) == Form.of(stored(weights)[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_an_order_of_inputs_is_kept(bits):
    rng = np.random.default_rng(4)
    order = rng.permutation(INPUTS)
    plain = of_kind("Q6_K")
    ordered = Blocks(
        plain.kind, plain.bits, plain.block, plain.values, plain.scales, plain.zero_points,
        order=order,
    )  # fmt: skip
    assert np.array_equal(
        faster(ordered, bits).matrix(), faster(plain, bits).matrix()[:, np.argsort(order)]
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_blocks_of_zeros_and_scales_beyond_half_precision_do_not_fail(bits, scale):
    values = np.random.default_rng(5).integers(0, 64, (2, 128), dtype=np.uint8)
    scales = Factors((np.full((2, 8, 1), scale, dtype=np.float32),))
    matrix = faster(Blocks("test", 6, 16, values, scales, 32), bits).matrix()
    assert np.isfinite(matrix).all() == (scale < 1)


@pytest.mark.parametrize(("inputs", "block"), [(512, 128), (896, 128), (576, 64), (48, 16)])
def test_blocks_divide_the_inputs(inputs, block):
    assert block_of(inputs) == block
    assert inputs % block == 0


def test_a_pair_is_stored_by_role(tmp_path):
    kinds = {"token_embd": "Q5_0", "output": "Q8_0"}
    file = random_gguf(
        tmp_path / "m.gguf", lambda name: kinds.get(name, "Q6_K"), layers=1, is_tied=False
    )
    options = ExportOptions(str(file), draft=str(file), capacity=64)
    bundle = export_bundle(options, tmp_path / "pair")
    models = Bundle.open(bundle).manifest.models
    found = {
        role: {each.kind: (each.bits_per_weight, each.max_error) for each in entry.kept_weights}
        for role, entry in (("target", models.target), ("draft", models.draft))
    }
    wide, narrow = "Q6_K in 8 bits, blocks of 128", "Q6_K in 4 bits, blocks of 128"
    assert found["target"].keys() == {"Q5_0", "Q8_0", wide}
    assert found["draft"].keys() == {"Q5_0", "Q8_0 in 4 bits, blocks of 128", narrow}
    assert found["target"]["Q8_0"][1] == 0.0
    assert 0 < found["target"][wide][1] <= 1 / 254 + 2**-10
    assert found["target"][wide][0] == pytest.approx(8.125, abs=0.01)
    assert found["draft"][narrow][0] == pytest.approx(4.18, abs=0.05)
