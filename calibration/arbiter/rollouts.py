"""Playing tasks with the exported engines, and writing down what happened at each mismatch.

Training sees exactly what will run: the lowered and quantised graphs, through the same loop, with only
the decision at a mismatch taken another way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.arbitration.learned import BlockGraph
from ...runtime.arbitration.protocol import Block
from ...runtime.arbitration.referee import Referee
from ...runtime.decoding.session import load
from ...runtime.engines.onnxruntime import OrtOptions
from ...runtime.engines.protocol import StepOutput
from ...runtime.sampling.params import SamplingParams
from .network import ArbiterConfig, ArbiterNetwork

Score = Callable[[NDArray[Any]], NDArray[Any]]
"""Features [k, F] to scores [k]: the policy that is being trained."""


@dataclass(frozen=True)
class Decision:
    """One mismatch that was reached.

    Attributes:
        position: index of the token in the output.
        drafted: the draft's token.
        chosen: the target's token.
        features: float32 [F], what the policy saw.
        kept: whether the draft's token stayed.
    """

    position: int
    drafted: int
    chosen: int
    features: NDArray[np.float32]
    kept: bool


@dataclass(frozen=True)
class Play:
    """One played answer.

    Attributes:
        tokens: the output.
        target_passes: verify passes that it took.
        decisions: one for each mismatch that was reached, in order.
    """

    tokens: list[int]
    target_passes: int
    decisions: list[Decision]


def score_with(network: ArbiterNetwork) -> Score:
    """Return the policy of `network` as a function of features."""
    import torch

    def score(features: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            scores: NDArray[Any] = torch.sigmoid(network.logits(torch.from_numpy(features))).numpy()
        return scores

    return score


class PolicyArbiter:
    """Features from a graph of `export_features`, scores from the policy in training."""

    def __init__(self, graph: Path, score: Score) -> None:
        self._graph = BlockGraph(graph, "features")
        self.policy = score
        self.target_outputs = self._graph.target_outputs
        self.draft_outputs = self._graph.draft_outputs
        self.features: NDArray[Any] = np.empty((0, 0), dtype=np.float32)

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return scores [k]; the features stay readable until the next block."""
        self.features = self._graph.run(block)
        return self.policy(self.features)


@dataclass(kw_only=True)
class RecordingReferee(Referee):
    """A referee that writes each decision down.

    Attributes:
        prompt_length: tokens before the output.
        rng: samples decisions from the scores; None compares them with the threshold.
        decisions: what was decided.
    """

    arbiter: PolicyArbiter
    prompt_length: int
    rng: random.Random | None = None
    decisions: list[Decision] = field(default_factory=list)
    _start: int = 0
    _drafted: list[int] = field(default_factory=list)
    _chosen: list[int] = field(default_factory=list)

    def keep(
        self,
        tokens: Sequence[int],
        drafted: list[int],
        chosen: list[int],
        draft: StepOutput,
        verified: StepOutput,
    ) -> list[bool]:
        """Decide as `Referee.keep` does."""
        self._start, self._drafted = len(tokens) - self.prompt_length, drafted
        self._chosen = chosen
        return super().keep(tokens, drafted, chosen, draft, verified)

    def decide(self, i: int, score: float) -> bool:
        """Sample, or compare with the threshold, and remember."""
        kept = super().decide(i, score) if self.rng is None else self.rng.random() < score
        features = self.arbiter.features[i].copy()
        position = self._start + i
        self.decisions.append(Decision(position, self._drafted[i], self._chosen[i], features, kept))
        return kept


class Player:
    """Plays prompts with one session.

    Args:
        bundle: the bundle's folder.
        graph: computes the features, from `export_features`.
        network: the policy; `use` gives it new weights.
        max_tokens: tokens that an answer may take; None for the bundle's default.
        num_draft_tokens: tokens to draft a round; None for the bundle's default.
    """

    def __init__(
        self,
        bundle: Path,
        graph: Path,
        network: ArbiterNetwork,
        max_tokens: int | None = None,
        num_draft_tokens: int | None = None,
    ) -> None:
        # One thread a process: processes share the work, and small models gain nothing from threads.
        self.session = load(bundle, options=OrtOptions(threads=1), verify=False)
        self.network = network
        self.arbiter = PolicyArbiter(graph, score_with(network))
        manifest = self.session.manifest
        self._max_tokens = max_tokens or manifest.generation.max_tokens
        self._num_draft_tokens = num_draft_tokens
        self._eos = manifest.generation.eos_token_ids

    def play(
        self,
        prompt: Sequence[int],
        threshold: float,
        *,
        begun: Sequence[int] = (),
        rng: random.Random | None = None,
        stop: tuple[str, ...] = (),
    ) -> Play:
        """Answer `prompt` (token ids), behind the tokens that are `begun` already.

        Args:
            prompt: token ids.
            threshold: score above which a draft token stays; just below 1 nothing does, and every
                mismatch is recorded all the same.
            begun: the first tokens of the output, given.
            rng: samples the decisions instead.
            stop: texts that end the answer.
        """
        room = self._max_tokens - len(begun)
        if room < 1 or (begun and begun[-1] in self._eos):
            return Play(list(begun), 0, [])
        referee = RecordingReferee(
            arbiter=self.arbiter,
            threshold=threshold,
            protected=self.session.protected_tokens,
            prompt_length=len(prompt),
            rng=rng,
        )
        stream = self.session.continue_tokens(
            [*prompt, *begun],
            referee,
            max_tokens=room,
            num_draft_tokens=self._num_draft_tokens,
            sampling=SamplingParams(stop=stop) if stop else None,
        )
        completion = stream.completion()
        return Play(
            [*begun, *completion.tokens], completion.stats.num_target_passes, referee.decisions
        )

    def use(self, weights: dict[str, Any]) -> None:
        """Give the policy other weights: parameter name -> nested lists."""
        import torch

        self.network.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an output, for a checker."""
        return self.session.codec.decode(tokens)


@dataclass(frozen=True)
class PlayerSetup:
    """How a process makes its player; picklable, called once in each."""

    bundle: Path
    graph: Path
    shape: ArbiterConfig
    max_tokens: int | None
    num_draft_tokens: int | None

    def __call__(self) -> Player:
        """Load the engines."""
        import torch

        torch.set_num_threads(1)
        network = ArbiterNetwork(self.shape)
        return Player(self.bundle, self.graph, network, self.max_tokens, self.num_draft_tokens)
