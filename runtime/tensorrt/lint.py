"""Checks of a parsed network, and of the builder's log.

TensorRT's parser turns some correct graphs into other computations without an error: it drops the
`nonpad_kv_seqlen` of an Attention node and then masks as if the cache were empty, and it ignores inputs
and attributes that it does not know. Its builder only warns of profiles that contradict each other. So
the network is checked, not the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import GateError
from .api import flavour_of
from .builder import BuildLog, ParsedGraph
from .devices import Lowering

_HINT = (
    "nothing was written, as the engine would decode wrongly or slowly. Report the checkpoint and the "
    "versions of TensorRT and cospec"
)


@dataclass(frozen=True)
class DecoderForm:
    """The expected form of a decoder's network.

    Attributes:
        lowering: the form of its attention blocks.
        layers: number of attention blocks.
        capacity: tokens in the cache.
    """

    lowering: Lowering
    layers: int
    capacity: int

    def cache_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (past, present) names of every cache tensor."""
        for layer in range(self.layers):
            for kind in ("key", "value"):
                yield f"past.{layer}.{kind}", f"present.{layer}.{kind}"


class Network:
    """A parsed INetworkDefinition as a graph of named tensors."""

    def __init__(self, trt: Any, definition: Any) -> None:
        self.trt = trt
        self.layers = [definition.get_layer(i) for i in range(definition.num_layers)]
        self.inputs = [definition.get_input(i).name for i in range(definition.num_inputs)]
        self.outputs = [definition.get_output(i).name for i in range(definition.num_outputs)]
        self.producer: dict[str, Any] = {}
        self.consumed: set[str] = set()
        for layer in self.layers:
            self.consumed |= {tensor.name for tensor in inputs_of(layer)}
            for index in range(layer.num_outputs):
                self.producer[layer.get_output(index).name] = layer

    def of_type(self, name: str) -> list[Any]:
        """Return the layers of a LayerType; none if this version does not have it."""
        kind = getattr(self.trt.LayerType, name, None)
        return [layer for layer in self.layers if kind is not None and layer.type == kind]

    def attentions(self) -> list[Any]:
        """Return the IAttention of every Attention node."""
        return [_attention(self.trt, layer) for layer in self.of_type("ATTENTION_INPUT")]

    def reached_by(self, name: str) -> set[str]:
        """Return the network inputs that the tensor `name` depends on."""
        seen, todo = {name}, [name]
        while todo:
            layer = self.producer.get(todo.pop())
            for tensor in inputs_of(layer) if layer is not None else ():
                if tensor.name not in seen:
                    seen.add(tensor.name)
                    todo.append(tensor.name)
        return seen & set(self.inputs)


def inputs_of(layer: Any) -> list[Any]:
    """Return the tensors that a layer reads; without optional ones that are absent."""
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def lint_network(trt: Any, parsed: ParsedGraph, form: DecoderForm | None) -> None:
    """Check a parsed network; `form` is None for the arbiter, which has no cache and no attention.

    Raises:
        GateError: names the first problem.
    """
    network = Network(trt, parsed.network)
    unused = [name for name in network.inputs if name not in network.consumed]
    if unused:
        _refuse(parsed, f"nothing reads the input{'s' * (len(unused) > 1)} {', '.join(unused)}")
    if form is None:
        return
    for past, present in form.cache_pairs():
        for name, there in ((past, network.inputs), (present, network.outputs)):
            if name not in there:
                _refuse(parsed, f"the cache tensor {name} is missing")
        if form.lowering == "scatter":
            _check_update(parsed, network, "KV_CACHE_UPDATE", past, present)
        else:
            _check_update(parsed, network, "SCATTER", past, present)
    attentions = network.attentions()
    for attention in attentions:
        _check_attention(parsed, attention, form)
    softmaxes = [
        layer for layer in network.of_type("SOFTMAX") if len(layer.get_input(0).shape) == 4
    ]
    for layer in softmaxes:
        _check_masked_softmax(parsed, network, layer, form)
    found = len(attentions) + len(softmaxes)
    if found != form.layers:
        _refuse(parsed, f"{found} attention blocks were recognised, but there are {form.layers}")


def lint_build(trt: Any, parsed: ParsedGraph, profiles: int) -> None:
    """Check the builder's log: profiles that agree, and a fused kernel for every Attention.

    Raises:
        GateError: names the first problem.
    """
    contradictions = [text for text in parsed.log.warnings() if "not self-consistent" in text]
    if contradictions:
        _refuse(parsed, f"an optimisation profile contradicts the graph: {contradictions[0]}")
    if flavour_of(trt) == "rtx":  # other builders have other names for kernels
        attentions = Network(trt, parsed.network).attentions()
        wanted = profiles * len([a for a in attentions if has_fused_kernel(a)])
        fused = len(fused_attention_kernels(parsed.log))
        if fused < wanted:  # attention in primitives is fused too, where the builder recognises it
            _refuse(
                parsed,
                f"{fused} attention kernels are fused out of {wanted} (Attention nodes times profiles)",
            )


def allow_decomposition(trt: Any, parsed: ParsedGraph) -> None:
    """Let the builder decompose an attention if it has no kernel for its shape.

    It still uses its kernels where it has them (24 shapes tried). Without this it rejects the whole
    network for some shapes, such as single tokens of fewer than four heads.
    """
    for attention in Network(trt, parsed.network).attentions():
        attention.decomposable = True


def has_fused_kernel(attention: Any) -> bool:
    """Whether TensorRT-RTX 1.7 has fused kernels for an attention; found by trying head sizes."""
    _, heads, _, size = attention.get_input(0).shape
    return bool(heads > 1 and 16 <= size <= 256 and size % 8 == 0)


def fused_attention_kernels(log: BuildLog) -> list[str]:
    """Return the names of the fused attention kernels in the engine, of all profiles.

    The detailed log lists the engine's layers; `_gemm_mha` is the kernel of blocks, `_gemv_mha` that
    of single tokens.
    """
    return re.findall(r"^Name: (_gem[mv]_mha\w*)", log.text(), re.MULTILINE)


def activation_bytes(log: BuildLog) -> int:
    """Return the largest scratch memory that a profile of the engine needs."""
    found = re.findall(r"Total Activation Memory: (\d+) bytes", log.text())
    return max(map(int, found), default=0)


def _check_update(
    parsed: ParsedGraph, network: Network, layer_type: str, past: str, present: str
) -> None:
    """Check that `present` is `past` with new rows, by a layer of the form's type."""
    layer = network.producer.get(present)
    if layer is None or layer not in network.of_type(layer_type):
        if layer_type == "KV_CACHE_UPDATE":
            _refuse(parsed, f"{present} is not an update of the cache in place, but a copy of it")
        _refuse(parsed, f"{present} is not {past} with new rows scattered into it")
    elif layer.get_input(0).name != past:
        verb = "updates" if layer_type == "KV_CACHE_UPDATE" else "scatters into"
        _refuse(parsed, f"{present} {verb} {layer.get_input(0).name} instead of {past}")


def _attention(trt: Any, boundary: Any) -> Any:
    boundary.__class__ = trt.IAttentionInputLayer  # the network hands out every layer as an ILayer
    return boundary.attention


def _check_attention(parsed: ParsedGraph, attention: Any, form: DecoderForm) -> None:
    where = f"the attention '{attention.name}'"
    # Versions before 11.0 know one causal kind only, the one that is wrong over a filled cache.
    kind = getattr(attention, "causal_kind", None)
    causal = attention.causal if kind is None else kind.name != "NONE"
    if causal:
        name = "UPPER_LEFT" if kind is None else kind.name
        _refuse(
            parsed,
            f"{where} masks by position in the block ({name}): over a filled cache its first row would "
            "see position 0 only",
        )
    if attention.mask is None:
        _refuse(parsed, f"{where} has no mask: it would see rows that were rolled back")
    elif not _is_additive_mask(attention.mask, form):
        _refuse(parsed, f"the mask of {where} is not an additive one of [1, 1, S, {form.capacity}]")


def _check_masked_softmax(
    parsed: ParsedGraph, network: Network, layer: Any, form: DecoderForm
) -> None:
    """Look before a softmax for the sum that adds the mask."""
    sum_of = network.trt.ElementWiseOperation.SUM
    tensor = layer.get_input(0)
    for _ in range(_LOOK_BACK):
        before = network.producer.get(tensor.name)
        if before is None:
            break
        if before.type == network.trt.LayerType.ELEMENTWISE:
            before.__class__ = network.trt.IElementWiseLayer
            masks = [operand for operand in inputs_of(before) if _is_additive_mask(operand, form)]
            if before.op == sum_of and any(
                "cache_length" in network.reached_by(mask.name) for mask in masks
            ):
                return
        tensor = before.get_input(0)
    _refuse(
        parsed, f"the softmax '{layer.name}' has no mask: it would see rows that were rolled back"
    )


_LOOK_BACK = 4
"""Layers between a softmax and the sum with its mask: casts at most."""


def _is_additive_mask(tensor: Any, form: DecoderForm) -> bool:
    shape = tuple(tensor.shape)
    return len(shape) == 4 and shape[1] == 1 and shape[3] == form.capacity


def _refuse(parsed: ParsedGraph, problem: str) -> None:
    raise GateError(f"{parsed.graph.name} as TensorRT reads it: {problem}", hint=_HINT)
