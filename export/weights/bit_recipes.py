"""Which matrices of a model get how many bits, and what each choice costs in perplexity.

A text goes through the transformers module once. At each matrix the hidden states of the checkpoint and
those of every recipe meet the numbers that belong to them, so that each matrix is read once and one
matrix is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.weights.weights import Weights
from .quantised_weights import Bits, Importance, block_of, quantise, rows_of

Quantised = Literal["int4", "int8"]

WINDOW = 256
"""Tokens of the text that are read in one context."""
_ENOUGH_TOKENS, _FEW_TOKENS = 2048, 256
_BUDGET = 2e13
"""Multiplications and additions that a measurement may take: some minutes on two cores."""

_SENSITIVE = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj")
"""Products that end the feed-forward part: their inputs have the largest outliers."""


@dataclass(frozen=True)
class Recipe:
    """How many bits each matrix gets.

    Attributes:
        name: for reports.
        bits: by the name of the parameter; matrices that are missing stay plain numbers.
    """

    name: str
    bits: Mapping[str, Bits]


@dataclass(frozen=True)
class Matrices:
    """The matrices of a module that can be quantised.

    Attributes:
        shapes: outputs and inputs, by the name of the parameter.
        transposed: those that are stored as [K, N].
        outside: the embedding and the head.
        sensitive: of the first and last layer, and those that end a feed-forward part.
    """

    shapes: Mapping[str, tuple[int, int]]
    transposed: frozenset[str]
    outside: frozenset[str]
    sensitive: frozenset[str]

    def recipes(self, wanted: Quantised) -> list[Recipe]:
        """Return the recipes to try, the smallest first."""
        bits: dict[str, dict[str, Bits]] = {
            "int4": {name: 8 if name in self.outside else 4 for name in self.shapes},
            "int4 with sensitive matrices in int8": {
                name: 8 if name in self.outside | self.sensitive else 4 for name in self.shapes
            },
            "int8": dict.fromkeys(self.shapes, 8),
        }
        tried = list(bits) if wanted == "int4" else ["int8"]
        # Of small models all matrices are sensitive.
        return [
            Recipe(name, bits[name])
            for name in tried
            if name == "int8" or bits[name] != bits["int8"]
        ]


def matrices_of(module: Any) -> Matrices:
    """Return the matrices of a transformers module that blocks of inputs divide."""
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    transposed, layers = set(), dict[str, int]()
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    outside = set()
    for path, part in module.named_modules():
        name = f"{path}.weight"
        if not isinstance(part, (torch.nn.Linear, Conv1D)) and part not in ends:
            continue
        outputs, inputs = part.weight.shape
        if isinstance(part, Conv1D):
            inputs, outputs = outputs, inputs
            transposed.add(name)
        if block_of(4, inputs) is None:
            continue
        shapes[name] = (outputs, inputs)
        if any(part is end for end in ends):
            outside.add(name)
        elif layer := re.search(r"\.(\d+)\.", name):
            layers[name] = int(layer[1])
    last = max(layers.values(), default=0)
    sensitive = {
        name
        for name, layer in layers.items()
        if layer in (0, last) or any(end in name for end in _SENSITIVE)
    }
    return Matrices(shapes, frozenset(transposed), frozenset(outside), frozenset(sensitive))


def token_count(parameters: int, recipes: int) -> int:
    """Return how many tokens a measurement reads of a model of so many parameters."""
    affordable = int(_BUDGET / (2 * parameters * (recipes + 1)))
    return min(_ENOUGH_TOKENS, max(_FEW_TOKENS, affordable))


@dataclass(frozen=True)
class Measured:
    """What a text shows.

    Attributes:
        perplexity: of the checkpoint.
        rises: share by which that of each recipe is higher.
        importance: mean square of the activations at each input of a matrix, by its name.
    """

    perplexity: float
    rises: list[float]
    importance: Importance


def measure(
    module: Any,
    weights: Weights,
    matrices: Matrices,
    recipes: Sequence[Recipe],
    windows: Sequence[Sequence[int]],
) -> Measured:
    """Measure the perplexity of a text by the checkpoint, and how much each recipe raises it.

    Args:
        module: the transformers module.
        weights: of the checkpoint.
        matrices: of the module.
        recipes: to measure.
        windows: tokens of a text, as many in each, at least two. Each is read in a context of its own.
    """
    reader = _Reader(module, weights, matrices, recipes)
    losses, _ = reader.read(torch.tensor(windows))
    own, *others = losses.mean(dim=1).tolist()
    rises = [float(np.expm1(other - own)) for other in others]
    return Measured(float(np.exp(own)), rises, reader.importance)


def read_checkpoint(
    module: Any, weights: Weights, windows: Sequence[Sequence[int]], vocab_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what a checkpoint makes of a text, with its own numbers.

    Args:
        module: the transformers module.
        weights: of the checkpoint.
        windows: see `measure`.
        vocab_size: tokens of the pair; rows of the head beyond them do not count.

    Returns:
        Log-probability of each token after the first of a window, in nats, and the most likely one.
    """
    reader = _Reader(module, weights, matrices_of(module), (), vocab_size)
    losses, chosen = reader.read(torch.tensor(windows))
    return -losses[0].numpy(), chosen.numpy()


class _Reader:
    """Feeds a text to a module whose products are computed by the checkpoint and by each recipe.

    Embeddings are the checkpoint's: in eight bits they differ by less than a text can show.
    """

    def __init__(
        self,
        module: Any,
        weights: Weights,
        matrices: Matrices,
        recipes: Sequence[Recipe],
        vocab_size: int | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._module = module
        self._weights = weights
        self._matrices = matrices
        self._recipes = recipes
        self._readers = len(recipes) + 1
        self.importance: dict[str, Any] = {}

    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return negative log-probabilities [readers, rows], and the checkpoint's choices [rows].

        Args:
            ids: [windows, n].
        """
        with torch.no_grad(), self._products():
            body = self._module.base_model
            hidden = body(input_ids=ids.repeat(self._readers, 1), use_cache=False).last_hidden_state
            rows = hidden[:, :-1].float().unflatten(0, (self._readers, -1)).flatten(1, 2)
            return self._losses(rows, ids[:, 1:].flatten())

    @contextmanager
    def _products(self) -> Iterator[None]:
        """Let each product compute with the recipes' numbers, too."""
        inside = self._matrices.shapes.keys() - self._matrices.outside if self._recipes else ()
        with ExitStack() as hooks:
            for path, part in self._module.named_modules():
                name = f"{path}.weight"
                if name in inside:
                    before, after = self._hooks(name)
                    hooks.callback(part.register_forward_pre_hook(before).remove)
                    hooks.callback(part.register_forward_hook(after).remove)
            yield

    def _hooks(self, name: str) -> tuple[Any, Any]:
        """Return what a part does before and after its own product, which is the checkpoint's."""
        fed: list[torch.Tensor] = []

        def before(_: Any, args: Any) -> Any:
            fed[:] = args[0].chunk(self._readers)
            rows = fed[0].flatten(0, -2).float()
            self.importance[name] = rows.square().mean(dim=0).numpy()
            return (fed[0],)

        def after(part: Any, _: Any, own: torch.Tensor) -> torch.Tensor:
            results = [own, *(torch.empty_like(own) for _ in self._recipes)]
            for outputs, (_, *recipes) in self._rows(name):
                for rows, result, matrix in zip(fed[1:], results[1:], recipes, strict=True):
                    result[..., outputs] = rows.float() @ matrix.T
            if part.bias is not None:
                bias = self._weights[name.removesuffix("weight") + "bias"]
                for result in results[1:]:
                    result += bias
            return torch.cat(results)

        return before, after

    def _losses(
        self, rows: torch.Tensor, following: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of the tokens after rows [readers, n, H], and the checkpoint's choices."""
        names = {id(part): f"{path}.weight" for path, part in self._module.named_modules()}
        head = self._module.get_output_embeddings()
        name = names[id(head)]
        cap = getattr(self._module.config, "final_logit_softcapping", None)
        bias = None if head.bias is None else self._weights[name.removesuffix("weight") + "bias"]
        total = torch.full(rows.shape[:2], -torch.inf)
        wanted = torch.zeros(rows.shape[:2])
        best, chosen = torch.full_like(total[0], -torch.inf), torch.zeros_like(following)
        for outputs, matrices in self._rows(name):
            logits = torch.stack([r @ m.T for r, m in zip(rows, matrices, strict=True)])
            logits = logits if bias is None else logits + bias[outputs]
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            if self._vocab_size is not None:
                logits = logits[..., : max(0, self._vocab_size - outputs.start)]
                if not logits.shape[-1]:
                    break
            outputs = slice(outputs.start, outputs.start + logits.shape[-1])
            total = torch.logaddexp(total, logits.logsumexp(dim=-1))
            highest, index = logits[0].max(dim=-1)
            chosen = torch.where(highest > best, index + outputs.start, chosen)
            best = torch.maximum(best, highest)
            here = (following >= outputs.start) & (following < outputs.stop)
            wanted[:, here] = logits[:, here, following[here] - outputs.start]
        return total - wanted, chosen

    def _rows(self, name: str) -> Iterator[tuple[slice, list[torch.Tensor]]]:
        """Yield some outputs of a matrix, and their weights in the checkpoint and in each recipe."""
        bits = [recipe.bits.get(name) for recipe in self._recipes]
        start = 0
        for part in rows_of(self._weights, name, name in self._matrices.transposed):
            weight = self.importance.get(name)
            made = {each: quantise(part, each, weight).matrix() for each in set(bits) if each}
            chosen = [part, *(made[each] if each else part for each in bits)]
            outputs = slice(start, start + len(part))
            yield outputs, [torch.from_numpy(matrix) for matrix in chosen]
            start = outputs.stop
