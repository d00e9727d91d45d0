"""torch -> ONNX: trace the decoder, simplify the graph, write it with its weights beside it.

The weights keep their checkpoint names in the graph, so that the audit can find each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError, GateError
from ..models.weights.weights import Weights
from .attention import OPSET, Lowering
from .decoder import Decoder, input_names, kv_shapes, output_names
from .fusion import fuse
from .logits_to_keep import cut_head
from .tracing import quiet_tracing
from .weights.block_products import PREFIX, BlockProducts
from .weights.data_file import save_graph
from .weights.embeddings import replace_embeddings
from .weights.products import find_products, lazy_tensor
from .weights.stored_matrix import Ledger
from .weights.written_weights import Place

WEIGHTS_FILE = "model.onnx.data"

# Constants up to this many elements are folded into the graph; weights are larger and keep their names.
_FOLD_LIMIT = 1024


@dataclass(frozen=True)
class TracedGraph:
    """A decoder graph in memory. The weights are still in the torch module.

    Attributes:
        model: the onnx_ir model.
        kv_shapes: (kv_heads, head_dim) of every layer.
        hidden_size: width of the last hidden state.
        places: of quantised matrices, by the name of the parameter.
    """

    model: Any
    kv_shapes: tuple[tuple[int, int], ...]
    hidden_size: int
    places: Mapping[str, Place] = field(default_factory=dict)


def trace(
    module: Any,
    lowering: Lowering,
    capacity: int,
    vocab_size: int,
    unshared: Collection[int] = (),
    weights: Weights | None = None,
    ledger: Ledger | None = None,
    quantise: Callable[[Any], None] | None = None,
) -> TracedGraph:
    """Trace `module` into the common decoder graph.

    Args:
        module: a transformers causal language model in eval mode, in the precision to export.
        lowering: the form of the attention block.
        capacity: tokens that the cache can hold.
        vocab_size: width of the logits.
        unshared: ids that are never the most likely; see `decoder.Vocabulary`.
        weights: read when the graph is written, instead of the module's own.
        ledger: quantised weights stay in their own numbers, and are counted there when they are
            written. None makes plain numbers of them.
        quantise: replaces matrices of the model by others; None leaves them.

    Raises:
        CheckpointError: torch cannot export this architecture.
        GateError: a weight of the module did not reach the graph, or the graph holds one of its own.
    """
    shapes = kv_shapes(module)
    dtype = next(module.parameters()).dtype
    past = [torch.zeros(1, h, capacity, d, dtype=dtype) for h, d in shapes for _ in range(2)]
    # Any width above one keeps S symbolic; torch specialises on a width of one.
    example = (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), past)
    decoder = Decoder(module, lowering, vocab_size, unshared).eval()
    try:
        with torch.no_grad(), quiet_tracing():
            program = torch.onnx.export(
                decoder,
                example,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET[lowering],
                input_names=input_names(len(shapes)),
                output_names=output_names(len(shapes)),
                dynamic_shapes=({1: torch.export.Dim.DYNAMIC}, {}, [{} for _ in past]),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise CheckpointError(
            f"torch could not export {type(module).__name__}: {_cause(error)}",
            hint="this architecture needs an operator that the exporter does not know; "
            "report it with the checkpoint's name",
        ) from error
    model = program.model
    if weights is not None:
        _bind(model, weights)
    _simplify(model)
    _fold_transposes(model)
    _audit(model, decoder)
    places: dict[str, Place] = {}
    if weights is not None and ledger is not None:
        places = _keep(model, weights, ledger)
        ties = module.all_tied_weights_keys
        places |= {tied: places[source] for tied, source in ties.items() if source in places}
        places |= {source: places[tied] for tied, source in ties.items() if tied in places}
    if quantise is not None:
        quantise(model)
    if lowering == "gqa":
        fuse(model)
    _merge(model)
    if lowering == "gqa":
        cut_head(model)
    _tidy(model)
    hidden_size = int(module.get_output_embeddings().weight.shape[1])
    return TracedGraph(model, tuple(shapes), hidden_size, places)


def write(graph: TracedGraph, path: Path) -> None:
    """Write `model.onnx` at `path` and the weights beside it, one tensor at a time."""
    save_graph(graph.model, path, WEIGHTS_FILE, _FOLD_LIMIT)


def _bind(model: Any, weights: Weights) -> None:
    """Let the graph read its weights from their files."""
    for value in model.graph.initializers.values():
        name = value.name.removeprefix(PREFIX)
        if name == value.name or name not in weights:
            continue
        tensor = value.const_value
        value.const_value = lazy_tensor(
            value.name,
            tensor.dtype,
            tuple(tensor.shape.numpy()),
            partial(_read, weights, name),
        )


def _read(weights: Weights, name: str) -> NDArray[Any]:
    array: NDArray[Any] = weights[name].numpy()
    return array


def _keep(model: Any, weights: Weights, ledger: Ledger) -> dict[str, Place]:
    """Replace products by quantised matrices, and lookups in them; return where they are."""
    products = BlockProducts(model, weights, ledger)
    products.replace(find_products(model.graph))
    replace_embeddings(model, weights, products)
    passes.RemoveUnusedNodesPass()(model)
    return products.places


def _simplify(model: Any) -> None:
    """Inline functions, fold small constants and remove unused nodes."""
    from onnxscript import optimizer

    passes.InlinePass()(model)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
        # Nodes that read a weight are not folded: the weight would lose its name, which the audit
        # needs, and a transposed weight would be held in memory.
        should_fold=lambda node: False if _reads_weight(node) else None,
    )
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _reads_weight(node: Any) -> bool:
    return any(
        value is not None and value.is_initializer() and value.name.startswith(PREFIX)
        for value in node.inputs
    )


def _merge(model: Any) -> None:
    """Merge equal small constants and equal subexpressions, such as the mask of each layer."""
    passes.DeduplicateInitializersPass(size_limit=_FOLD_LIMIT)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _tidy(model: Any) -> None:
    """Name unnamed values, and remove the exporter's metadata."""
    # The exporter stores a stack trace in every node, with paths of this machine.
    passes.ClearMetadataAndDocStringPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _fold_transposes(model: Any) -> None:
    """Store linear weights as MatMul reads them.

    torch stores them transposed. With a Transpose in the graph, ONNX Runtime would transpose them at
    every load, and quantisers would not find a constant operand. A weight with a second reader (a tied
    embedding) is left as it is, so that it is stored once.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose" or not node.inputs[0].is_initializer():
            continue
        weight = node.inputs[0]
        if len(weight.uses()) != 1 or list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        tensor = weight.const_value
        weight.const_value = onnx_ir.LazyTensor(
            lambda tensor=tensor: onnx_ir.tensor(
                tensor.numpy().T.copy(), name=tensor.name, dtype=tensor.dtype
            ),
            dtype=tensor.dtype,
            shape=onnx_ir.Shape(tuple(reversed(tensor.shape.numpy()))),
            name=tensor.name,
        )
        weight.shape = weight.const_value.shape
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)


def _audit(model: Any, decoder: Decoder) -> None:
    """Check that the graph reads every parameter, and that every large constant is a parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in decoder.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    known = {name for aliases in names.values() for name in aliases}
    known |= {name for name, _ in decoder.named_buffers()}
    found = {name for name, value in model.graph.initializers.items() if value.uses()}
    missing = sorted(aliases[0] for aliases in names.values() if not found & set(aliases))
    if missing:
        raise GateError(
            f"{len(missing)} weights of the checkpoint did not reach the graph: "
            f"{', '.join(name.removeprefix(PREFIX) for name in missing[:5])}",
            hint="the architecture uses its weights in a way the exporter does not see; report it",
        )
    strange = sorted(
        name
        for name, value in model.graph.initializers.items()
        if name not in known and value.const_value.size > _FOLD_LIMIT
    )
    if strange:
        raise GateError(
            f"the graph holds tensors that are not weights of the checkpoint: "
            f"{', '.join(strange[:5])}",
            hint="a constant was folded that should have stayed a weight; report it",
        )


def _cause(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0]
