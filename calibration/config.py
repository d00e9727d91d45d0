"""Every hyper-parameter of the arbiter's training, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.arbiter import FeatureSet


@dataclass(frozen=True)
class TrainingConfig:
    """How an arbiter is trained.

    Attributes:
        features: feature set of the network; see `models/arbiter.py`.
        width: hidden units; 0 for a linear policy.
        seed: of sampling, initialisation and shuffling.
        warm_items: training items that are branched for the warm start.
        branches: mismatches of one item that are branched.
        warm_epochs, warm_learning_rate, weight_decay: of the warm start.
        tie_weight: weight of a branch that changes nothing, as a vote for the draft; wrong on both
            sides votes for the target with the same weight.
        steps: updates by policy gradient.
        prompts: prompts of one update.
        group: trajectories of one prompt; each is compared with the mean of the others.
        learning_rate: of the policy gradient.
        speed_weight: reward for the share of target passes saved, paid for right answers only.
        entropy_weight, kl_weight: bonus for exploring, and tie to the warm start.
        num_draft_tokens: draft length of all rollouts; None for the bundle's default.
        max_tokens: tokens that an answer may take; None for the bundle's default.
    """

    features: FeatureSet = "a"
    width: int = 64
    seed: int = 0
    warm_items: int = 4000
    branches: int = 3
    warm_epochs: int = 120
    warm_learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    tie_weight: float = 0.05
    steps: int = 40
    prompts: int = 48
    group: int = 8
    learning_rate: float = 2e-3
    speed_weight: float = 0.1
    entropy_weight: float = 1e-3
    kl_weight: float = 2e-2
    num_draft_tokens: int | None = None
    max_tokens: int | None = None
