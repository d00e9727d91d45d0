"""How a token is chosen from a row of logits, for draft and target alike.

Tokens are drawn by the Gumbel-max trick: the chosen token has the largest sum of logit and noise,
which is an exact draw from the row's distribution. The noise depends only on the seed and the
position, and is the *same* for draft and target. So they mostly choose the same token where their
distributions are similar, and the target's choice does not depend on the draft. The output of
speculative sampling is therefore distributed as the target's own and, for a given seed, does not
depend on the number of drafted tokens (Daliri, Musco and Suresh, 2024: drafter-invariant speculative
decoding).

Exception: two tokens whose sums differ by less than rounding, because passes of different widths round
differently. Disadvantage against the rejection rule of Leviathan et al. (2023): where the distributions
differ by d in total variation, at least (1-d)/(1+d) of the tokens are accepted, and not 1-d.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .grammar import GrammarState
from .params import SamplingParams
from .penalties import Penalties

_ROWS_OF_NOISE = 64
"""Number of positions whose noise is kept, for draft and target within one round."""


@dataclass(frozen=True)
class TokenLogprob:
    """The target's log-probabilities at a token of the output, in nats, before sampling parameters.

    Attributes:
        logprob: of the token itself.
        top: (token, log-probability) of the most likely ones, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses tokens for one generation.

    Args:
        params: how tokens are chosen.
        prompt: tokens before the output.
        vocab_size: width of the logits.
        eos_token_ids: tokens that `params.min_tokens` forbids at first.
        grammar: what the output must match; None for any text.

    Raises:
        UsageError: `logit_bias` has a token id outside the vocabulary.
    """

    outputs = ("logits",)
    """Outputs of the decoders that it reads."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        eos_token_ids: Collection[int],
        grammar: GrammarState | None = None,
    ) -> None:
        unknown = [token for token in params.logit_bias if not 0 <= token < vocab_size]
        if unknown:
            raise UsageError(
                f"logit_bias names the token {unknown[0]}, but ids run from 0 to {vocab_size - 1}"
            )
        self.params = params
        self.seed = secrets.randbits(53) if params.seed is None else params.seed
        self._vocab_size = vocab_size
        self._eos = np.array(sorted(eos_token_ids), dtype=np.int64)
        self._biased = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(list(params.logit_bias.values()), dtype=np.float64)
        self._penalties = Penalties(params, prompt, vocab_size)
        self._grammar = grammar
        self._prompt_length = len(prompt)
        self._counted = len(prompt)
        self._dropped = 0
        self._noise: dict[int, NDArray[np.float64]] = {}

    def choose(
        self, logits: NDArray[np.float32], tokens: Sequence[int], ahead: Sequence[int] = ()
    ) -> int:
        """Return the token that follows `tokens` and `ahead`.

        Args:
            logits: float32 [V], the model's row there.
            tokens: prompt and committed output; between calls it only grows.
            ahead: drafted tokens after them, which may be rejected.

        Raises:
            UsageError: the parameters leave no token to choose.
        """
        position = self._dropped + len(tokens) + len(ahead)
        row = self._processed(logits, tokens, ahead, position)
        ids: NDArray[np.int64] | None = None
        if self.params.temperature > 0:
            ids, row = _restrict(row / self.params.temperature, self.params)
            noise = self._noise_at(position)
            row = row - np.log(-np.log(noise if ids is None else noise[ids]))
        best = int(np.argmax(row))
        if row[best] == -np.inf:
            raise UsageError("the sampling parameters forbid every token")
        return best if ids is None else int(ids[best])

    def verify(
        self,
        logits: NDArray[np.float32],
        tokens: Sequence[int],
        drafted: Sequence[int],
        *,
        whole: bool,
    ) -> list[int]:
        """Return the target's choices along a drafted block.

        Args:
            logits: float32 [k+1, V], the target's rows from before the block to after it.
            tokens: everything before the block.
            drafted: the k tokens of the block.
            whole: choose at all k+1 positions; otherwise up to the first choice that differs.
        """
        chosen: list[int] = []
        for i, row in enumerate(logits):
            chosen.append(self.choose(row, tokens, drafted[:i]))
            if not whole and i < len(drafted) and chosen[i] != drafted[i]:
                break
        return chosen

    def logprobs(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> list[TokenLogprob]:
        """Return the log-probabilities of output tokens from rows [n, V], if params ask for them."""
        count = self.params.logprobs
        if count is None:
            return []
        reports = []
        for row, token in zip(logits.astype(np.float64), tokens, strict=True):
            peak = row.max()
            normalised = row - (peak + np.log(np.exp(row - peak).sum()))
            best = np.argpartition(-normalised, min(count, len(row) - 1))[:count]
            best = best[np.argsort(-normalised[best], kind="stable")]
            top = tuple((int(i), float(normalised[i])) for i in best)
            reports.append(TokenLogprob(float(normalised[token]), top))
        return reports

    def constrain(self, tokens: Sequence[int], drafted: list[int]) -> list[int]:
        """Return a proposal up to the first token that the grammar forbids."""
        if self._grammar is None:
            return drafted
        self._commit(tokens)
        return drafted[: self._grammar.count_allowed(drafted)]

    def forced(self, tokens: Sequence[int], ahead: Sequence[int]) -> list[int]:
        """Return the tokens that the grammar forces after `tokens` and `ahead`; often none."""
        if self._grammar is None:
            return []
        self._commit(tokens)
        return self._grammar.forced(ahead)

    def _commit(self, tokens: Sequence[int]) -> None:
        """Count the tokens that are new in the committed text."""
        if self._counted == self._dropped + len(tokens):
            return
        new = tokens[self._counted - self._dropped :]
        self._counted = self._dropped + len(tokens)
        if self._penalties.active:
            self._penalties.add(new)
        if self._grammar is not None:
            self._grammar.commit(new)

    def drop(self, count: int) -> None:
        """Tell the sampler that `count` tokens were removed from `tokens`, because the text slid.

        Positions, and with them the noise, are counted as if the tokens were still there.
        """
        self._dropped += count

    def _processed(
        self,
        logits: NDArray[np.float32],
        tokens: Sequence[int],
        ahead: Sequence[int],
        position: int,
    ) -> NDArray[np.float64]:
        """Return the row with bias, penalties, grammar and `min_tokens` applied."""
        row = logits.astype(np.float64)
        row[self._biased] += self._bias
        self._commit(tokens)
        if self._grammar is not None:
            row[~self._grammar.allowed(ahead)] = -np.inf
        if self._penalties.active:
            self._penalties.add(ahead)
            self._penalties.apply(row)
            self._penalties.remove(ahead)
        if position - self._prompt_length < self.params.min_tokens:
            row[self._eos] = -np.inf
        return row

    def _noise_at(self, position: int) -> NDArray[np.float64]:
        """Return uniform numbers in (0, 1), one for each token of the vocabulary.

        They come from the raw output of a counter-based generator, which numpy keeps stable over its
        versions.
        """
        noise = self._noise.get(position)
        if noise is None:
            raw = np.random.Philox(key=[self.seed, position]).random_raw(self._vocab_size)
            noise = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
            if len(self._noise) >= _ROWS_OF_NOISE:
                del self._noise[min(self._noise)]
            self._noise[position] = noise
        return noise


def _restrict(
    row: NDArray[np.float64], params: SamplingParams
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    """Apply top-k, top-p and min-p; return the remaining ids (None for all) and their logits."""
    ids: NDArray[np.int64] | None = None
    if 0 < params.top_k < len(row):
        ids = np.flatnonzero(row >= np.partition(row, -params.top_k)[-params.top_k])
        row = row[ids]
    if params.top_p < 1:
        kept = _nucleus(row, params.top_p)
        ids, row = kept if ids is None else ids[kept], row[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(row >= row.max() + np.log(params.min_p))
        ids, row = kept if ids is None else ids[kept], row[kept]
    return ids, row


def _nucleus(row: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Return the indices of the fewest most likely tokens that hold `top_p` of the probability."""
    weights = np.exp(row - row.max())
    weights /= weights.sum()
    # Together, all tokens below this share have less than what is cut off: only the others are sorted.
    likely = np.flatnonzero(weights >= (1 - top_p) / len(weights))
    order = likely[np.argsort(-weights[likely], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    return np.sort(order[before < top_p])
