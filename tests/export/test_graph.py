"""What lies on the disk after an export: names, shapes, operators, and every weight stored once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from cospec.errors import GateError
from cospec.export import graph
from cospec.export.attention import LOWERINGS, OPSET, Lowering
from cospec.models.checkpoint import load_module, open_checkpoint
from cospec.models.presets import resolve

CAPACITY, VOCAB, HIDDEN, TOP = 32, 320, 64, 8
LARGEST_GRAPH_BYTES = 60_000


@dataclass(frozen=True)
class Written:
    """One graph on the disk, read back without its weights."""

    lowering: Lowering
    path: Path
    model: onnx.ModelProto
    module: Any

    @property
    def data(self) -> Path:
        return self.path.with_name(graph.WEIGHTS_FILE)

    @property
    def external(self) -> dict[str, onnx.TensorProto]:
        """Tensors whose values are in the data file, by name."""
        return {t.name: t for t in self.model.graph.initializer if t.external_data}


@pytest.fixture(scope="module")
def tied(checkpoint_of: Callable[..., Path]) -> Any:
    """A Llama whose head is its embedding, and a bias-free layer with nine weights."""
    folder = checkpoint_of("llama", layers=1, overrides={"tie_word_embeddings": True})
    return load_module(open_checkpoint(resolve(str(folder))), torch.float32)


@pytest.fixture(scope="module", params=LOWERINGS)
def written(request, tied, tmp_path_factory) -> Written:
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    graph.write(graph.trace(tied, request.param, CAPACITY, VOCAB), path)
    return Written(request.param, path, onnx.load(path, load_external_data=False), tied)


def test_two_files_a_small_graph_and_its_weights(written):
    names = sorted(file.name for file in written.path.parent.iterdir())
    assert names == ["model.onnx", "model.onnx.data"]
    assert written.path.stat().st_size < LARGEST_GRAPH_BYTES


def test_the_graph_tells_nothing_of_the_machine_that_made_it(written):
    content = written.path.read_bytes()
    for secret in (str(Path(torch.__file__).parent), str(Path(graph.__file__).parent), ".py"):
        assert secret.encode() not in content


def test_every_large_weight_is_outside_once_under_its_own_name(written):
    module = written.module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    large = {n: p for n, p in module.named_parameters() if p.numel() > 1024}
    stored = {weight_name(name): tensor for name, tensor in written.external.items()}
    assert stored.keys() == large.keys()
    for name, tensor in stored.items():
        assert sorted(tensor.dims) == sorted(large[name].shape)
    spans = sorted(place(tensor) for tensor in stored.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    bytes_needed = sum(p.numel() * p.element_size() for p in large.values())
    alignment = 64 * 1024 * len(spans)
    assert bytes_needed <= written.data.stat().st_size < bytes_needed + alignment
    assert sum(end - start for start, end in spans) == bytes_needed


def test_external_data_is_beside_the_graph(written):
    for tensor in written.external.values():
        assert {e.key: e.value for e in tensor.external_data}["location"] == "model.onnx.data"


def test_linear_weights_are_stored_as_matmul_reads_them(written):
    weights = {t.name for t in written.model.graph.initializer}
    read = [n.input[0] for n in written.model.graph.node if n.op_type == "Transpose"]
    # The embedding has two readers, so it stays as it is.
    assert [weight_name(name) for name in read if name in weights] == ["model.embed_tokens.weight"]


def test_the_graph_is_valid_onnx(written):
    # Shape inference knows no operators of ONNX Runtime.
    onnx.checker.check_model(str(written.path), full_check=written.lowering != "gqa")


def test_the_operator_set_is_the_lowerings_own(written):
    opsets = {entry.domain: entry.version for entry in written.model.opset_import}
    assert opsets.pop("") == OPSET[written.lowering]
    assert OPSET == {"gqa": 18, "scatter": 24, "portable": 18}
    assert opsets == ({"com.microsoft": 1} if written.lowering == "gqa" else {})
    foreign = Counter((n.domain, n.op_type) for n in written.model.graph.node if n.domain)
    fused = {"GroupQueryAttention": 1, "RotaryEmbedding": 2, "SkipSimplifiedLayerNormalization": 2}
    expected = {("com.microsoft", op): count for op, count in fused.items()}
    assert foreign == (expected if written.lowering == "gqa" else {})
    assert not written.model.functions


def test_the_scatter_form_says_its_mask_and_never_a_causal_flag(written):
    nodes = [n for n in written.model.graph.node if n.op_type == "Attention"]
    assert len(nodes) == (1 if written.lowering == "scatter" else 0)
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["is_causal"] == 0
        assert len([name for name in node.input if name]) == 4, "query, key, value and mask"


def test_names_and_shapes_are_the_contract(written):
    cache = [1, 2, CAPACITY, 16]
    inputs = {value.name: shape(value) for value in written.model.graph.input}
    fed = inputs["input_ids"][1]
    assert isinstance(fed, str), "the number of new tokens is free"
    expected = {"input_ids": [1, fed], "cache_length": [1]}
    if written.lowering == "gqa":
        expected["logits_to_keep"] = [1]
    assert inputs == {**expected, "past.0.key": cache, "past.0.value": cache}
    width = "logits_to_keep_kept" if written.lowering == "gqa" else fed
    outputs = {value.name: shape(value) for value in written.model.graph.output}
    assert outputs == {
        "logits": [1, width, VOCAB],
        "token": [1, width],
        "top_values": [1, width, TOP],
        "top_ids": [1, width, TOP],
        "logsumexp": [1, width],
        "entropy": [1, width],
        "next_input_logprob": [1, width],
        "hidden": [1, width, HIDDEN],
        "present.0.key": cache,
        "present.0.value": cache,
    }


def test_a_weight_that_the_graph_never_reads_is_named(tied):
    tied.model.norm.register_parameter("forgotten", torch.nn.Parameter(torch.ones(3)))
    try:
        with pytest.raises(GateError, match=r"1 weights .* did not reach .*: model\.norm\.forgott"):
            graph.trace(tied, "portable", CAPACITY, VOCAB)
    finally:
        del tied.model.norm.forgotten


def test_a_large_tensor_that_is_no_weight_is_refused(tied):
    stray = torch.randn(1, 1, HIDDEN * 32)
    hook = tied.model.norm.register_forward_hook(lambda _m, _a, out: out + stray[..., :HIDDEN])
    try:
        with pytest.raises(GateError, match="tensors that are not weights of the checkpoint"):
            graph.trace(tied, "portable", CAPACITY, VOCAB)
    finally:
        hook.remove()


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def weight_name(name: str) -> str:
    """The name in the checkpoint; the tied weight has two, and the graph may take either."""
    return name.removeprefix("module.").replace("lm_head.weight", "model.embed_tokens.weight")


def place(tensor: onnx.TensorProto) -> tuple[int, int]:
    """First and last byte of a tensor in the data file."""
    entry = {e.key: e.value for e in tensor.external_data}
    start = int(entry.get("offset", 0))
    return start, start + int(entry["length"])
