"""The attention-and-cache block of a decoder, in one form for each kind of runtime.

Every family in transformers calls one attention function with the *new* queries, keys and values of a
step. We register our own: it writes the keys and values into a static cache and attends over the cache.
The three lowerings compute the same and have the same inputs and outputs:

- `gqa`: one com.microsoft GroupQueryAttention node. For ONNX Runtime.
- `scatter`: opset 24, TensorScatter and Attention with an additive mask. The causal flag with
  `nonpad_kv_seqlen` is not used: TensorRT's parser drops the length silently and decodes wrongly.
- `portable`: opset 18 primitives, for any ONNX Runtime and TensorRT from 10.3. Heads are repeated by a
  4-D Expand, which TensorRT fuses; the grouped 5-D form is not fused.

Shapes: query [1, H, S, D]; key, value [1, Hkv, S, D]; cache [1, Hkv, C, D]; result [1, S, H, D].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Lowering = Literal["gqa", "scatter", "portable"]
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)

OPSET: dict[Lowering, int] = {"gqa": 18, "scatter": 24, "portable": 18}

ATTENTION_NAME = "cospec"
"""The name under which transformers finds our attention function."""


@dataclass
class CacheStep:
    """The step that is being traced: what the attention function reads and what it returns.

    Attributes:
        lowering: which form to emit.
        cache_length: int64 [1], the tokens already in the cache.
        past: per layer (key, value), each [1, Hkv, C, D].
        present: per layer (key, value) after the step; filled while tracing.
    """

    lowering: Lowering
    cache_length: torch.Tensor
    past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class PassThroughCache:
    """The cache that transformers gets: it returns the new keys and values unchanged.

    The attention function writes the real cache. The length is zero so that the graph has no position
    arithmetic of the model: positions are passed explicitly.
    """

    is_compileable = False
    is_sliding = (False,)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `key` and `value` unchanged."""
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: see the class."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Zero: see the class."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return (keys, offset) for a mask over the new tokens alone."""
        return query_length, 0


class CachedAttention:
    """The attention function that transformers calls; `step` is set during each traced forward."""

    def __init__(self) -> None:
        self.step: CacheStep | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Write the cache and attend. Extra keywords of some families are for training only."""
        step = self.step
        if step is None:
            raise RuntimeError("the cospec attention function was called outside of an export")
        layer = int(module.layer_idx)
        head_dim = query.shape[-1]
        attend = _LOWER[step.lowering]
        result, present = attend(
            _Attention(
                query=query,
                key=key,
                value=value,
                past=step.past[layer],
                cache_length=step.cache_length,
                scale=float(scaling if scaling is not None else head_dim**-0.5),
                window=int(sliding_window) if sliding_window else None,
                softcap=float(softcap) if softcap else None,
            )
        )
        step.present[layer] = present
        return result, None


@dataclass(frozen=True)
class _Attention:
    """The arguments of one attention block."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    past: tuple[torch.Tensor, torch.Tensor]
    cache_length: torch.Tensor
    scale: float
    window: int | None
    softcap: float | None


_Result = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


def _onnx(
    op: str,
    inputs: Sequence[torch.Tensor],
    shape: Sequence[Any],
    dtype: torch.dtype,
    version: int,
    attrs: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Emit one ONNX node with one output."""
    return torch.onnx.ops.symbolic(
        op, inputs, attrs or {}, dtype=dtype, shape=shape, version=version
    )


def additive_mask(
    cache_length: torch.Tensor,
    width: int,
    capacity: int,
    window: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return [1, 1, S, C]: 0 where row i may look (positions <= length + i, inside the window).

    Elsewhere it is the lowest number of the dtype and not -inf, since a row of -inf would become NaN.
    """
    row = (cache_length + torch.arange(width)).reshape(1, 1, -1, 1)
    column = torch.arange(capacity).reshape(1, 1, 1, -1)
    visible = column <= row
    if window is not None:
        visible = visible & (column > row - window)
    lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype)
    return torch.where(visible, torch.tensor(0.0, dtype=dtype), lowest)


def _lower_gqa(a: _Attention) -> _Result:
    _, heads, width, dim = a.query.shape
    kv_heads = a.key.shape[1]
    total = a.cache_length + width
    flat = [t.transpose(1, 2).reshape(1, width, -1) for t in (a.query, a.key, a.value)]
    attrs: dict[str, Any] = {
        "num_heads": int(heads),
        "kv_num_heads": int(kv_heads),
        "scale": a.scale,
        "do_rotary": 0,
    }
    if a.window is not None:
        attrs["local_window_size"] = a.window
    if a.softcap is not None:
        attrs["softcap"] = a.softcap
    seqlens = (total - 1).to(torch.int32)
    out, key, value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*flat, *a.past, seqlens, total.to(torch.int32).reshape(())],
        attrs,
        dtypes=[a.query.dtype] * 3,
        shapes=[flat[0].shape, a.past[0].shape, a.past[1].shape],
        version=1,
    )
    return out.reshape(1, width, heads, dim), (key, value)


def _lower_scatter(a: _Attention) -> _Result:
    width = a.query.shape[2]
    dtype, shape = a.query.dtype, a.past[0].shape
    key, value = (
        _onnx("TensorScatter", [past, new, a.cache_length], shape, dtype, 24, {"axis": -2})
        for past, new in zip(a.past, (a.key, a.value), strict=True)
    )
    mask = additive_mask(a.cache_length, width, shape[2], a.window, dtype)
    if a.softcap is not None:
        # TensorRT refuses softcap on its Attention operator, so these families spell it out.
        return _attend(a, key, value, mask), (key, value)
    out = _onnx(
        "Attention",
        [a.query, key, value, mask],
        a.query.shape,
        dtype,
        24,
        {"scale": a.scale, "is_causal": 0},
    )
    return out.transpose(1, 2), (key, value)


def _lower_portable(a: _Attention) -> _Result:
    _, kv_heads, width, _ = a.key.shape
    shape = a.past[0].shape
    rows = a.cache_length + torch.arange(width)
    index = torch.stack(
        torch.broadcast_tensors(
            torch.zeros((1, 1, 1), dtype=torch.int64),
            torch.arange(kv_heads).reshape(1, -1, 1),
            rows.reshape(1, 1, -1),
        ),
        dim=-1,
    )
    key, value = (
        _onnx("ScatterND", [past, index, new], shape, a.query.dtype, 18)
        for past, new in zip(a.past, (a.key, a.value), strict=True)
    )
    mask = additive_mask(a.cache_length, width, shape[2], a.window, torch.float32)
    return _attend(a, key, value, mask), (key, value)


def _attend(
    a: _Attention, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention in primitives, softmax in fp32 as transformers has it."""
    groups = a.query.shape[1] // key.shape[1]
    key, value = (_repeat_heads(t, groups) for t in (key, value))
    scores = torch.matmul(a.query, key.transpose(2, 3)) * a.scale
    if a.softcap is not None:
        scores = torch.tanh(scores / a.softcap) * a.softcap
    weights = torch.softmax(scores.float() + mask.float(), dim=-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2)


def _repeat_heads(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """[1, Hkv, C, D] -> [1, Hkv * groups, C, D], each head `groups` times in a row."""
    if groups == 1:
        return tensor
    _, kv_heads, capacity, dim = tensor.shape
    spread = tensor.unsqueeze(2).expand(1, kv_heads, groups, capacity, dim)
    return spread.reshape(1, kv_heads * groups, capacity, dim)


_LOWER: dict[Lowering, Callable[[_Attention], _Result]] = {
    "gqa": _lower_gqa,
    "scatter": _lower_scatter,
    "portable": _lower_portable,
}
