"""How far the tokens of an output are from the greedy choices of a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def margins(module: Any, prompt: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float64]:
    """Return by how much each token's logit is below the largest, as a share of it; 0 is greedy."""
    ids, found = list(prompt), []
    with torch.no_grad():
        for token in tokens:
            logits = module(torch.tensor([ids])).logits[0, -1]
            found.append(float(logits.max() - logits[token]) / float(logits.abs().max()))
            ids.append(token)
    return np.array(found)
