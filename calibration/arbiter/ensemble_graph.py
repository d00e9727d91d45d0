"""The static ensemble as an arbiter graph: collaboration without training.

It decides like `StaticEnsemble` of `runtime/arbitration/baselines.py`. Its score is continuous, so a
threshold can be chosen for it as for a trained arbiter.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .network import ArbiterConfig
from .network_graph import export_traced

INPUTS = (
    "target.token",
    "target.top_values",
    "target.logsumexp",
    "target.next_input_logprob",
    "draft.top_values",
    "draft.top_ids",
    "draft.logsumexp",
)


def export_ensemble(path: Path, summary_top: int) -> None:
    """Write an ONNX graph with the one output `score` [k], for decoding.

    The score is (1 + m(d) - m(t)) / 2, where m is the mean of both models' probabilities, d the draft's
    token and t the target's. At a threshold of 0.5 the token that is more likely on average is kept.

    Args:
        path: of the graph.
        summary_top: candidates in a row of the bundle's graphs.
    """
    export_traced(_score, INPUTS, "score", path, ArbiterConfig(), summary_top)


def _score(named: dict[str, torch.Tensor]) -> torch.Tensor:
    target_of_t = torch.exp(named["target.top_values"][:, 0] - named["target.logsumexp"])
    target_of_d = torch.exp(named["target.next_input_logprob"])
    draft = torch.exp(named["draft.top_values"] - named["draft.logsumexp"].unsqueeze(1))
    # The draft's probability of the target's token is 0 if it is not among the draft's candidates.
    found = named["draft.top_ids"] == named["target.token"].unsqueeze(1)
    draft_of_t = (draft * found).sum(dim=1)
    gain = target_of_d - target_of_t + draft[:, 0] - draft_of_t
    return 0.5 + gain / 4
