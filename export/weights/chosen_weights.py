"""How an export stores weights: the choice, and what it costs in perplexity where it quantises."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ...errors import GateError, UsageError
from ...models.checkpoint import Checkpoint
from ...models.hf import quiet
from ...models.weights.streamed_model import StreamedModel
from ...models.weights.weights import Weights
from .bit_recipes import (
    WINDOW,
    Matrices,
    Quantised,
    Recipe,
    matrices_of,
    measure,
    token_count,
)
from .faster_weights import FasterWeights
from .quantised_weights import QuantisedWeights

WeightChoice = Literal["keep", "exact", "fast", "fp32", "fp16", "int8", "int4", "auto"]

MAX_PERPLEXITY_INCREASE = 0.05
"""Default limit. The figure of a text of 2,000 tokens is right to about a hundredth."""


@dataclass(frozen=True)
class QualityLimit:
    """How much quantising may cost.

    Attributes:
        perplexity_increase: share by which the perplexity of a text may rise.
        texts: UTF-8 text to measure on; None for the one that CoSpec brings.
    """

    perplexity_increase: float = MAX_PERPLEXITY_INCREASE
    texts: Path | None = None

    def text(self) -> str:
        """Return the text; errors as in `read_file`."""
        return sample_text() if self.texts is None else read_file(self.texts)


def sample_text() -> str:
    """Return the text that CoSpec brings: prose, dialogues, code and letters, 1,300 words."""
    return files(__package__).joinpath("sample.txt").read_text(encoding="utf-8")


def read_file(path: Path) -> str:
    """Read a text.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}",
            hint="convert it, for example with: iconv -t UTF-8",
        ) from error


@dataclass(frozen=True)
class ChosenWeights:
    """Weights as they will be stored.

    Attributes:
        weights: quantised matrices among them are those of the recipe.
        transposed: matrices that the module stores as [K, N].
        is_quantised: whether some numbers were rounded here, so that the checkpoint is no reference
            for the graph.
        halves: whether plain numbers are stored in half precision.
        facts: for the certificate; None where nothing was measured.
    """

    weights: Weights
    transposed: frozenset[str] = frozenset()
    is_quantised: bool = False
    halves: bool = False
    facts: dict[str, Any] | None = None


def choose(
    choice: WeightChoice,
    role: str,
    checkpoint: Checkpoint,
    model: StreamedModel,
    limit: QualityLimit,
    vocab_size: int,
) -> ChosenWeights:
    """Choose the smallest recipe that keeps within the limit.

    The draft has no limit, because it cannot change what the target puts out: it gets the last recipe
    where none is within.

    Args:
        choice: what the user asked for.
        role: target or draft.
        checkpoint: of the model.
        model: opened.
        limit: of the target's perplexity.
        vocab_size: tokens of the pair.

    Raises:
        GateError: no recipe of the target is within the limit.
        UsageError: the text cannot be read, or is too short.
    """
    if choice == "exact":
        return ChosenWeights(model.weights)
    matrices = matrices_of(model.hollow)
    is_kept = any(model.weights.sample(name) for name in matrices.shapes)
    if choice in ("keep", "fast") or (choice == "auto" and is_kept):
        return _kept(role, model, matrices, wide=choice == "fast")
    wanted: Quantised = "int8" if choice == "int8" else "int4"
    recipes = matrices.recipes(wanted)
    count = token_count(checkpoint.parameters, len(recipes))
    windows = cut_windows(checkpoint, limit, vocab_size, count)
    measured = measure(model.module, model.weights, matrices, recipes, windows)
    rises = measured.rises
    within = [rise <= limit.perplexity_increase for rise in rises]
    facts: dict[str, Any] = {
        "tokens": sum(len(window) - 1 for window in windows),
        "texts": "default" if limit.texts is None else limit.texts.name,
        "perplexity": measured.perplexity,
        "perplexity_increase": {r.name: rise for r, rise in zip(recipes, rises, strict=True)},
        "limit": limit.perplexity_increase,
    }
    if any(within):
        index = within.index(True)
    elif role == "draft":
        index = len(recipes) - 1
    elif choice == "auto":
        return ChosenWeights(model.weights, halves=True, facts=facts | {"chosen": "fp16"})
    else:
        raise _beyond(recipes, rises, limit)
    chosen = recipes[index]
    return ChosenWeights(
        QuantisedWeights(model.weights, chosen.bits, matrices.transposed, measured.importance),
        matrices.transposed,
        is_quantised=True,
        facts=facts | {"chosen": chosen.name},
    )


def _kept(role: str, model: StreamedModel, matrices: Matrices, *, wide: bool) -> ChosenWeights:
    """Return a quantised checkpoint's weights in the forms that are fastest for their role."""
    tied = {name for pair in model.hollow.all_tied_weights_keys.items() for name in pair}
    embedding = next(
        f"{path}.weight"
        for path, part in model.hollow.named_modules()
        if part is model.hollow.get_input_embeddings()
    )
    products = {name for name in matrices.shapes if name != embedding or name in tied}
    weights = FasterWeights(model.weights, role, products, tied, wide=wide)
    moves = any(weights.moves(name) for name in products)
    return ChosenWeights(weights, matrices.transposed, is_quantised=moves)


def cut_windows(
    checkpoint: Checkpoint,
    limit: QualityLimit,
    vocab_size: int,
    count: int,
    longest: int = WINDOW,
) -> list[list[int]]:
    """Return tokens of the text, as many in each window.

    Args:
        checkpoint: with the tokenizer.
        limit: with the text.
        vocab_size: tokens of the pair.
        count: tokens to take, at most.
        longest: tokens of a window, at most.

    Raises:
        UsageError: the text cannot be read, or is too short.
    """
    text = limit.text()
    with quiet():  # transformers warns of texts that are longer than the model's context
        tokens = checkpoint.tokenizer.encode(text, add_special_tokens=False)[:count]
    if len(tokens) < 2 or not text.strip():
        raise UsageError(
            f"{limit.texts} holds no text", hint="a few thousand words make steady figures"
        )
    # Models are trained with their first token in front.
    front = [] if checkpoint.bos_id is None else [checkpoint.bos_id]
    size = min(longest, len(tokens), checkpoint.max_positions or WINDOW) - len(front)
    known = [token if token < vocab_size else 0 for token in tokens]
    return [[*front, *known[i : i + size]] for i in range(0, len(known) - size + 1, size)]


def _beyond(recipes: list[Recipe], rises: list[float], limit: QualityLimit) -> GateError:
    found = "; ".join(f"{r.name} {rise:+.1%}" for r, rise in zip(recipes, rises, strict=True))
    return GateError(
        f"quantising raises the perplexity of the target beyond the limit of "
        f"{limit.perplexity_increase:.1%}: {found}",
        hint="raise --max-perplexity-increase, or export with --weights fp16",
    )
