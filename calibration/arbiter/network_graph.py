"""The arbiter network as ONNX graphs: its score for decoding, and its features for training.

A round of decoding waits for the score, and in a graph this small each node costs more than what it
computes. So linear operations get no node of their own: standardising, margins and log-ranks are folded
into the weights of the first layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...export.decoder import SUMMARY_TOP
from ...export.tracing import quiet_tracing
from .network import ArbiterConfig, ArbiterNetwork, all_features

if TYPE_CHECKING:
    import onnx_ir

OPSET = 18

Weights = NDArray[np.float64]

OfNamed: TypeAlias = Callable[[dict[str, torch.Tensor]], torch.Tensor]
"""A function of the named tensors of a block."""


def export_arbiter(network: ArbiterNetwork, path: Path, summary_top: int = SUMMARY_TOP) -> None:
    """Write `network` as an ONNX graph with the one output `score` [k], for decoding."""
    import onnx_ir

    onnx_ir.save(score_model(network, summary_top), path)


def export_features(shape: ArbiterConfig, path: Path, summary_top: int = SUMMARY_TOP) -> None:
    """Write an ONNX graph with the one output `features` [k, F], for training a network of `shape`."""
    export_traced(all_features, shape.inputs, "features", path, shape, summary_top)


def export_traced(
    function: OfNamed,
    inputs: tuple[str, ...],
    output: str,
    path: Path,
    shape: ArbiterConfig,
    summary_top: int,
) -> None:
    """Write `function` of the named tensors of a block as an ONNX graph with one output [k, ...]."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    example = tuple(_example(name, shape, summary_top) for name in inputs)
    block = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), quiet_tracing():
        program = torch.onnx.export(
            _Positional(function, inputs),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=(tuple(block for _ in example),),
        )
    # Stack traces of the machine that exported have no place in a file that travels.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(str(path), external_data=False)


class _Positional(nn.Module):  # type: ignore[misc]
    """A function of named tensors with them as positional arguments, for the exporter."""

    def __init__(self, function: OfNamed, names: tuple[str, ...]) -> None:
        super().__init__()
        self._function, self._names = function, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._function(dict(zip(self._names, inputs, strict=True)))


def _example(name: str, shape: ArbiterConfig, summary_top: int) -> torch.Tensor:
    """Return a tensor like the input `name` for a block of three."""
    dtype = torch.int64 if _is_token(name) else torch.float32
    return torch.zeros(3, *_row_shape(name, shape, summary_top), dtype=dtype)


def score_model(network: ArbiterNetwork, top: int) -> onnx_ir.Model:
    """Build sigmoid(network.logits(all_features(inputs))) for rows of `top` candidates.

    Inputs are `network.config.inputs`; the one output is `score`, float32 [k].
    """
    g = _Builder(network.config, top)
    layer = network.head[0] if network.config.width else network.out
    weights, bias = _folded(network, layer)
    terms, numbers, constant = _terms(g, weights, top)
    if network.config.features == "hidden":
        states = g.op(
            "Concat", [g.inputs[f"{model}.hidden"] for model in ("target", "draft")], {"axis": 1}
        )
        project = network.project
        projected = g.gemm(states, "project", _array(project.weight).T, _array(project.bias))
        terms.append((g.op("Tanh", [projected]), weights[len(network.mean) :]))

    # Inputs of one number per position are concatenated: one node for all of them.
    flat = g.op("Concat", [g.inputs[name] for name in numbers], {"axis": 0})
    rows = g.op("Reshape", [flat, g.constant("numbers.shape", [len(numbers), -1], np.int64)])
    of_numbers = np.stack(list(numbers.values()))
    out = g.gemm(rows, "numbers", of_numbers, bias + constant, transA=1)
    values, of_values = zip(*terms, strict=True)
    out = g.gemm(g.op("Concat", values, {"axis": 1}), "values", np.concatenate(of_values), out)
    if network.config.width:
        last = network.out
        out = g.gemm(g.op("Tanh", [out]), "out", _array(last.weight).T, _array(last.bias))
    score = g.op("Sigmoid", [g.op("Reshape", [out, g.constant("score.shape", [-1], np.int64)])])
    return g.model("score", score)


def _is_token(name: str) -> bool:
    """Whether the input `name` holds token ids, int64; the others are float32."""
    return name.rpartition(".")[2] in ("token", "drafted", "top_ids")


def _row_shape(name: str, shape: ArbiterConfig, summary_top: int) -> tuple[int, ...]:
    """Return the shape of an input after the dimension k of the block."""
    model, _, what = name.partition(".")
    if what == "hidden":
        return (shape.target_hidden if model == "target" else shape.draft_hidden,)
    return (summary_top,) if what in ("top_values", "top_ids") else ()


class _Builder:
    """Collects the nodes and constants of a graph on the named inputs of a block."""

    def __init__(self, shape: ArbiterConfig, summary_top: int) -> None:
        import onnx_ir as ir

        self._ir = ir
        self._tape = ir.tape.Tape()
        self.op = self._tape.op
        self.inputs = {
            name: ir.val(
                name,
                ir.DataType.INT64 if _is_token(name) else ir.DataType.FLOAT,
                ("k", *_row_shape(name, shape, summary_top)),
            )
            for name in shape.inputs
        }
        self._column = self.constant("column", [-1, 1], np.int64)

    def constant(self, name: str, array: Any, dtype: Any = np.float32) -> onnx_ir.Value:
        """Add a constant."""
        return self._tape.initializer(self._ir.tensor(np.asarray(array, dtype), name=name))

    def column(self, name: str) -> onnx_ir.Value:
        """Return the input `name` [k] as a column [k, 1]."""
        return self.op("Reshape", [self.inputs[name], self._column])

    def one_hot(self, ids: str, token: str) -> onnx_ir.Value:
        """Return float32 [k, T]: 1 where the input `ids` [k, T] has the input `token` [k]."""
        found = self.op("Equal", [self.inputs[ids], self.column(token)])
        return self.op("Cast", [found], {"to": self._ir.DataType.FLOAT.value})

    def gemm(
        self, x: onnx_ir.Value, name: str, weights: Weights, bias: Any, **attributes: int
    ) -> onnx_ir.Value:
        """Return x @ weights + bias; the bias is an array or a value of this graph."""
        if not isinstance(bias, self._ir.Value):
            bias = self.constant(f"{name}.bias", bias)
        return self.op("Gemm", [x, self.constant(f"{name}.weight", weights), bias], attributes)

    def model(self, output: str, value: onnx_ir.Value) -> onnx_ir.Model:
        """Finish the graph with `value`, float32 [k], as its output."""
        ir = self._ir
        value.name, value.dtype, value.shape = output, ir.DataType.FLOAT, ir.Shape(["k"])
        graph = ir.Graph(
            list(self.inputs.values()),
            [value],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET},
            name="arbiter",
        )
        return ir.Model(graph, ir_version=10)


def _terms(
    g: _Builder, weights: Weights, top: int
) -> tuple[list[tuple[onnx_ir.Value, Weights]], dict[str, Weights], Weights]:
    """Express set A times `weights` [F, H] in few nodes.

    Returns:
        Values [k, n] with their weights [n, H]; names of inputs [k] with theirs [H]; a constant [H].
        The sum of the products equals that of the features.
    """
    t_of_t, t_of_d, d_of_d, d_of_t, t_margin, d_margin = weights[:6]
    t_entropy, d_entropy, rank_of_d, rank_of_t, position, mismatches, run = weights[6:13]
    # Subtracted here, not in the weights: large logits that all but cancel would lose their digits.
    target, draft = (
        g.op("Sub", [g.inputs[f"{model}.top_values"], g.column(f"{model}.logsumexp")])
        for model in ("target", "draft")
    )
    # The rank of one model's choice among the other's candidates: one-hot, or 0 if it is absent.
    drafted = g.one_hot("target.top_ids", "block.drafted")
    chosen = g.one_hot("draft.top_ids", "target.token")
    first, second, last = np.eye(top)[[0, 1, -1]]
    # An absent token has the last candidate's value less 1; a present one has this much more.
    more = g.gemm(draft, "more", np.eye(top) - np.outer(last, np.ones(top)), [1.0])
    # And log1p(rank): log1p(top) if absent; if present, that plus this (which is negative).
    rank = np.log1p(np.arange(top)) - np.log1p(top)
    terms = [
        (target, np.outer(first, t_of_t) + np.outer(first - second, t_margin)),
        (
            draft,
            np.outer(first, d_of_d) + np.outer(first - second, d_margin) + np.outer(last, d_of_t),
        ),
        (drafted, np.outer(rank, rank_of_d)),
        (chosen, np.outer(rank, rank_of_t)),
        (g.op("Mul", [chosen, more]), np.outer(np.ones(top), d_of_t)),
    ]
    numbers = {
        "target.next_input_logprob": t_of_d,
        "target.entropy": t_entropy,
        "draft.entropy": d_entropy,
        "block.position": position,
        "block.mismatches": mismatches,
        "block.run": run,
    }
    return terms, numbers, np.log1p(top) * (rank_of_d + rank_of_t) - d_of_t


def _folded(network: ArbiterNetwork, layer: torch.nn.Linear) -> tuple[Weights, Weights]:
    """Return weights [F, H] and bias [H] of `layer` for features that are not standardised."""
    weights, bias = _array(layer.weight).T, _array(layer.bias)
    count = len(network.mean)
    weights[:count] /= _array(network.std)[:, None]
    return weights, bias - _array(network.mean) @ weights[:count]


def _array(tensor: torch.Tensor) -> Weights:
    """Return a copy as float64: folded weights are rounded once, at the end."""
    array: Weights = tensor.detach().double().numpy().copy()
    return array
