"""A graph that reads quantised matrices computes the products and rows of the dequantised ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common as passes
import onnxruntime
import pytest
import torch
from gguf_files import quantised
from onnx import TensorProto, helper

from cospec.export.weights.block_products import BlockProducts
from cospec.export.weights.embeddings import replace_embeddings
from cospec.export.weights.products import find_products
from cospec.export.weights.stored_matrix import Ledger
from cospec.models.weights.blocks import Blocks, Factors
from cospec.models.weights.gguf_kinds import RECORDS, unpack
from cospec.models.weights.weights import Stored, Weights

INPUTS, ROWS = 512, 40


class Matrices(Weights):
    """Quantised matrices by name, given in parts of a few rows."""

    def __init__(self, **matrices: Blocks) -> None:
        super().__init__({name: each.shape for name, each in matrices.items()})
        self.matrices = matrices

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.matrices[name].matrix())

    def kind(self, name: str) -> str:
        return self.matrices[name].kind

    def blocks(self, name: str) -> Iterator[Stored]:
        whole = self.matrices[name]
        for start in range(0, whole.shape[0], 7):
            part = whole.rows(slice(start, start + 7))
            yield part, part.matrix()


def matrix(kind: str, rows: int, seed: int) -> Blocks:
    return unpack(kind, quantised(kind, rows, INPUTS, np.random.default_rng(seed)))


def built(weights: Matrices, products: list[str], looked_up: str | None, path: Any) -> Any:
    """A graph of products of `x` [1, S, K] and a lookup of `ids`; its weights are replaced."""
    names = dict.fromkeys([*products, *([looked_up] if looked_up else [])])
    nodes = [
        node
        for name in products
        for node in (
            helper.make_node("Transpose", [f"module.{name}"], [f"{name}_t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", f"{name}_t"], [f"{name}_y"]),
        )
    ]
    outputs = [f"{name}_y" for name in products]
    if looked_up:
        nodes.append(helper.make_node("Gather", [f"module.{looked_up}", "ids"], ["rows"], axis=0))
        outputs.append("rows")
    floats = [
        onnx.numpy_helper.from_array(np.zeros(weights.shapes[name], np.float32), f"module.{name}")
        for name in names
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "S", INPUTS]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "S"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        floats,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model, ledger = onnx_ir.from_proto(proto), Ledger()
    replaced = BlockProducts(model, weights, ledger)
    replaced.replace(find_products(model.graph))
    replace_embeddings(model, weights, replaced)
    passes.RemoveUnusedNodesPass()(model)
    onnx_ir.save(model, path, external_data="data", size_threshold_bytes=64)
    return ledger


def run(path: Any, x: Any, ids: Any, accuracy_level: int | None = 0) -> dict[str, Any]:
    proto = onnx.load(path)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level" and accuracy_level is not None:
                attribute.i = accuracy_level
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_outputs()]
    fed = {"x": x, "ids": ids}
    wanted = {each.name for each in session.get_inputs()}
    found = session.run(names, {name: fed[name] for name in wanted})
    return dict(zip(names, found, strict=True))


@pytest.fixture
def fed() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 3, INPUTS)).astype(np.float32)
    return x, np.array([[5, 0, ROWS - 1]])


def close(found: Any, expected: Any, share: float) -> bool:
    error = float(np.abs(found - expected).max())
    return error <= share * float(np.abs(expected).max())


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_kind(tmp_path, fed, kind, is_tied):
    weights = Matrices(head=matrix(kind, ROWS, 1), embedding=matrix(kind, ROWS, 2))
    looked_up = "head" if is_tied else "embedding"
    ledger = built(weights, ["head"], looked_up, tmp_path / "model.onnx")
    x, ids = fed
    found = run(tmp_path / "model.onnx", x, ids)
    assert close(found["head_y"], x @ weights.matrices["head"].matrix().T, 2e-6)
    assert np.array_equal(found["rows"], weights.matrices[looked_up].matrix()[ids])
    assert ledger.kinds[kind].tensors == 2 - is_tied
    assert ledger.kinds[kind].max_error == 0
    in_int8 = run(tmp_path / "model.onnx", x, ids, None)
    assert not np.array_equal(in_int8["head_y"], found["head_y"])
    assert close(in_int8["head_y"], found["head_y"], 2e-2)


def test_products_of_one_kind_are_merged_and_cut_up(tmp_path, fed):
    weights = Matrices(q=matrix("Q4_K", 40, 1), k=matrix("Q4_K", 24, 2), v=matrix("Q6_K", 24, 3))
    built(weights, ["q", "k", "v"], None, tmp_path / "model.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("MatMulNBits") == 2
    assert operators.count("ReduceSum") == 1
    x, ids = fed
    found = run(tmp_path / "model.onnx", x, ids)
    for name, each in weights.matrices.items():
        assert close(found[f"{name}_y"], x @ each.matrix().T, 2e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_order", [False, True])
def test_zero_points_and_orders_of_inputs(tmp_path, fed, bits, has_order):
    rng = np.random.default_rng(4)
    blocks = INPUTS // 128

    def one(rows: int) -> Blocks:
        return Blocks(
            "GPTQ",
            bits,
            128,
            rng.integers(0, 1 << bits, (rows, INPUTS), dtype=np.uint8),
            Factors((rng.random((rows, blocks, 1)).astype(np.float16),)),
            rng.integers(0, 1 << bits, (rows, blocks), dtype=np.uint8),
            order=rng.permutation(INPUTS) if has_order else None,
        )

    weights = Matrices(a=one(24), b=one(40))
    built(weights, ["a", "b"], "b", tmp_path / "model.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("MatMulNBits") == 2 if has_order else 1
    x, ids = fed
    found = run(tmp_path / "model.onnx", x, ids)
    for name, each in weights.matrices.items():
        assert close(found[f"{name}_y"], x @ each.matrix().T, 2e-6)
