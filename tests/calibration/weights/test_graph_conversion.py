"""Decoder graphs in other weight formats: what they compute, and whose numbers they hold."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from cospec.calibration.weights import WEIGHT_FORMATS, convert, formats
from cospec.calibration.weights.formats import BLOCKWISE
from cospec.calibration.weights.quantise import quantise_blocks, quantise_channels
from cospec.errors import BundleError, UsageError
from cospec.export.pipeline import ExportOptions, export_bundle
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions

JOINED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The products of a layer that become one where weights are in blocks."""

CONVERTED = [name for name in WEIGHT_FORMATS if name != "fp32"]
TOKENS = np.random.default_rng(0).integers(3, 500, 40)


def decoder(bundle: Path, graph: Path, outputs=("token", "logits")):
    manifest = read_manifest(bundle)
    shape = graph_shape(manifest, manifest.models.target)
    return OrtEngine(graph, shape, OrtOptions(threads=1)).decoder(outputs)


def logits_of(bundle: Path, graph: Path, width: int = 4) -> np.ndarray:
    """Logits of the tokens, fed `width` at a time."""
    player = decoder(bundle, graph)
    tokens = TOKENS % read_manifest(bundle).vocab_size
    rows = [player.step(tokens[i : i + width]).logits.copy() for i in range(0, 40, width)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def graphs(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny target in every format."""
    folder = tmp_path_factory.mktemp("formats")
    for name in WEIGHT_FORMATS:
        convert(tiny_pair_bundle / "target/model.onnx", folder / name / "model.onnx", name)
    return {name: folder / name / "model.onnx" for name in WEIGHT_FORMATS}


@pytest.fixture(scope="module")
def errors(tiny_pair_bundle: Path, graphs: dict[str, Path]) -> dict[str, float]:
    """Mean difference of a logit from fp32, as a share of the largest."""
    exact = logits_of(tiny_pair_bundle, graphs["fp32"])
    scale = np.abs(exact).max()
    return {
        name: float(np.abs(logits_of(tiny_pair_bundle, graph) - exact).mean() / scale)
        for name, graph in graphs.items()
    }


def test_errors_are_small_and_in_order(errors):
    assert errors["fp32"] == 0
    assert 0 < errors["fp16"] < 2e-4
    assert errors["fp16"] < errors["int8-weights"] < errors["int4"] < 0.05
    assert errors["int8-weights"] < errors["int4-128"] < 0.05
    for name in ("int8", "int8-rows"):
        assert errors["fp16"] < errors[name] < errors["int4"]


def test_files_shrink(graphs):
    def size(name: str) -> int:
        return sum(file.stat().st_size for file in graphs[name].parent.iterdir())

    assert size("fp16") < 0.55 * size("fp32")
    assert size("int4") < size("int8-weights") < size("fp16")
    assert size("int8") < size("fp16")


@pytest.mark.parametrize("name", CONVERTED)
def test_every_weight_is_converted(graphs, name):
    """The tied head too, which is read through a Transpose."""
    model = onnx.load(graphs[name], load_external_data=False)
    large = {i.name: i for i in model.graph.initializer if np.prod(i.dims) >= 1024}
    operators = [node.op_type for node in model.graph.node]
    if name == "fp16":
        assert {i.data_type for i in large.values()} == {onnx.TensorProto.FLOAT16}
        return
    assert "MatMul" not in operators
    product = {"int8": "MatMulInteger", "int8-rows": "MatMulIntegerToFloat"}.get(
        name, "MatMulNBits"
    )
    # Blocks: queries, keys and values are one product, gate and up another.
    assert operators.count(product) == 4 * (4 if product == "MatMulNBits" else 7) + 1
    halves = [i.name for i in large.values() if i.data_type == onnx.TensorProto.FLOAT]
    # Only scales of blocks and the embedding are left in fp32.
    assert [key for key in halves if not key.endswith("_scales")] == ["module.lm_head.weight"]


def test_a_conversion_gives_the_same_bytes_again(tiny_pair_bundle, graphs, tmp_path):
    for name in CONVERTED:
        convert(tiny_pair_bundle / "target/model.onnx", tmp_path / name / "model.onnx", name)
        for file in graphs[name].parent.iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes(), (name, file)


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_other_families(family, checkpoint_of, tmp_path):
    """Gemm with biases and a tied head; MatMul with biases and a head of its own."""
    source = str(checkpoint_of(family))
    bundle = export_bundle(ExportOptions(source, "none", capacity=64), tmp_path / family)
    graph = bundle / "target/model.onnx"
    exact = logits_of(bundle, graph)
    for name in CONVERTED:
        convert(graph, tmp_path / name / "model.onnx", name)
        model = onnx.load(tmp_path / name / "model.onnx", load_external_data=False)
        if name != "fp16":
            assert not {"MatMul", "Gemm"} & {node.op_type for node in model.graph.node}
        found = logits_of(bundle, tmp_path / name / "model.onnx")
        # Random weights make much of small differences; without a bias this would be above 0.5.
        limit = 0.3 if name.startswith("int4") else 0.06
        assert np.abs(found - exact).mean() < limit * np.abs(exact).mean(), (family, name)


@pytest.mark.parametrize("name", ["int8-rows", "int8"])
def test_a_row_and_its_neighbours(tiny_pair_bundle, graphs, name):
    """One scale for a pass lets a row depend on rows behind it, which attention cannot."""
    player = decoder(tiny_pair_bundle, graphs[name])
    player.step(TOKENS[:8])
    alone = player.step(TOKENS[8:9]).logits[0].copy()
    difference = 0.0
    for other in range(3, 40):
        player.truncate(8)
        row = player.step([TOKENS[8], other]).logits[0]
        difference = max(difference, float(np.abs(row - alone).max()))
    if name == "int8-rows":
        assert difference < 1e-4
    else:
        assert difference > 1e-2


def test_numbers_are_those_of_quantize_dynamic(tiny_pair_bundle, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    shutil.copytree(tiny_pair_bundle / "target", tmp_path / "target")
    for narrow in (False, True):
        quantize_dynamic(
            tmp_path / "target/model.onnx",
            tmp_path / "tool.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=narrow,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        ours = tmp_path / f"{narrow}/model.onnx"
        done = convert(tmp_path / "target/model.onnx", ours, "int8", reduce_range=narrow)
        assert done.reduce_range == narrow
        tool, found = _tensors(tmp_path / "tool.onnx"), _tensors(ours)
        names = [name for name in tool if name.endswith("_quantized")]
        assert len(names) == 4 * 7  # the tool leaves a tied head alone
        for name in names:
            weight = name.removesuffix("_quantized")
            assert np.array_equal(found[f"{weight}_int8_packed"], tool[name])
            assert np.array_equal(found[f"{weight}_int8_scales"], tool[f"{weight}_scale"])


@pytest.mark.parametrize("name", list(BLOCKWISE))
def test_numbers_are_those_of_the_block_quantiser(tiny_pair_bundle, graphs, name):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    form = BLOCKWISE[name]
    model = onnx.load(tiny_pair_bundle / "target/model.onnx")
    tool = MatMulNBitsQuantizer(
        model, form.bits, form.block, form.is_symmetric, accuracy_level=form.accuracy_level
    )
    tool.process()
    made = {i.name: onnx.numpy_helper.to_array(i) for i in tool.model.model.graph.initializer}
    found = _tensors(graphs[name])
    suffix = f"_Q{form.bits}"
    weights = [key.removesuffix(suffix) for key in made if key.endswith(suffix)]
    assert len(weights) == 4 * 7
    parts = {"packed": suffix, "scales": "_scales", "zero_points": "_zero_points"}
    if form.is_symmetric:
        del parts["zero_points"]
    for layer in range(4):
        for group in JOINED:
            members = [f"module.model.layers.{layer}.{each}.weight" for each in group]
            joined = "and_others_" if len(group) > 1 else ""
            for part, of_tool in parts.items():
                expected = [
                    made[f"{m}{of_tool}"].reshape(len(made[m + suffix]), -1) for m in members
                ]
                ours = found[f"{members[0]}_{joined}{name}_{part}"]
                assert np.array_equal(ours.reshape(len(ours), -1), np.concatenate(expected))
    ours = onnx.load(graphs[name], load_external_data=False)
    nodes = [node for node in ours.graph.node if node.op_type == "MatMulNBits"]
    attributes = {a.name: a.i for a in nodes[0].attribute}
    assert attributes["accuracy_level"] == 4
    assert attributes["block_size"] == form.block


def _tensors(graph: Path) -> dict[str, np.ndarray]:
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(graph).graph.initializer}


def test_channels_of_zeros_and_seven_bits():
    weight = np.random.default_rng(1).normal(size=(32, 5)).astype(np.float32)
    weight[:, 2] = 0
    for narrow, largest in ((False, 127), (True, 64)):
        packed, scales = quantise_channels(weight, reduce_range=narrow)
        assert np.abs(packed).max() == largest
        assert not packed[:, 2].any()
        assert np.abs(packed * scales - weight).max() <= scales.max() / 2 * 1.001


def test_wider_blocks_are_smaller_and_less_exact():
    """Where they fit: the tiny target's weights are padded to whole blocks."""
    weight = np.random.default_rng(2).normal(size=(256, 64)).astype(np.float32)

    def cost(name: str) -> tuple[int, float]:
        tensors = quantise_blocks(weight, BLOCKWISE[name])
        spread = weight.T.reshape(64, -1, BLOCKWISE[name].block)
        steps = np.ptp(spread, axis=2) / 15
        assert np.allclose(np.abs(tensors["scales"]), steps, rtol=0.1)
        return sum(array.nbytes for array in tensors.values()), float(steps.mean())

    (bytes_32, step_32), (bytes_128, step_128) = cost("int4"), cost("int4-128")
    assert bytes_128 < bytes_32
    assert step_128 > 1.2 * step_32


def test_quantising_leaves_the_logger_of_the_process_alone():
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    quantise_blocks(np.ones((32, 4), dtype=np.float32), BLOCKWISE["int4"])
    assert (root.level, list(root.handlers)) == before


def test_what_the_products_of_this_cpu_do_is_tried(monkeypatch):
    class Saturating:
        """A CPU whose sums of two products stop at sixteen bits."""

        def __init__(self, *_, **__):
            pass

        def run(self, _, feeds):
            rows, size = feeds["a"].shape
            return [np.full((rows, size), size // 2 * 32767)]

    formats.products_saturate.cache_clear()
    here = formats.products_saturate()
    formats.products_saturate.cache_clear()
    monkeypatch.setattr(
        formats, "import_onnxruntime", lambda: SimpleNamespace(InferenceSession=Saturating)
    )
    assert formats.products_saturate()
    formats.products_saturate.cache_clear()
    assert isinstance(here, bool)


def test_only_fp32_graphs_are_converted(graphs, tmp_path):
    for name in CONVERTED:
        with pytest.raises(UsageError, match="only those can be converted"):
            convert(graphs[name], tmp_path / "again.onnx", "int8")


def test_bytes_that_are_no_graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        convert(tmp_path / "model.onnx", tmp_path / "new.onnx", "int8")


def test_weights_with_a_second_name_are_refused(tiny_pair_bundle, tmp_path):
    """onnx_ir does not read them: a link could point at any file."""
    shutil.copytree(tiny_pair_bundle / "target", tmp_path / "target")
    os.link(tmp_path / "target/model.onnx.data", tmp_path / "second")
    with pytest.raises(BundleError, match="cannot be read"):
        convert(tmp_path / "target/model.onnx", tmp_path / "new/model.onnx", "int8")


def test_products_of_the_same_activations_become_one(tmp_path):
    """Two with biases are joined; a weight that is read twice is stored once, so it stays alone."""
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(size=(64, size)).astype(np.float32)
        for name, size in (("a", 32), ("b", 48), ("twice", 64))
    }
    biases = {
        f"bias_{n}": rng.normal(size=w.shape[1]).astype(np.float32) for n, w in weights.items()
    }
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "a", "bias_a"], ["a_out"]),
        onnx.helper.make_node("MatMul", ["x", "twice"], ["x_twice"]),
        onnx.helper.make_node("Gemm", ["x", "b", "bias_b"], ["b_out"]),
        onnx.helper.make_node("MatMul", ["x_twice", "twice"], ["twice_out"]),
    ]
    value, float_ = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "products",
        [value("x", float_, [3, 64])],
        [value(f"{name}_out", float_, [3, w.shape[1]]) for name, w in weights.items()],
        [onnx.numpy_helper.from_array(w, n) for n, w in {**weights, **biases}.items()],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path / "new/model.onnx", "int8-weights")

    made = onnx.load(tmp_path / "new/model.onnx")
    sizes = [next(a.i for a in n.attribute if a.name == "N") for n in made.graph.node if n.domain]
    assert sizes == [32 + 48, 64, 64]
    packed = [i.name for i in made.graph.initializer if i.name.endswith("packed")]
    assert sorted(packed) == ["a_and_others_int8-weights_packed", "twice_int8-weights_packed"]
    x = rng.normal(size=(3, 64)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(path).run(None, {"x": x})
        for path in (tmp_path / "model.onnx", tmp_path / "new/model.onnx")
    ]
    for exact, rounded in zip(*outputs, strict=True):
        assert np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()
