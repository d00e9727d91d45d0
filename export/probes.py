"""What a checkpoint computes, at the places where its graph will be compared with it.

The transformers module is the reference. It reads its weights layer by layer (`models.weights`), so the
gate needs no more memory than running the graph does. There are two kinds of probes:

- one sequence, fed to the graph as a session would feed it: chunked prefill, single steps, verify
  passes of every width, and before each step some garbage tokens that are rolled back;
- jumps to positions up to the very end of the capacity, over a cache that both sides are given. So
  late positions are checked without the cost of reaching them. The cache is made of keys and values
  from the sequence: random ones are so unlike a trained model's own that rounding alone grew to 1e-3
  of the logits of SmolLM2-135M, where these stay at 2e-5.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError
from .decoder import Vocabulary, head_input

_PREFILL_CHUNKS = (19, 12)
_DECODE_STEPS = 3
_JUMPS = 3
_CACHE_BYTES = 1 << 30
"""Of the caches that a pass of the reference is given."""

_Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(key, value) of every layer, each [1, Hkv, n, D]."""


@dataclass(frozen=True)
class Resampled:
    """A full cache that needs the memory of a short one: rows of the sequence in another order.

    Attributes:
        played: keys and values that the model itself produced.
        rows: int64 [length], the row of `played` that stands at each position.
    """

    played: _Layers
    rows: torch.Tensor

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (key, value) [1, Hkv, length, D] of every layer."""
        return [(key[:, :, self.rows], value[:, :, self.rows]) for key, value in self.played]


@dataclass(frozen=True)
class Probe:
    """One stretch of reference: `tokens` [n] fed at position `start`, and what must come out.

    Attributes:
        name: what the stretch tests, for the error message.
        start: tokens in the cache before it.
        cache: the cache below `start`; None when earlier steps filled it.
        tokens: int64 [n].
        logits: float32 [n, V].
        hidden: float32 [n, H].
    """

    name: str
    start: int
    cache: Resampled | None
    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]


def reference(
    module: Any,
    capacity: int,
    vocab_size: int,
    widest: int,
    windows: Sequence[int] = (),
    seed: int = 0,
    unshared: Collection[int] = (),
) -> list[Probe]:
    """Compute the probes with the transformers module.

    Args:
        module: the checkpoint's module, in the exported precision.
        capacity: tokens that the cache holds.
        vocab_size: width of the logits.
        widest: the widest verify pass, drafted tokens plus one.
        windows: sliding windows of the architecture; each gets a jump just past it.
        seed: of tokens, positions and caches.
        unshared: ids that the graph never proposes; see `decoder.Vocabulary`.

    Raises:
        CheckpointError: the module's own logits are not finite.
    """
    rng = np.random.default_rng(seed)
    widest = min(widest, capacity)
    steps = list(_steps(capacity, widest))
    tokens = rng.integers(0, vocab_size, sum(width for _, width in steps), dtype=np.int64)
    vocabulary = Vocabulary(module, vocab_size, unshared)
    logits, hidden, played = _run(module, tokens[None], [], vocabulary)
    probes, start = [], 0
    for name, width in steps:
        part = slice(start, start + width)
        probes.append(Probe(name, start, None, tokens[part], logits[0, part], hidden[0, part]))
        start += width
    jumps = _jump_positions(rng, start, capacity, widest, windows)
    fed = rng.integers(0, vocab_size, (len(jumps), widest), dtype=np.int64)
    caches = []
    for jump in jumps:
        # Trained models need their first token where it is: unused attention goes there.
        rows = np.append(0, rng.integers(1, start, jump - 1))
        caches.append(Resampled(played, torch.from_numpy(rows)))
    count = _caches_at_once(played, capacity)
    for i in range(0, len(jumps), count):
        part = slice(i, i + count)
        logits, hidden, _ = _run(module, fed[part], caches[part], vocabulary)
        for each in zip(jumps[part], caches[part], fed[part], logits, hidden, strict=True):
            probes.append(Probe("verify after a jump", *each))
    return probes


def _steps(capacity: int, widest: int) -> Iterator[tuple[str, int]]:
    """Yield (name, width) of the played sequence, cut where the capacity ends."""
    wanted = [("prefill chunk", min(width, capacity // 4)) for width in _PREFILL_CHUNKS]
    wanted += [("decode", 1)] * _DECODE_STEPS
    wanted += [("verify", width) for width in range(2, widest + 1)]
    used = 0
    for name, width in wanted:
        if used + width > capacity:
            return
        yield name, width
        used += width


def _jump_positions(
    rng: np.random.Generator, start: int, capacity: int, widest: int, windows: Sequence[int]
) -> list[int]:
    """Return random positions, one just past each sliding window, and the last one that fits."""
    last = capacity - widest
    if last <= 0:
        return []
    positions = {int(p) for p in rng.integers(min(start, last), last + 1, _JUMPS)}
    positions |= {window + 1 for window in windows if window + 1 <= last}
    return sorted(positions | {last})


def _caches_at_once(played: _Layers, capacity: int) -> int:
    """Return how many full caches go into one pass, which reads a streamed model's weights once."""
    numbers = sum(key[:, :, 0].numel() + value[:, :, 0].numel() for key, value in played) * capacity
    return max(1, _CACHE_BYTES // int(4 * numbers))


def _run(
    module: Any, tokens: NDArray[np.int64], caches: Sequence[Resampled], vocabulary: Vocabulary
) -> tuple[NDArray[np.float32], NDArray[np.float32], _Layers]:
    """Run the transformers module on sequences of tokens [B, n], each after a cache of its own.

    Returns:
        Logits [B, n, V], hidden states [B, n, H], and all keys and values.
    """
    from transformers import DynamicCache

    # Without a configuration no layer is a sliding one: each keeps all keys, and the mask decides.
    past, mask = DynamicCache(), None
    starts = torch.tensor([len(cache.rows) for cache in caches] or [0])
    if caches:
        longest = int(starts.max())
        for layer, pairs in enumerate(zip(*(cache.layers() for cache in caches), strict=True)):
            keys, values = zip(*pairs, strict=True)
            past.update(_flush_right(keys, longest), _flush_right(values, longest), layer)
        column = torch.arange(longest + tokens.shape[1])
        mask = (column >= longest - starts[:, None]).long()
    with torch.no_grad(), head_input(module) as seen:
        ids = vocabulary.read(torch.from_numpy(tokens))
        logits = module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=starts[:, None] + torch.arange(tokens.shape[1]),
            past_key_values=past,
            use_cache=True,
        ).logits
    if not torch.isfinite(logits).all():
        raise CheckpointError(
            f"transformers itself computes logits that are not finite from this checkpoint in "
            f"{str(logits.dtype).removeprefix('torch.')}",
            hint="export with --precision fp32; if it is that already, the weights are damaged",
        )
    layers = [(layer.keys, layer.values) for layer in past.layers]
    return vocabulary.write(logits).numpy(), seen[0].float().numpy(), layers


def _flush_right(parts: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Stack tensors [1, Hkv, n, D] as [B, Hkv, length, D], with zeros before the shorter ones."""
    padded = [torch.nn.functional.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts]
    return torch.cat(padded)
