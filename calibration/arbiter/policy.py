"""The policy in training: the arbiter network, its warm start from branches, its updates by gradient.

Warm start: binary cross-entropy on counterfactual branches. Then REINFORCE (Williams, 1992) with a
leave-one-out baseline over the trajectories of a prompt (Kool et al., 2019; Ahmadian et al., 2024), an
entropy bonus, and a Kullback-Leibler tie to the warm start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .config import TrainingConfig
from .network import A_FEATURES, ArbiterConfig, ArbiterNetwork

IGNORED = 1e6
"""The scale of a feature that the training data say nothing about."""


def weights_of(network: ArbiterNetwork) -> dict[str, Any]:
    """Return the parameters as nested lists, which a job carries to a worker."""
    return {name: value.tolist() for name, value in network.state_dict().items()}


def warm_start(
    records: Sequence[dict[str, Any]], shape: ArbiterConfig, config: TrainingConfig
) -> tuple[ArbiterNetwork, list[float]]:
    """Fit a network to counterfactual branches.

    A branch votes for the side that alone led to a right answer. If both did, it votes weakly for the
    draft (nothing is lost, time is won); if neither did, weakly for the target.

    Args:
        records: from `run_branches`.
        shape: of the network.
        config: epochs, learning rate, weights, seed.

    Returns:
        The network, and the mean loss of each epoch.
    """
    torch.manual_seed(config.seed)
    branches = [b for record in records for b in record["branches"]]
    features = torch.tensor([b["features"] for b in branches], dtype=torch.float32)
    label = torch.tensor([float(b["draft"]) for b in branches])
    discordant = torch.tensor([b["draft"] != b["target"] for b in branches])
    weight = torch.where(discordant, 1.0, config.tie_weight)
    network = ArbiterNetwork(shape)
    count = len(A_FEATURES)
    network.mean.copy_(features[:, :count].mean(dim=0))
    std = features[:, :count].std(dim=0)
    # A feature that never varies, such as the position in blocks of one token, says nothing.
    network.std.copy_(std.masked_fill(std < 1e-3, IGNORED))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.warm_learning_rate, weight_decay=config.weight_decay
    )
    losses = []
    for _ in range(config.warm_epochs):
        total = 0.0
        for rows in torch.randperm(len(branches)).split(256):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network.logits(features[rows]), label[rows], weight[rows]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        losses.append(total / len(branches))
    return network, losses


class PolicyGradient:
    """Updates a network from groups of sampled trajectories.

    Args:
        network: the warm start; a copy of it is the reference of the KL term.
        config: learning rate and weights.
    """

    def __init__(self, network: ArbiterNetwork, config: TrainingConfig) -> None:
        self.network = network
        self._reference = copy.deepcopy(network)
        self._config = config
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Return the whole state that the next update depends on, as named tensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for index, entry in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in entry.items()}
        return {name: value.contiguous() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` of a learner of the same configuration returned."""
        network, optimiser = {}, self._optimiser.state_dict()
        for name, value in tensors.items():
            owner, _, rest = name.partition(".")
            if owner == "network":
                network[rest] = value
            else:
                index, _, entry = rest.partition(".")
                optimiser["state"].setdefault(int(index), {})[entry] = value
        self.network.load_state_dict(network)
        self._optimiser.load_state_dict(optimiser)

    def update(self, groups: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
        """Make one step.

        Args:
            groups: per prompt its trajectories, each with `reward`, `features` [n][F] and `kept` [n].

        Returns:
            Figures of the step for the log.
        """
        features, kept, advantages = [], [], []
        for group in groups:
            rewards = np.array([trajectory["reward"] for trajectory in group])
            others = (rewards.sum() - rewards) / max(1, len(rewards) - 1)
            for trajectory, advantage in zip(group, rewards - others, strict=True):
                features += trajectory["features"]
                kept += trajectory["kept"]
                advantages += [float(advantage)] * len(trajectory["kept"])
        rows = torch.tensor(features, dtype=torch.float32)
        decided = torch.tensor(kept, dtype=torch.float32)
        advantage_of = torch.tensor(advantages)
        logits = self.network.logits(rows)
        with torch.no_grad():
            reference = self._reference.logits(rows)
        log_probability = -torch.nn.functional.binary_cross_entropy_with_logits(
            logits, decided, reduction="none"
        )
        probability = torch.sigmoid(logits)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, probability.detach(), reduction="none"
        )
        kl = _bernoulli_kl(logits, reference)
        trajectories = sum(len(group) for group in groups)
        config = self._config
        # A sum over decisions, a mean over trajectories: the gradient of the expected reward.
        gain = (log_probability * advantage_of).sum() / trajectories
        loss = -gain - config.entropy_weight * entropy.mean() + config.kl_weight * kl.mean()
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        return {
            "loss": loss.item(),
            "entropy": entropy.mean().item(),
            "kl": kl.mean().item(),
            "keep_rate": decided.mean().item(),
        }


def _bernoulli_kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) of each decision, from log-odds."""
    p = torch.sigmoid(logits)
    keep = torch.nn.functional.logsigmoid(logits) - torch.nn.functional.logsigmoid(reference)
    drop = torch.nn.functional.logsigmoid(-logits) - torch.nn.functional.logsigmoid(-reference)
    return p * keep + (1 - p) * drop
