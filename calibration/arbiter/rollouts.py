"""Rollouts: tasks answered by the exported engines, with a record of every decision at a mismatch.

Training sees exactly what will run: the lowered and quantised graphs, through the same loop. Only the
decision at a mismatch is made in another way.
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
from ..tasks.item import Task
from .network import ArbiterConfig, ArbiterNetwork

Score = Callable[[NDArray[Any]], NDArray[Any]]
"""Features [k, F] to scores [k]: the policy that is being trained."""


@dataclass(frozen=True)
class Decision:
    """The decision at one mismatch.

    Attributes:
        position: index of the token in the output.
        drafted: the draft's token.
        chosen: the target's token.
        features: float32 [F], the policy's input.
        kept: whether the draft's token was kept.
    """

    position: int
    drafted: int
    chosen: int
    features: NDArray[np.float32]
    kept: bool


@dataclass(frozen=True)
class Rollout:
    """One answer.

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
        """Return scores [k]; `features` holds the block's features until the next block."""
        self.features = self.features_of(block)
        return self.policy(self.features)

    def features_of(self, block: Block) -> NDArray[np.float32]:
        """Return the features [k, F] of a block."""
        return self._graph.run(block)


@dataclass(kw_only=True)
class RecordingReferee(Referee):
    """A referee that records each decision.

    Attributes:
        prompt_length: tokens before the output.
        rng: samples decisions from the scores; None compares the scores with the threshold.
        decisions: the decisions so far.
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
        """Sample, or compare with the threshold, and record the decision."""
        kept = super().decide(i, score) if self.rng is None else self.rng.random() < score
        features = self.arbiter.features[i].copy()
        position = self._start + i
        self.decisions.append(Decision(position, self._drafted[i], self._chosen[i], features, kept))
        return kept


@dataclass(frozen=True)
class RolloutSetup:
    """Makes a worker's `RolloutRunner`; picklable.

    Attributes:
        bundle: the bundle's folder.
        graph: computes the features, from `export_features`.
        shape: of the policy's network.
        max_tokens: longest answer in tokens; None for the task's own limit, or else the bundle's
            default.
        num_draft_tokens: draft tokens per round; None for the bundle's default.
        threads: threads of the engines.
    """

    bundle: Path
    graph: Path
    shape: ArbiterConfig
    max_tokens: int | None = None
    num_draft_tokens: int | None = None
    threads: int = 1

    def __call__(self) -> RolloutRunner:
        """Load the engines."""
        return RolloutRunner(self)


class RolloutRunner:
    """Answers prompts with one session and a policy whose weights can change.

    Attributes:
        session: of the bundle.
        network: the policy.
        arbiter: the policy in the loop.
        num_draft_tokens: draft tokens per round.
    """

    def __init__(self, setup: RolloutSetup) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        options = OrtOptions(threads=setup.threads)
        self.session = load(setup.bundle, options=options, verify=False)
        self.network = ArbiterNetwork(setup.shape)
        self.arbiter = PolicyArbiter(setup.graph, score_with(self.network))
        generation = self.session.manifest.generation
        self._max_tokens = setup.max_tokens
        self._default_max_tokens = generation.max_tokens
        self.num_draft_tokens = setup.num_draft_tokens or generation.num_draft_tokens
        self._eos = generation.eos_token_ids
        self._task: Task
        self._prompt: list[int]

    def rollout(
        self,
        threshold: float,
        *,
        forced: Sequence[int] = (),
        rng: random.Random | None = None,
    ) -> Rollout:
        """Answer the job's task; what the last rollout read of the same tokens is not read again.

        Args:
            threshold: score above which a draft token is kept. Just below 1 none is, and every
                mismatch is recorded all the same.
            forced: tokens that the output begins with.
            rng: samples the decisions instead.
        """
        prompt, task = self._prompt, self._task
        limit = self._max_tokens or task.max_tokens or self._default_max_tokens
        room = limit - len(forced)
        if room < 1 or (forced and forced[-1] in self._eos):
            return Rollout(list(forced), 0, [])
        referee = RecordingReferee(
            arbiter=self.arbiter,
            threshold=threshold,
            protected=self.session.protected_tokens,
            prompt_length=len(prompt),
            rng=rng,
        )
        stream = self.session.continue_tokens(
            [*prompt, *forced],
            referee,
            max_tokens=room,
            num_draft_tokens=self.num_draft_tokens,
            sampling=SamplingParams(stop=task.stop) if task.stop else None,
            reuses_cache=True,
        )
        completion = stream.completion()
        tokens = [*forced, *completion.tokens]
        return Rollout(tokens, completion.stats.num_target_passes, referee.decisions)

    def begin_job(self, task: Task, weights: dict[str, Any]) -> None:
        """Forget the job before, so that rounding does not depend on which worker runs what.

        Args:
            task: what the rollouts answer from now on.
            weights: the policy's: parameter name -> nested lists.
        """
        import torch

        self._task = task
        self._prompt = self.session.encode(task.prompt)
        self.session.forget()
        self.network.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an output, for a checker."""
        return self.session.codec.decode(tokens)
