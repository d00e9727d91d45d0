"""The arbiter network: from what both models report about a drafted token to whether to keep it.

The names of its inputs say what they are (`target.entropy`, `draft.top_ids`, `block.position`), and the
runtime binds them by name, so a new feature needs no change there. `features_a` defines the features:
training traces it, and `network_graph.py` folds it into the network for decoding.

Feature set A consists of log-probabilities, margins, entropies and ranks of the two candidates; the set
`hidden` adds a projection of both models' last hidden states.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from .config import FeatureSet

A_INPUTS = (
    "target.token",
    "target.top_values",
    "target.top_ids",
    "target.logsumexp",
    "target.entropy",
    "target.next_input_logprob",
    "draft.top_values",
    "draft.top_ids",
    "draft.logsumexp",
    "draft.entropy",
    "block.drafted",
    "block.position",
    "block.mismatches",
    "block.run",
)
HIDDEN_INPUTS = ("target.hidden", "draft.hidden")

A_FEATURES = (
    "target log-probability of the target's token",
    "target log-probability of the draft's token",
    "draft log-probability of the draft's token",
    "draft log-probability of the target's token",
    "target margin",
    "draft margin",
    "target entropy",
    "draft entropy",
    "log-rank of the draft's token under the target",
    "log-rank of the target's token under the draft",
    "position in the block",
    "mismatches kept in the block",
    "draft tokens kept in a row",
)


@dataclass(frozen=True)
class ArbiterConfig:
    """Shape of the network.

    Attributes:
        features: `a`, or `hidden` for A and both hidden states.
        width: units of the hidden layer; 0 makes the network linear.
        projection: units that the hidden states are projected to.
        target_hidden: width of the target's hidden state.
        draft_hidden: width of the draft's.
    """

    features: FeatureSet = "a"
    width: int = 32
    projection: int = 16
    target_hidden: int = 0
    draft_hidden: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the features are computed from, in order."""
        return A_INPUTS + (HIDDEN_INPUTS if self.features == "hidden" else ())


class ArbiterNetwork(nn.Module):  # type: ignore[misc]
    """Scores drafted tokens: sigmoid(MLP(standardised features)).

    Attributes:
        mean, std: of each feature over the training data; part of the exported graph.
    """

    def __init__(self, config: ArbiterConfig) -> None:
        super().__init__()
        self.config = config
        count = len(A_FEATURES)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        if config.features == "hidden":
            self.project = nn.Linear(config.target_hidden + config.draft_hidden, config.projection)
            count += config.projection
        if config.width:
            self.head = nn.Sequential(nn.Linear(count, config.width), nn.Tanh())
            self.out = nn.Linear(config.width, 1)
        else:
            self.head = nn.Identity()
            self.out = nn.Linear(count, 1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the log-odds [n] of rows of `features` [n, F], hidden states after set A."""
        count = len(A_FEATURES)
        parts = [(features[:, :count] - self.mean) / self.std]
        if self.config.features == "hidden":
            parts.append(torch.tanh(self.project(features[:, count:])))
        return self.out(self.head(torch.cat(parts, dim=1))).squeeze(1)


def all_features(named: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the features [k, F]: set A, and after it the hidden states if `named` has them."""
    hidden = [named[name] for name in HIDDEN_INPUTS if name in named]
    return torch.cat([features_a(named), *hidden], dim=1)


def features_a(named: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute feature set A [k, 13] from the named tensors of a block; see A_FEATURES."""
    target_values, draft_values = named["target.top_values"], named["draft.top_values"]
    target_norm, draft_norm = named["target.logsumexp"], named["draft.logsumexp"]
    logprob, draft_rank = _lookup(named["draft.top_ids"], draft_values, named["target.token"])
    _, target_rank = _lookup(named["target.top_ids"], target_values, named["block.drafted"])
    columns = [
        target_values[:, 0] - target_norm,
        named["target.next_input_logprob"],
        draft_values[:, 0] - draft_norm,
        logprob - draft_norm,
        target_values[:, 0] - target_values[:, 1],
        draft_values[:, 0] - draft_values[:, 1],
        named["target.entropy"],
        named["draft.entropy"],
        torch.log1p(target_rank),
        torch.log1p(draft_rank),
        named["block.position"],
        named["block.mismatches"],
        named["block.run"],
    ]
    return torch.stack(columns, dim=1)


def _lookup(
    ids: torch.Tensor, values: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return value and rank of `token` [k] among candidates [k, T]; one past the end if absent."""
    found = (ids == token.unsqueeze(1)).to(values.dtype)
    present = found.sum(dim=1)
    places = torch.arange(ids.shape[1], dtype=values.dtype)
    rank = (found * places).sum(dim=1) + (1 - present) * ids.shape[1]
    value = (found * values).sum(dim=1) + (1 - present) * (values[:, -1] - 1)
    return value, rank


def save_network(network: ArbiterNetwork, path: Path) -> None:
    """Write the weights to `path` as safetensors, the configuration in its header."""
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={"config": json.dumps(asdict(network.config))})
