"""Every hyper-parameter of the arbiter's training, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from ...errors import UsageError

FeatureSet = Literal["a", "hidden"]
"""See `calibration/arbiter/network.py`."""


@dataclass(frozen=True)
class TrainingConfig:
    """How an arbiter is trained.

    Attributes:
        features: feature set of the network; see `calibration/arbiter/network.py`.
        width: hidden units; 0 for a linear policy.
        seed: seed of sampling, initialisation and shuffling.
        warm_items: training items that are branched for the warm start.
        branches: mismatches per item that are branched.
        solutions: training items whose worked solution is read, as far as the tasks have one.
        warm_epochs, warm_learning_rate, weight_decay: settings of the warm start.
        tie_weight: weight of a branch that changes nothing: a vote for the draft if both sides are
            right, for the target if both are wrong.
        steps: updates by policy gradient.
        prompts: prompts per update.
        decisive_share: share of an update's prompts that is drawn from those with a branch that
            decided between right and wrong.
        group: trajectories per prompt; each is compared with the mean of the others.
        learning_rate: learning rate of the policy gradient.
        speed_weight: reward for the share of target passes saved, paid for right answers only.
        entropy_weight: weight of the entropy bonus.
        kl_weight: weight of the Kullback-Leibler distance from the warm start.
        num_draft_tokens: draft tokens per round in all rollouts; None for the bundle's default.
        max_tokens: longest answer in tokens; None for the task's own limit, or else the bundle's
            default.
    """

    features: FeatureSet = "a"
    width: int = 64
    seed: int = 0
    warm_items: int = 4000
    branches: int = 3
    solutions: int = 4000
    warm_epochs: int = 120
    warm_learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    tie_weight: float = 0.05
    steps: int = 24
    prompts: int = 48
    decisive_share: float = 0.5
    group: int = 8
    learning_rate: float = 4e-3
    speed_weight: float = 0.4
    entropy_weight: float = 1e-3
    kl_weight: float = 2e-2
    num_draft_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: names the hyper-parameter.
        """
        least = {
            "width": 0,
            "warm_items": 1,
            "branches": 1,
            "solutions": 0,
            "steps": 0,
            "prompts": 1,
            "group": 2,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                raise UsageError(f"{name} is {value}, but must be at least {low}")
        if not 0 <= self.decisive_share <= 1:
            raise UsageError(f"decisive_share is {self.decisive_share}, but must be from 0 to 1")


OWN_OPTIONS = ("features", "seed", "num_draft_tokens", "max_tokens")
"""Hyper-parameters with an option of their own on the command line."""


def with_settings(config: TrainingConfig, settings: Sequence[str]) -> TrainingConfig:
    """Return `config` changed by each NAME=VALUE of `settings`.

    Raises:
        UsageError: no such hyper-parameter, or a value of the wrong kind.
    """
    kinds: dict[str, type] = {
        field.name: type(field.default) for field in fields(config) if field.name not in OWN_OPTIONS
    }
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in kinds:
            raise UsageError(
                f"there is no hyper-parameter '{name}'", hint=f"there are: {', '.join(kinds)}"
            )
        try:
            value = kinds[name](text)
        except ValueError:
            what = "a whole number" if kinds[name] is int else "a number"
            raise UsageError(f"'{setting}': '{text}' is not {what}") from None
        config = replace(config, **{name: value})
    return config
